#include "client/cli/evaluation.h"

#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/cli/format.h"
#include "client/models/acoustic_evaluation.h"
#include "client/models/diffusion.h"
#include "client/models/pinn.h"
#include "client/models/status_macros.h"

namespace hfopt::cli {
namespace {

void AddSplit(const char* key, const char* title, const models::SplitEvaluation& split, std::vector<Figure>& figures) {
  const auto add = [&](const char* what_key, const char* what, double value, std::string text) {
    figures.push_back({absl::StrCat(key, "_", what_key), value, absl::StrCat(title, " ", what), std::move(text)});
  };
  add("cross_entropy", "cross-entropy", split.cross_entropy, FormatLoss(split.cross_entropy));
  add("frame_error", "frame error", split.frame_error, FormatPercent(split.frame_error));
  add("word_error_rate", "word error rate", split.word_error_rate(),
      absl::StrFormat("%s (%d of %d words)", FormatPercent(split.word_error_rate()), split.word_errors, split.words));
}

template <typename Scalar>
absl::StatusOr<std::vector<Figure>> EvaluateSpeech(const models::ModelSpec& spec, const client::Vector<Scalar>& theta) {
  HFOPT_ASSIGN_OR_RETURN(const models::AcousticModel<Scalar> model, models::MakeAcousticModel<Scalar>(spec));
  HFOPT_ASSIGN_OR_RETURN(const models::Decoder decoder, models::Decoder::Load(spec.data, *model.data, model.targets));
  models::AcousticEvaluationOptions options;
  options.targets = model.targets;
  HFOPT_ASSIGN_OR_RETURN(const models::AcousticEvaluation evaluation,
                         models::EvaluateAcousticModel(*model.mlp, theta, *model.data, decoder, options));
  std::vector<Figure> figures;
  AddSplit("held_out", "held-out", evaluation.heldout, figures);
  figures.push_back({"acoustic_scale", evaluation.acoustic_scale, "acoustic scale",
                     absl::StrCat(evaluation.acoustic_scale, ", chosen on held-out")});
  AddSplit("test", "test", evaluation.test, figures);
  return figures;
}

template <typename Scalar>
absl::StatusOr<std::vector<Figure>> EvaluateHeldOut(const models::ModelSpec& spec,
                                                    const client::Vector<Scalar>& theta) {
  HFOPT_ASSIGN_OR_RETURN(const std::unique_ptr<client::Model<Scalar>> model, models::MakeModel<Scalar>(spec));
  const client::Examples all = {client::DataSet::kHeldOut, {{0, model->num_examples(client::DataSet::kHeldOut)}}};
  HFOPT_ASSIGN_OR_RETURN(const client::LossSum sum, model->Loss(theta, all));
  const double loss = sum.loss / sum.weight;
  std::vector<Figure> figures = {{"held_out_loss", loss, "held-out loss", FormatLoss(loss)}};
  for (const auto& [name, total] : sum.metrics) {
    const double mean = total / sum.weight;
    figures.push_back({absl::StrCat("held_out_", name), mean,
                       absl::StrCat("held-out ", absl::StrReplaceAll(name, {{"_", " "}})),
                       absl::EndsWith(name, "errors") ? FormatPercent(mean) : absl::StrFormat("%.4g", mean)});
  }
  if (auto* pinn = dynamic_cast<models::Pinn<Scalar>*>(model.get())) {
    HFOPT_ASSIGN_OR_RETURN(const double error, pinn->RelativeError(theta));
    figures.push_back({"relative_l2_error", error, "relative L2 error", absl::StrFormat("%.3g", error)});
  }
  if (const auto* inversion = dynamic_cast<const models::DiffusionInversion<Scalar>*>(model.get())) {
    HFOPT_ASSIGN_OR_RETURN(const double error, inversion->RelativeError(theta));
    figures.push_back({"relative_model_error", error, "relative model error", FormatPercent(error)});
  }
  return figures;
}

}  // namespace

template <typename Scalar>
absl::StatusOr<std::vector<Figure>> Evaluate(const models::ModelSpec& spec, const client::Vector<Scalar>& theta) {
  return absl::StartsWith(spec.task, "an4") ? EvaluateSpeech<Scalar>(spec, theta)
                                            : EvaluateHeldOut<Scalar>(spec, theta);
}

template absl::StatusOr<std::vector<Figure>> Evaluate(const models::ModelSpec&, const client::Vector<float>&);
template absl::StatusOr<std::vector<Figure>> Evaluate(const models::ModelSpec&, const client::Vector<double>&);

}  // namespace hfopt::cli
