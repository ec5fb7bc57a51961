#include "client/models/model_factory.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/models/diffusion.h"
#include "client/models/image_data.h"
#include "client/models/pinn.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

constexpr char kAn4[] = "an4", kAn4Cd[] = "an4-cd", kDigits[] = "digits", kIdxAutoencoder[] = "idx-autoencoder",
               kInverse[] = "inverse", kPinnPoisson[] = "pinn-poisson", kPinnConvection[] = "pinn-convection";

absl::StatusOr<std::vector<int64_t>> ParseLayers(absl::string_view text) {
  std::vector<int64_t> layers;
  for (absl::string_view width : absl::StrSplit(text, '-')) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(width, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("model: layers \"", text, "\" has the width \"", width,
                                                     "\"; give integers, for example 440-256-256-102"));
    }
    layers.push_back(value);
  }
  return layers;
}

absl::StatusOr<Activation> ParseActivation(absl::string_view text) {
  for (const Activation a : {Activation::kSigmoid, Activation::kTanh, Activation::kRelu, Activation::kLinear}) {
    if (text == Name(a)) return a;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("model: activation \"", text, "\"; allowed are sigmoid, tanh, relu and linear"));
}

// One activation for all hidden layers, or as many as there are.
absl::StatusOr<std::vector<Activation>> ParseActivations(absl::string_view text, size_t hidden_layers) {
  std::vector<Activation> activations;
  for (absl::string_view name : absl::StrSplit(text, ',')) {
    HFOPT_ASSIGN_OR_RETURN(const Activation activation, ParseActivation(name));
    activations.push_back(activation);
  }
  if (activations.size() == 1) activations.resize(hidden_layers, activations[0]);
  return activations;
}

absl::StatusOr<Initialization> ParseInitialization(absl::string_view text) {
  if (text == "glorot") return Initialization::kGlorot;
  if (text == "sparse") return Initialization::kSparse;
  return absl::InvalidArgumentError(
      absl::StrCat("model: initialization \"", text, "\"; allowed are glorot and sparse"));
}

// The options of a spec whose empty texts have these defaults.
absl::StatusOr<MlpOptions> MakeOptions(const ModelSpec& spec, MlpLoss loss, const std::string& layers,
                                       const std::string& activation, const std::string& initialization) {
  MlpOptions options{.loss = loss, .l2 = spec.l2};
  HFOPT_ASSIGN_OR_RETURN(options.layers, ParseLayers(spec.layers.empty() ? layers : spec.layers));
  if (options.layers.size() < 2) return options.Validate();
  const size_t hidden_layers = options.layers.size() - 2;
  HFOPT_ASSIGN_OR_RETURN(options.activations,
                         ParseActivations(spec.activation.empty() ? activation : spec.activation, hidden_layers));
  HFOPT_ASSIGN_OR_RETURN(options.initialization,
                         ParseInitialization(spec.initialization.empty() ? initialization : spec.initialization));
  return options;
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakeDigitsModel(const ModelSpec& spec) {
  HFOPT_ASSIGN_OR_RETURN(ImageSet digits, LoadDigits(spec.data));
  HFOPT_ASSIGN_OR_RETURN(MlpOptions options,
                         MakeOptions(spec, MlpLoss::kSoftmaxCrossEntropy, "64-32-10", "tanh", "glorot"));
  return Mlp<Scalar>::Create(std::move(options), std::make_shared<ImageSource<Scalar>>(std::move(digits), spec.seed));
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakeIdxAutoencoder(const ModelSpec& spec) {
  HFOPT_ASSIGN_OR_RETURN(ImageSet images, LoadIdxImages(spec.data));
  HFOPT_ASSIGN_OR_RETURN(MlpOptions options,
                         MakeOptions(spec, MlpLoss::kBernoulliCrossEntropy,
                                     "784-400-200-100-50-25-6-25-50-100-200-400-784", "sigmoid", "sparse"));
  if (spec.activation.empty() && options.activations.size() % 2 == 1) {
    options.activations[options.activations.size() / 2] = Activation::kLinear;
  }
  return Mlp<Scalar>::Create(std::move(options), std::make_shared<ImageSource<Scalar>>(std::move(images), spec.seed));
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakeInverse(const ModelSpec& spec) {
  if (!spec.layers.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model: layers \"", spec.layers, "\": task ", kInverse, " has none; give the grid"));
  }
  return DiffusionInversion<Scalar>::Create({.grid = spec.grid, .seed = spec.seed});
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakePinn(const ModelSpec& spec, PinnProblem problem) {
  if ((!spec.activation.empty() && spec.activation != Name(Activation::kTanh)) ||
      (!spec.initialization.empty() && spec.initialization != "glorot") || spec.l2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("model: activation \"", spec.activation, "\", initialization \"",
                                                   spec.initialization, "\", l2 ", spec.l2, "; allowed for task \"",
                                                   spec.task, "\" are tanh, glorot and 0"));
  }
  PinnOptions options{.problem = problem, .data_seed = spec.seed};
  if (!spec.layers.empty()) {
    HFOPT_ASSIGN_OR_RETURN(options.layers, ParseLayers(spec.layers));
  }
  return Pinn<Scalar>::Create(std::move(options));
}

}  // namespace

