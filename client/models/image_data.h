#ifndef HFOPT_CLIENT_MODELS_IMAGE_DATA_H_
#define HFOPT_CLIENT_MODELS_IMAGE_DATA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/models/data_source.h"

namespace hfopt::models {

// Grey images of equal size.
struct Images {
  std::vector<uint8_t> bytes;   // image after image, `pixels` each
  std::vector<uint8_t> labels;  // one for each image, or none

  int64_t size(int64_t pixels) const { return static_cast<int64_t>(bytes.size()) / pixels; }
};

// Training and held-out images; the value of a pixel is byte / white.
struct ImageSet {
  std::string name;
  int64_t pixels = 0;
  int64_t classes = 0;  // 0: no labels
  int white = 255;
  Images training;
  Images held_out;
};

// The 8 x 8 digits of `folder` (images.npy, labels.npy): the first 1,400 for training, the rest held out. Errors name
// the file.
absl::StatusOr<ImageSet> LoadDigits(const std::string& folder);

// The IDX images of `folder`: train-images-idx3-ubyte for training, t10k-images-idx3-ubyte or test-images-idx3-ubyte
// held out, gzipped
// (".gz") or not. Labels are left alone. Errors name the file.
absl::StatusOr<ImageSet> LoadIdxImages(const std::string& folder);

// Images in an order shuffled by `seed` (held out: seed + 1); labels where there are any; the targets are the inputs.
template <typename Scalar>
class ImageSource final : public DataSource<Scalar> {
 public:
  ImageSource(ImageSet set, uint64_t seed);

  int64_t num_examples(client::DataSet data) const override { return static_cast<int64_t>(order(data).size()); }
  int64_t input_size() const override { return set_.pixels; }
  int64_t num_classes() const override { return set_.classes; }
  int64_t target_size() const override { return set_.pixels; }
  std::string signature() const override;

  void Inputs(client::DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const override;
  void Labels(client::DataSet data, int64_t begin, absl::Span<int32_t> labels) const override;
  void Targets(client::DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> targets) const override;

 private:
  const Images& images(client::DataSet data) const;
  const std::vector<int64_t>& order(client::DataSet data) const;

  const ImageSet set_;
  const uint64_t seed_;
  const std::vector<int64_t> training_order_;
  const std::vector<int64_t> held_out_order_;
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_IMAGE_DATA_H_
