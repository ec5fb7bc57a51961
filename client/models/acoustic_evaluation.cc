#include "client/models/acoustic_evaluation.h"

#include <cmath>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/models/status_macros.h"
#include "client/models/word_error.h"

namespace hfopt::models {
namespace {

// A split as the network hears it: all but the words.
struct HeardSplit {
  SplitEvaluation evaluation;
  std::vector<Eigen::MatrixXf> log_likelihoods;  // of each utterance: log posterior - log prior, states x frames
};

template <typename Scalar>
absl::StatusOr<HeardSplit> Hear(Mlp<Scalar>& mlp, const client::Vector<Scalar>& theta, const AcousticSplit& split,
                                AcousticTargets kind, const std::vector<double>& log_priors) {
  HeardSplit heard;
  const Eigen::VectorXf priors = Eigen::Map<const Eigen::VectorXd>(log_priors.data(), log_priors.size()).cast<float>();
  const std::vector<uint16_t>& targets = split.targets[static_cast<int>(kind)];
  int64_t errors = 0;
  Matrix<Scalar> inputs, outputs;
  for (const Utterance& utterance : split.utterances) {
    inputs.resize(AcousticSplit::kInputs, utterance.end - utterance.begin);
    for (int64_t t = 0; t < inputs.cols(); ++t) split.Window(utterance.begin + t, &inputs(0, t));
    HFOPT_RETURN_IF_ERROR(mlp.Outputs(theta, inputs, outputs));
    for (int64_t t = 0; t < outputs.cols(); ++t) {
      int64_t most_probable = 0;
      const Scalar max = outputs.col(t).maxCoeff(&most_probable);
      outputs.col(t).array() -= max + std::log((outputs.col(t).array() - max).exp().sum());
      const uint16_t target = targets[utterance.begin + t];
      heard.evaluation.cross_entropy -= outputs(target, t);
      if (most_probable != target) ++errors;
    }
    heard.log_likelihoods.push_back(outputs.template cast<float>().colwise() - priors);
    heard.evaluation.words += static_cast<int64_t>(utterance.words.size());
  }
  heard.evaluation.frames = split.frames();
  heard.evaluation.cross_entropy /= static_cast<double>(split.frames());
  heard.evaluation.frame_error = static_cast<double>(errors) / static_cast<double>(split.frames());
  return heard;
}

int64_t CountWordErrors(const Decoder& decoder, const HeardSplit& heard, const AcousticSplit& split, double scale) {
  int64_t errors = 0;
  for (size_t u = 0; u < split.utterances.size(); ++u) {
    errors += WordErrors(split.utterances[u].words, decoder.Decode(heard.log_likelihoods[u], scale));
  }
  return errors;
}

}  // namespace

template <typename Scalar>
absl::StatusOr<AcousticEvaluation> EvaluateAcousticModel(Mlp<Scalar>& mlp, const client::Vector<Scalar>& theta,
                                                         const AcousticData& data, const Decoder& decoder,
                                                         const AcousticEvaluationOptions& options) {
  if (options.acoustic_scales.empty()) {
    return absl::InvalidArgumentError("acoustic evaluation: acoustic_scales is empty; give at least one");
  }
  if (!theta.allFinite()) return absl::InvalidArgumentError("acoustic evaluation: theta has NaN or infinite elements");
  const std::vector<double> log_priors = data.LogPriors(options.targets);
  HFOPT_ASSIGN_OR_RETURN(HeardSplit heldout, Hear(mlp, theta, data.heldout, options.targets, log_priors));
  HFOPT_ASSIGN_OR_RETURN(HeardSplit test, Hear(mlp, theta, data.test, options.targets, log_priors));

  AcousticEvaluation evaluation{.acoustic_scale = 0, .heldout = heldout.evaluation, .test = test.evaluation};
  for (const double scale : options.acoustic_scales) {
    const int64_t errors = CountWordErrors(decoder, heldout, data.heldout, scale);
    if (evaluation.acoustic_scale == 0 || errors < evaluation.heldout.word_errors) {
      evaluation.acoustic_scale = scale;
      evaluation.heldout.word_errors = errors;
    }
  }
  evaluation.test.word_errors = CountWordErrors(decoder, test, data.test, evaluation.acoustic_scale);
  return evaluation;
}

template absl::StatusOr<AcousticEvaluation> EvaluateAcousticModel(Mlp<float>&, const client::Vector<float>&,
                                                                  const AcousticData&, const Decoder&,
                                                                  const AcousticEvaluationOptions&);
template absl::StatusOr<AcousticEvaluation> EvaluateAcousticModel(Mlp<double>&, const client::Vector<double>&,
                                                                  const AcousticData&, const Decoder&,
                                                                  const AcousticEvaluationOptions&);

}  // namespace hfopt::models
