#include "client/models/acoustic_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/shuffle.h"
#include "client/models/file.h"
#include "client/models/npy.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

using client::DataSet;

constexpr int kMonophone = static_cast<int>(AcousticTargets::kMonophone);
constexpr int kTied = static_cast<int>(AcousticTargets::kTiedTriphone);

// States, their order and their priors: targets.tsv.
absl::Status ReadMonophoneStates(const std::string& path, AcousticData& data) {
  HFOPT_ASSIGN_OR_RETURN(const TextTable table,
                         TextTable::Read(path, {"target", "phone", "state", "train_frames", "self_loop_prob"}));
  constexpr int kStates = AcousticData::kStatesPerPhone;
  if (table.rows() == 0 || table.rows() % kStates != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", table.rows(), " states; expected ", kStates, " for each phone"));
  }
  for (int row = 0; row < table.rows(); ++row) {
    HFOPT_ASSIGN_OR_RETURN(const int64_t target, table.Integer(row, "target"));
    HFOPT_ASSIGN_OR_RETURN(const int64_t state, table.Integer(row, "state"));
    HFOPT_ASSIGN_OR_RETURN(const int64_t frames, table.Integer(row, "train_frames"));
    HFOPT_ASSIGN_OR_RETURN(const double self_loop, table.Real(row, "self_loop_prob"));
    const std::string& phone = table.text(row, "phone");
    if (target != row || state != row % kStates || (state > 0 && phone != data.phones.back())) {
      return table.Error(row, absl::StrCat("target ", target, " is state ", state, " of ", phone, "; expected target ",
                                           row, ", states 0 to ", kStates - 1, " of one phone in a row"));
    }
    if (frames < 0) return table.Error(row, absl::StrCat("train_frames is ", frames));
    if (!(0 < self_loop && self_loop < 1)) {
      return table.Error(row,
                         absl::StrCat("self_loop_prob is ", self_loop, "; allowed is more than 0 and less than 1"));
    }
    if (state == 0) data.phones.push_back(phone);
    data.self_loop.push_back(self_loop);
    data.train_frames[kMonophone].push_back(frames);
  }
  return absl::OkStatus();
}

// cdtargets.tsv and cdtable.npy.
absl::Status ReadTiedStates(const std::string& folder, AcousticData& data) {
  HFOPT_ASSIGN_OR_RETURN(const TextTable table,
                         TextTable::Read(folder + "/cdtargets.tsv", {"cdtarget", "train_frames"}));
  for (int row = 0; row < table.rows(); ++row) {
    HFOPT_ASSIGN_OR_RETURN(const int64_t target, table.Integer(row, "cdtarget"));
    HFOPT_ASSIGN_OR_RETURN(const int64_t frames, table.Integer(row, "train_frames"));
    if (target != row) return table.Error(row, absl::StrCat("cdtarget is ", target, ", expected ", row));
    if (frames < 0) return table.Error(row, absl::StrCat("train_frames is ", frames));
    data.train_frames[kTied].push_back(frames);
  }
  const std::string path = folder + "/cdtable.npy";
  const int64_t phones = static_cast<int64_t>(data.phones.size());
  HFOPT_ASSIGN_OR_RETURN(NpyArray<uint16_t> states,
                         ReadNpy<uint16_t>(path, {data.states(AcousticTargets::kMonophone), phones, phones}));
  for (const uint16_t state : states.values) {
    if (state >= table.rows()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": has tied state ", state, ", but cdtargets.tsv only ", table.rows(), " states"));
    }
  }
  data.tied_states = std::move(states.values);
  return absl::OkStatus();
}

template <typename T>
absl::Status ReadTargets(const std::string& path, int64_t frames, int64_t states, std::vector<uint16_t>& targets) {
  HFOPT_ASSIGN_OR_RETURN(const NpyArray<T> array, ReadNpy<T>(path, {frames}));
  for (int64_t t = 0; t < frames; ++t) {
    if (array.values[t] >= states) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": frame ", t, " has state ", array.values[t], "; the states are 0 to ", states - 1));
    }
  }
  targets.assign(array.values.begin(), array.values.end());
  return absl::OkStatus();
}

