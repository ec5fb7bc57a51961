#ifndef HFOPT_CLIENT_MODELS_ACOUSTIC_EVALUATION_H_
#define HFOPT_CLIENT_MODELS_ACOUSTIC_EVALUATION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "client/models/acoustic_data.h"
#include "client/models/decoder.h"
#include "client/models/mlp.h"

namespace hfopt::models {

struct SplitEvaluation {
  int64_t frames = 0;
  double cross_entropy = 0;  // nats a frame, without the regulariser
  double frame_error = 0;    // share of frames whose state is not the most probable
  int64_t words = 0;         // of the transcripts
  int64_t word_errors = 0;

  double word_error_rate() const { return static_cast<double>(word_errors) / static_cast<double>(words); }
};

struct AcousticEvaluation {
  double acoustic_scale = 0;  // with the fewest word errors on heldout
  SplitEvaluation heldout;
  SplitEvaluation test;
};

struct AcousticEvaluationOptions {
  AcousticTargets targets = AcousticTargets::kMonophone;
  std::vector<double> acoustic_scales = {0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0};  // the first of equals is taken
};

// Recognises the words of the heldout split at each acoustic scale, then those of the test split at the best of them
// only. INVALID_ARGUMENT when theta has the wrong size or is not finite, or there is no scale to try.
template <typename Scalar>
absl::StatusOr<AcousticEvaluation> EvaluateAcousticModel(Mlp<Scalar>& mlp, const client::Vector<Scalar>& theta,
                                                         const AcousticData& data, const Decoder& decoder,
                                                         const AcousticEvaluationOptions& options = {});

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_ACOUSTIC_EVALUATION_H_
