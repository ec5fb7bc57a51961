#ifndef HFOPT_CLIENT_MODELS_ACOUSTIC_DATA_H_
#define HFOPT_CLIENT_MODELS_ACOUSTIC_DATA_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/models/data_source.h"

namespace hfopt::models {

enum class AcousticTargets {
  kMonophone,     // states of context-independent phones: 3 p + k for phone p, state k
  kTiedTriphone,  // states shared by phones in similar contexts
};

struct Utterance {
  std::string id;
  int64_t begin = 0;  // frames begin .. end - 1 of its split
  int64_t end = 0;
  std::vector<std::string> words;
};

// Frames and utterances of one part of a corpus.
struct AcousticSplit {
  static constexpr int64_t kFeatures = 40;  // of a frame; value = (byte - 128) / 32
  static constexpr int64_t kContext = 5;    // frames on either side that the network sees
  static constexpr int64_t kInputs = (2 * kContext + 1) * kFeatures;

  std::vector<uint8_t> features;                 // frame after frame
  std::array<std::vector<uint16_t>, 2> targets;  // by AcousticTargets: a state for each frame
  std::vector<Utterance> utterances;             // they follow one another and cover all frames
  std::vector<int32_t> utterance_of_frame;

  int64_t frames() const { return static_cast<int64_t>(utterance_of_frame.size()); }

  // column[0 .. kInputs - 1] <- frames frame - 5 .. frame + 5 of the frame's utterance, the edge frame repeated. 0 <=
  // frame < frames().
  template <typename Scalar>
  void Window(int64_t frame, Scalar* column) const;
};

// A corpus in the layout of the an4 folder (see its README.md): 3-state left-to-right phones, phone 0 is silence.
struct AcousticData {
  static constexpr int kStatesPerPhone = 3;

  AcousticSplit train, heldout, test;
  std::vector<std::string> phones;
  std::vector<double> self_loop;                     // probability to stay, by monophone state, inside (0, 1)
  std::array<std::vector<int64_t>, 2> train_frames;  // by AcousticTargets: frames of each state, for its prior
  std::vector<uint16_t> tied_states;                 // [monophone state][left phone][right phone]

  int64_t states(AcousticTargets targets) const {
    return static_cast<int64_t>(train_frames[static_cast<int>(targets)].size());
  }
  // log((frames + 1) / (all frames + states)).
  std::vector<double> LogPriors(AcousticTargets targets) const;
};

// Reads `folder`. NOT_FOUND for a missing file, INVALID_ARGUMENT for files that are damaged or contradict one another:
// each naming the file, what was expected and what was found.
absl::StatusOr<std::shared_ptr<const AcousticData>> LoadAcousticData(const std::string& folder);

struct AcousticSourceOptions {
  AcousticTargets targets = AcousticTargets::kMonophone;
  uint64_t seed = 1;  // of the order of training frames; seed + 1 of held-out frames, seed + 2 of utterances
  double fraction =
      1;  // of the training utterances: the first of a shuffled order, so smaller fractions are part of larger ones
};

// Examples are frames of the train and heldout splits with their context; the classes are the states.
template <typename Scalar>
class AcousticSource final : public DataSource<Scalar> {
 public:
  // INVALID_ARGUMENT when the fraction is not in (0, 1].
  static absl::StatusOr<std::shared_ptr<const AcousticSource>> Create(std::shared_ptr<const AcousticData> data,
                                                                      const AcousticSourceOptions& options);

  int64_t num_examples(client::DataSet data) const override { return static_cast<int64_t>(order(data).size()); }
  int64_t input_size() const override { return AcousticSplit::kInputs; }
  int64_t num_classes() const override { return data_->states(options_.targets); }
  std::string signature() const override;

  void Inputs(client::DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const override;
  void Labels(client::DataSet data, int64_t begin, absl::Span<int32_t> labels) const override;

 private:
  AcousticSource(std::shared_ptr<const AcousticData> data, const AcousticSourceOptions& options);
  const AcousticSplit& split(client::DataSet data) const;
  const std::vector<int64_t>& order(client::DataSet data) const;

  const std::shared_ptr<const AcousticData> data_;
  const AcousticSourceOptions options_;
  const std::vector<int64_t> training_order_;  // frame of each example
  const std::vector<int64_t> held_out_order_;
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_ACOUSTIC_DATA_H_