bool IsDeterministic(absl::string_view task) {
  return task == kInverse || task == kPinnPoisson || task == kPinnConvection;
}

template <typename Scalar>
absl::StatusOr<AcousticModel<Scalar>> MakeAcousticModel(const ModelSpec& spec) {
  if (spec.task != kAn4 && spec.task != kAn4Cd) {
    return absl::InvalidArgumentError(
        absl::StrCat("model: task \"", spec.task, "\" has no words to recognise; allowed are ", kAn4, " and ", kAn4Cd));
  }
  AcousticModel<Scalar> model;
  model.targets = spec.task == kAn4 ? AcousticTargets::kMonophone : AcousticTargets::kTiedTriphone;
  HFOPT_ASSIGN_OR_RETURN(model.data, LoadAcousticData(spec.data));
  const std::string layers = absl::StrCat(AcousticSplit::kInputs, "-256-256-", model.data->states(model.targets));
  HFOPT_ASSIGN_OR_RETURN(MlpOptions options,
                         MakeOptions(spec, MlpLoss::kSoftmaxCrossEntropy, layers, "tanh", "glorot"));
  HFOPT_ASSIGN_OR_RETURN(auto source,
                         AcousticSource<Scalar>::Create(
                             model.data, {.targets = model.targets, .seed = spec.seed, .fraction = spec.fraction}));
  HFOPT_ASSIGN_OR_RETURN(model.mlp, Mlp<Scalar>::Create(std::move(options), std::move(source)));
  return model;
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> MakeModel(const ModelSpec& spec) {
  if (spec.task == kInverse) return MakeInverse<Scalar>(spec);
  if (spec.task == kPinnPoisson) return MakePinn<Scalar>(spec, PinnProblem::kPoisson);
  if (spec.task == kPinnConvection) return MakePinn<Scalar>(spec, PinnProblem::kConvection);

  const bool is_acoustic = spec.task == kAn4 || spec.task == kAn4Cd;
  if (!is_acoustic && spec.task != kDigits && spec.task != kIdxAutoencoder) {
    return absl::InvalidArgumentError(absl::StrCat("model: task \"", spec.task, "\" is not known; allowed are ", kAn4,
                                                   ", ", kAn4Cd, ", ", kDigits, ", ", kIdxAutoencoder, ", ", kInverse,
                                                   ", ", kPinnPoisson, " and ", kPinnConvection));
  }
  if (spec.data.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model: no data folder for task \"", spec.task,
                     "\"; give the folder of the data set, for example client/models/an4"));
  }
  if (spec.task == kDigits) return MakeDigitsModel<Scalar>(spec);
  if (spec.task == kIdxAutoencoder) return MakeIdxAutoencoder<Scalar>(spec);
  HFOPT_ASSIGN_OR_RETURN(AcousticModel<Scalar> model, MakeAcousticModel<Scalar>(spec));
  return std::move(model.mlp);
}

template absl::StatusOr<AcousticModel<float>> MakeAcousticModel(const ModelSpec&);
template absl::StatusOr<AcousticModel<double>> MakeAcousticModel(const ModelSpec&);
template absl::StatusOr<std::unique_ptr<client::Model<float>>> MakeModel(const ModelSpec&);
template absl::StatusOr<std::unique_ptr<client::Model<double>>> MakeModel(const ModelSpec&);

}  // namespace hfopt::models
