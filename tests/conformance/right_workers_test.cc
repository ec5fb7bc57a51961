// Right workers of different models raise no alarm.

#include <ostream>

#include "client/models/diffusion.h"
#include "client/models/model_factory.h"
#include "client/models/pinn.h"
#include "tests/conformance/conform.h"
#include "tests/conformance/dense_model.h"
#include "tests/conformance/small_models.h"

namespace hfopt::conformance {
namespace {

using models::Activation;
using models::Initialization;
using models::MlpLoss;

struct RightWorker {
  std::string name;
  ThreadWorker::MakeService make;
  friend void PrintTo(const RightWorker& w, std::ostream* out) { *out << w.name; }
};

template <typename Scalar>
RightWorker Mlp(const std::string& name, const models::MlpOptions& options) {
  return {name, ServiceOf<Scalar>([options] { return MakeMlp<Scalar>(options); })};
}

template <typename Scalar>
RightWorker Task(const std::string& name, const models::ModelSpec& spec) {
  return {name, ServiceOf<Scalar>([spec] { return models::MakeModel<Scalar>(spec).value(); })};
}

template <typename Scalar>
RightWorker Dense(const std::string& name, const Formulas& formulas) {
  return {name, ServiceOf<Scalar>([formulas] { return std::make_unique<DenseModel<Scalar>>(formulas); })};
}

std::vector<RightWorker> RightWorkers() {
  const Activation t = Activation::kTanh, s = Activation::kSigmoid, r = Activation::kRelu, l = Activation::kLinear;
  const MlpLoss softmax = MlpLoss::kSoftmaxCrossEntropy, bernoulli = MlpLoss::kBernoulliCrossEntropy,
                squared = MlpLoss::kSquaredError;
  const Network one_output{.outputs = 1}, network, part{.inputs = 2, .hidden = 3, .outputs = 2};
  const Formulas huber_of_one{one_output.num_parameters(), one_output, Huber},
      huber{network.num_parameters(), network, Huber, 0.02},
      separate{2 * part.num_parameters(), [part](const Vector& theta, int64_t i) { return TwoParts(part, theta, i); },
               SquaredError, 0.02};
  return {
      Mlp<double>("Classifier", {{6, 8, 4}, {t}, softmax}),
      Mlp<double>("ClassifierWithRegulariser", {{6, 8, 4}, {t}, softmax, 0.05}),
      Mlp<double>("ClassifierOfSigmoids", {{7, 9, 5, 3}, {s, s}, softmax, 1e-4}),
      Mlp<double>("ClassifierOfRectifiers", {{6, 12, 8, 4}, {r, r}, softmax}),
      Mlp<double>("LogisticRegression", {{9, 5}, {}, softmax}),
      Mlp<double>("LogisticRegressionWithRegulariser", {{9, 5}, {}, softmax, 0.1}),
      Mlp<double>("BernoulliAutoencoder", {{10, 6, 3, 6, 10}, {s, l, s}, bernoulli, 0, Initialization::kSparse}),
      Mlp<double>("BernoulliTanh", {{5, 7, 3}, {t}, bernoulli, 1e-3}),
      Mlp<double>("Regression", {{4, 10, 2}, {t}, squared}),
      Mlp<double>("RegressionOfRectifiers", {{4, 10, 10, 1}, {r, r}, squared, 1e-2}),
      Mlp<double>("LinearRegression", {{6, 2}, {}, squared}),
      Mlp<double>("DeepLinear", {{4, 4, 4, 4, 2}, {l, l, l}, squared}),
      Mlp<double>("DeepTanh", {{5, 6, 6, 6, 6, 3}, {t, t, t, t}, softmax, 1e-3}),
      Mlp<float>("ClassifierInFloat32", {{6, 8, 4}, {t}, softmax, 0.01}),
      Mlp<float>("RegressionInFloat32", {{4, 10, 2}, {s}, squared}),
      Mlp<float>("RectifiersInFloat32", {{6, 12, 4}, {r}, softmax}),
      Mlp<float>("AutoencoderInFloat32", {{10, 4, 10}, {s}, bernoulli}),
      Mlp<double>("RegressionOfOneOutput", {{4, 10, 1}, {t}, squared}),
      Mlp<double>("LogisticOfOneOutput", {{5, 7, 1}, {t}, bernoulli, 1e-3}),
      Mlp<double>("LinearOfOneOutput", {{6, 1}, {}, bernoulli}),
      Mlp<float>("LogisticOfOneOutputInFloat32", {{5, 7, 1}, {t}, bernoulli}),
      Mlp<float>("DeepTanhInFloat32", {{5, 6, 6, 6, 6, 3}, {t, t, t, t}, softmax, 0.1}),
      Dense<double>("HuberOfOneOutput", huber_of_one),
      Dense<float>("HuberOfOneOutputInFloat32", huber_of_one),
      Dense<double>("Huber", huber),
      Dense<float>("HuberInFloat32", huber),
      Dense<double>("SeparateParts", separate),
      Dense<float>("SeparatePartsInFloat32", separate),
      Mlp<double>("AsManyOutputsAsParameters", {{1, 6}, {}, bernoulli}),  // of two examples
      Mlp<float>("AsManyOutputsAsParametersInFloat32", {{1, 6}, {}, bernoulli}),
      {"LeastSquares", ServiceOf<double>([] { return std::make_unique<LinearLeastSquares<double>>(7); })},
      {"LeastSquaresOfOneParameter", ServiceOf<double>([] { return std::make_unique<LinearLeastSquares<double>>(1); })},
      {"LeastSquaresInFloat32", ServiceOf<float>([] { return std::make_unique<LinearLeastSquares<float>>(12); })},
      {"Decay", ServiceOf<double>([] { return std::make_unique<DecayCurve<double>>(); })},
      Task<double>("Digits", {.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10"}),
      Task<float>("DigitsInFloat32", {.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10"}),
      Task<double>("PinnPoisson", {.task = "pinn-poisson", .layers = "2-6-6-1"}),
      Task<double>("PinnConvection", {.task = "pinn-convection", .layers = "2-6-6-1"}),
      Task<double>("Inverse", {.task = "inverse", .grid = 8}),
  };
}

class RightWorkerTest : public ::testing::TestWithParam<RightWorker> {};

TEST_P(RightWorkerTest, RaisesNoAlarm) {
  const auto outcomes = Conform(GetParam().make, {"hello/fields", "vectors/", "requests/", "windows/", "gradient/",
                                                  "product/", "determinism/", "reconnect/"});
  EXPECT_EQ(Print(outcomes, Verdict::kFailed), "");
  RecordProperty("warnings", Print(outcomes, Verdict::kWarned));
  for (const char* name : {"product/range", "product/blocks", "product/fisher"}) {
    RecordProperty(name, outcomes.at(name).detail);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RightWorkerTest, ::testing::ValuesIn(RightWorkers()),
                         [](const auto& info) { return info.param.name; });

TEST(RightWorkers, AreAtLeastTwenty) { EXPECT_GE(RightWorkers().size(), 20u); }

// The SDK's worker, in all cases.
TEST(RightWorkers, TheSdkKeepsTheProtocol) {
  const auto outcomes = Conform(ServiceOf<double>(MakeSlowClassifier), {});
  EXPECT_EQ(Print(outcomes, Verdict::kFailed), "");
  EXPECT_EQ(Print(outcomes, Verdict::kSkipped),
            absl::StrCat("hello/float32: ", outcomes.at("hello/float32").detail, "\nvectors/bfloat16: ", outcomes.at("vectors/bfloat16").detail, "\n"));
}

}  // namespace
}  // namespace hfopt::conformance
