#include "client/models/image_data.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/shuffle.h"
#include "client/models/idx.h"
#include "client/models/npy.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

using client::DataSet;

// Reads the first of `names` that exists in `folder`.
absl::StatusOr<IdxArray> ReadFirstIdx(const std::string& folder, std::initializer_list<absl::string_view> names) {
  absl::Status first_error;
  for (const absl::string_view name : names) {
    absl::StatusOr<IdxArray> array = ReadIdx(absl::StrCat(folder, "/", name), 3);
    if (array.ok() || !absl::IsNotFound(array.status())) return array;
    first_error.Update(array.status());
  }
  return first_error;
}

}  // namespace

absl::StatusOr<ImageSet> LoadDigits(const std::string& folder) {
  constexpr int64_t kTraining = 1400, kPixels = 64;
  constexpr int kClasses = 10, kWhite = 16;
  HFOPT_ASSIGN_OR_RETURN(const NpyArray<uint8_t> images, ReadNpy<uint8_t>(folder + "/images.npy", {kAnyLength, 8, 8}));
  const int64_t count = images.shape[0];
  if (count <= kTraining) {
    return absl::InvalidArgumentError(absl::StrCat(folder, "/images.npy: has ", count, " images; expected more than ",
                                                   kTraining, ", of which those after the first ", kTraining,
                                                   " are held out"));
  }
  HFOPT_ASSIGN_OR_RETURN(const NpyArray<uint8_t> labels, ReadNpy<uint8_t>(folder + "/labels.npy", {count}));
  for (int64_t i = 0; i < count; ++i) {
    if (labels.values[i] >= kClasses) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, "/labels.npy: label ", i, " is ", labels.values[i], "; allowed is 0 to 9"));
    }
  }
  const auto part = [&](int64_t begin, int64_t end) {
    return Images{{images.values.begin() + begin * kPixels, images.values.begin() + end * kPixels},
                  {labels.values.begin() + begin, labels.values.begin() + end}};
  };
  return ImageSet{.name = "digits",
                  .pixels = kPixels,
                  .classes = kClasses,
                  .white = kWhite,
                  .training = part(0, kTraining),
                  .held_out = part(kTraining, count)};
}

absl::StatusOr<ImageSet> LoadIdxImages(const std::string& folder) {
  HFOPT_ASSIGN_OR_RETURN(IdxArray training,
                         ReadFirstIdx(folder, {"train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"}));
  HFOPT_ASSIGN_OR_RETURN(IdxArray held_out,
                         ReadFirstIdx(folder, {"t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte",
                                               "test-images-idx3-ubyte.gz", "test-images-idx3-ubyte"}));
  const int64_t rows = training.shape[1], columns = training.shape[2];
  if (training.values.empty() || held_out.values.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(folder, ": has no training or no held-out pixels"));
  }
  if (held_out.shape[1] != rows || held_out.shape[2] != columns) {
    return absl::InvalidArgumentError(absl::StrCat(folder, ": training images are ", rows, " x ", columns,
                                                   ", held-out images ", held_out.shape[1], " x ", held_out.shape[2],
                                                   "; take both from one data set"));
  }
  return ImageSet{.name = "idx",
                  .pixels = rows * columns,
                  .training = {std::move(training.values), {}},
                  .held_out = {std::move(held_out.values), {}}};
}

template <typename Scalar>
ImageSource<Scalar>::ImageSource(ImageSet set, uint64_t seed)
    : set_(std::move(set)),
      seed_(seed),
      training_order_(client::ShuffledIndices(seed, set_.training.size(set_.pixels))),
      held_out_order_(client::ShuffledIndices(seed + 1, set_.held_out.size(set_.pixels))) {}

template <typename Scalar>
std::string ImageSource<Scalar>::signature() const {
  return absl::StrCat(set_.name, " images, ", training_order_.size(), " + ", held_out_order_.size(), " of ",
                      set_.pixels, " pixels, seed ", seed_);
}

template <typename Scalar>
void ImageSource<Scalar>::Inputs(DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const {
  for (int64_t j = 0; j < inputs.cols(); ++j) {
    const uint8_t* bytes = images(data).bytes.data() + order(data)[begin + j] * set_.pixels;
    Scalar* column = &inputs(0, j);
    for (int64_t i = 0; i < set_.pixels; ++i) column[i] = bytes[i] * (Scalar(1) / set_.white);
  }
}

template <typename Scalar>
void ImageSource<Scalar>::Labels(DataSet data, int64_t begin, absl::Span<int32_t> labels) const {
  for (size_t j = 0; j < labels.size(); ++j) labels[j] = images(data).labels[order(data)[begin + j]];
}

template <typename Scalar>
void ImageSource<Scalar>::Targets(DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> targets) const {
  Inputs(data, begin, targets);
}

template <typename Scalar>
const Images& ImageSource<Scalar>::images(DataSet data) const {
  return data == DataSet::kTraining ? set_.training : set_.held_out;
}

template <typename Scalar>
const std::vector<int64_t>& ImageSource<Scalar>::order(DataSet data) const {
  return data == DataSet::kTraining ? training_order_ : held_out_order_;
}

template class ImageSource<float>;
template class ImageSource<double>;

}  // namespace hfopt::models