// SPLIT.utts.npy and SPLIT.utts.tsv, which must agree with each other and with the number of frames.
absl::Status ReadUtterances(const std::string& prefix, int64_t frames, AcousticSplit& split) {
  HFOPT_ASSIGN_OR_RETURN(const TextTable table,
                         TextTable::Read(prefix + ".utts.tsv", {"utt", "first_frame", "num_frames", "transcript"}));
  HFOPT_ASSIGN_OR_RETURN(const NpyArray<int32_t> array, ReadNpy<int32_t>(prefix + ".utts.npy", {table.rows(), 3}));
  int64_t next = 0;
  for (int row = 0; row < table.rows(); ++row) {
    HFOPT_ASSIGN_OR_RETURN(const int64_t first, table.Integer(row, "first_frame"));
    HFOPT_ASSIGN_OR_RETURN(const int64_t length, table.Integer(row, "num_frames"));
    if (first != next || length < 1 || length > frames - next) {
      return table.Error(row, absl::StrCat("utterance has ", length, " frames from ", first,
                                           " on; expected at least 1 from ", next, " on, and ", frames, " in all"));
    }
    const int32_t* const binary = &array.values[size_t{3} * row];
    if (binary[0] != first || binary[1] != length) {
      return table.Error(
          row, absl::StrCat("utterance has ", length, " frames from ", first, " on, but ", binary[1], " from ",
                            binary[0], " on in ", prefix, ".utts.npy; copy the data set again"));
    }
    next += length;
    split.utterances.push_back({.id = table.text(row, "utt"),
                                .begin = first,
                                .end = next,
                                .words = absl::StrSplit(table.text(row, "transcript"), ' ', absl::SkipEmpty())});
    split.utterance_of_frame.insert(split.utterance_of_frame.end(), length, row);
  }
  if (next != frames) {
    return absl::InvalidArgumentError(absl::StrCat(prefix, ".utts.tsv: the utterances have ", next, " frames, ", prefix,
                                                   ".feats.npy has ", frames, "; copy the data set again"));
  }
  return absl::OkStatus();
}

absl::Status ReadSplit(const std::string& prefix, const AcousticData& data, AcousticSplit& split) {
  HFOPT_ASSIGN_OR_RETURN(NpyArray<uint8_t> features,
                         ReadNpy<uint8_t>(prefix + ".feats.npy", {kAnyLength, AcousticSplit::kFeatures}));
  const int64_t frames = features.shape[0];
  if (frames == 0) return absl::InvalidArgumentError(absl::StrCat(prefix, ".feats.npy: has no frames"));
  split.features = std::move(features.values);
  HFOPT_RETURN_IF_ERROR(ReadUtterances(prefix, frames, split));
  HFOPT_RETURN_IF_ERROR(ReadTargets<uint8_t>(prefix + ".targets.npy", frames, data.states(AcousticTargets::kMonophone),
                                             split.targets[kMonophone]));
  return ReadTargets<uint16_t>(prefix + ".cdtargets.npy", frames, data.states(AcousticTargets::kTiedTriphone),
                               split.targets[kTied]);
}

// The frames of the first `fraction` (rounded up) of the utterances in an order shuffled by `seed`, as they lie in the
// file.
std::vector<int64_t> FramesOfSomeUtterances(const AcousticSplit& split, double fraction, uint64_t seed) {
  std::vector<int64_t> utterances = client::ShuffledIndices(seed, static_cast<int64_t>(split.utterances.size()));
  utterances.resize(static_cast<size_t>(std::ceil(fraction * static_cast<double>(utterances.size()))));
  std::sort(utterances.begin(), utterances.end());
  std::vector<int64_t> frames;
  for (const int64_t u : utterances) {
    for (int64_t t = split.utterances[u].begin; t < split.utterances[u].end; ++t) frames.push_back(t);
  }
  return frames;
}

std::vector<int64_t> ShuffledFrames(const AcousticSplit& split, double fraction, uint64_t utterance_seed,
                                    uint64_t frame_seed) {
  const std::vector<int64_t> frames = FramesOfSomeUtterances(split, fraction, utterance_seed);
  std::vector<int64_t> order = client::ShuffledIndices(frame_seed, static_cast<int64_t>(frames.size()));
  for (int64_t& i : order) i = frames[i];
  return order;
}

}  // namespace

template <typename Scalar>
void AcousticSplit::Window(int64_t frame, Scalar* column) const {
  const Utterance& utterance = utterances[utterance_of_frame[frame]];
  const auto convert = [](const uint8_t* bytes, int64_t count, Scalar* values) {
    for (int64_t i = 0; i < count; ++i) values[i] = (static_cast<Scalar>(bytes[i]) - 128) * Scalar(0x1p-5);
  };
  if (utterance.begin + kContext <= frame && frame + kContext < utterance.end) {
    convert(features.data() + (frame - kContext) * kFeatures, kInputs, column);
    return;
  }
  for (int64_t offset = -kContext; offset <= kContext; ++offset) {
    const int64_t source = std::clamp(frame + offset, utterance.begin, utterance.end - 1);
    convert(features.data() + source * kFeatures, kFeatures, column + (offset + kContext) * kFeatures);
  }
}

template void AcousticSplit::Window(int64_t, float*) const;
template void AcousticSplit::Window(int64_t, double*) const;

std::vector<double> AcousticData::LogPriors(AcousticTargets targets) const {
  const std::vector<int64_t>& frames = train_frames[static_cast<int>(targets)];
  double total = 0;
  for (const int64_t n : frames) total += static_cast<double>(n + 1);
  std::vector<double> priors;
  priors.reserve(frames.size());
  for (const int64_t n : frames) priors.push_back(std::log(static_cast<double>(n + 1) / total));
  return priors;
}

absl::StatusOr<std::shared_ptr<const AcousticData>> LoadAcousticData(const std::string& folder) {
  auto data = std::make_shared<AcousticData>();
  HFOPT_RETURN_IF_ERROR(ReadMonophoneStates(folder + "/targets.tsv", *data));
  HFOPT_RETURN_IF_ERROR(ReadTiedStates(folder, *data));
  HFOPT_RETURN_IF_ERROR(ReadSplit(folder + "/train", *data, data->train));
  HFOPT_RETURN_IF_ERROR(ReadSplit(folder + "/heldout", *data, data->heldout));
  HFOPT_RETURN_IF_ERROR(ReadSplit(folder + "/test", *data, data->test));
  return data;
}

template <typename Scalar>
absl::StatusOr<std::shared_ptr<const AcousticSource<Scalar>>> AcousticSource<Scalar>::Create(
    std::shared_ptr<const AcousticData> data, const AcousticSourceOptions& options) {
  if (!(0 < options.fraction && options.fraction <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("acoustic data: fraction of the training utterances is ",
                                                   options.fraction, "; allowed is more than 0 and at most 1"));
  }
  return std::shared_ptr<const AcousticSource>(new AcousticSource(std::move(data), options));
}

template <typename Scalar>
AcousticSource<Scalar>::AcousticSource(std::shared_ptr<const AcousticData> data, const AcousticSourceOptions& options)
    : data_(std::move(data)),
      options_(options),
      training_order_(ShuffledFrames(data_->train, options.fraction, options.seed + 2, options.seed)),
      held_out_order_(ShuffledFrames(data_->heldout, 1, options.seed + 2, options.seed + 1)) {}

template <typename Scalar>
std::string AcousticSource<Scalar>::signature() const {
  return absl::StrCat(options_.targets == AcousticTargets::kMonophone ? "monophone" : "tied triphone", " frames, ",
                      training_order_.size(), " + ", held_out_order_.size(), ", seed ", options_.seed);
}

template <typename Scalar>
void AcousticSource<Scalar>::Inputs(DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const {
  const AcousticSplit& frames = split(data);
  for (int64_t j = 0; j < inputs.cols(); ++j) frames.Window(order(data)[begin + j], &inputs(0, j));
}

template <typename Scalar>
void AcousticSource<Scalar>::Labels(DataSet data, int64_t begin, absl::Span<int32_t> labels) const {
  const std::vector<uint16_t>& targets = split(data).targets[static_cast<int>(options_.targets)];
  for (size_t j = 0; j < labels.size(); ++j) labels[j] = targets[order(data)[begin + j]];
}

template <typename Scalar>
const AcousticSplit& AcousticSource<Scalar>::split(DataSet data) const {
  return data == DataSet::kTraining ? data_->train : data_->heldout;
}

template <typename Scalar>
const std::vector<int64_t>& AcousticSource<Scalar>::order(DataSet data) const {
  return data == DataSet::kTraining ? training_order_ : held_out_order_;
}

template class AcousticSource<float>;
template class AcousticSource<double>;

}  // namespace hfopt::models
