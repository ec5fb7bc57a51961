// The suite has teeth: right workers with one seeded mistake at a time are caught, by the case that is about it.

#include <atomic>
#include <cmath>
#include <ostream>

#include "tests/conformance/conform.h"
#include "tests/conformance/dense_model.h"
#include "tests/conformance/faulty_model.h"
#include "tests/conformance/plain_worker.h"
#include "tests/conformance/small_models.h"

namespace hfopt::conformance {
namespace {

constexpr double kL2 = 0.02;
constexpr int kN = 6 * 8 + 8 + 8 * 4 + 4;  // parameters of MakeClassifier

// --- Mistakes of models.

struct ModelMistake {
  const char* name;
  const char* caught_by;
  Mistake mistake;
  friend void PrintTo(const ModelMistake& m, std::ostream* out) { *out << m.name; }
};

// The gradient as a function, for mistakes that differentiate it.
client::Vector<double> GradientAt(client::Model<double>& model, const client::Vector<double>& theta,
                                  const Examples& examples) {
  client::Vector<double> gradient(theta.size());
  EXPECT_TRUE(model.Gradient(theta, examples, gradient).ok());
  return gradient;
}

client::Vector<double> Halves(const client::Vector<double>& v) {  // what float16 would leave: 11 bits
  return v.unaryExpr([](double x) {
    int exponent;
    const double mantissa = std::frexp(x, &exponent);
    return std::ldexp(std::round(std::ldexp(mantissa, 11)), exponent - 11);
  });
}

std::vector<ModelMistake> ModelMistakes() {
  const auto scale_gradient = [](double factor) {
    return [factor](const Theta&, const LossSum&, Result g) { g *= factor; };
  };
  const auto scale_product = [](double factor) {
    return [factor](client::Model<double>&, const Theta&, const Examples&, const Theta&, Result p) { p *= factor; };
  };
  const auto noise = std::make_shared<std::mt19937>(1);
  const auto last_theta = std::make_shared<client::Vector<double>>();
  const auto calls = std::make_shared<double>(0);
  return {
      {"GradientOffByAFactor", "gradient/differences", {.gradient = scale_gradient(2)}},
      {"GradientOffByAPercent", "gradient/differences", {.gradient = scale_gradient(1.01)}},
      {"GradientOfAMean",
       "windows/parts-make-the-whole",
       {.gradient = [](const Theta&, const LossSum& l, Result g) { g /= l.weight; }}},
      {"GradientWithoutRegulariser",
       "gradient/differences",
       {.gradient = [](const Theta& t, const LossSum& l, Result g) { g -= kL2 * l.weight * t; }}},
      {"GradientWithAWrongSign", "gradient/differences", {.gradient = scale_gradient(-1)}},
      {"GradientOfOneBiasMissing",
       "gradient/differences",
       {.gradient = [](const Theta&, const LossSum&, Result g) { g[kN - 1] = 0; }}},
      {"GradientOffsetByOne",
       "gradient/differences",
       {.gradient =
            [](const Theta&, const LossSum&, Result g) {
              const client::Vector<double> moved = g;
              for (int64_t i = 0; i < g.size(); ++i) g[i] = moved[(i + 1) % g.size()];
            }}},
      {"GradientOfATransposedLayer",
       "gradient/differences",
       {.gradient =
            [](const Theta&, const LossSum&, Result g) {
              Eigen::MatrixXd w = Eigen::Map<Eigen::MatrixXd>(g.data(), 8, 6);
              Eigen::Map<Eigen::MatrixXd>(g.data(), 6, 8) = w.transpose();
            }}},
      {"LossIsAMean", "windows/parts-make-the-whole", {.loss = [](LossSum& l) { l.loss /= l.weight; }}},
      {"WeightIsOne",
       "windows/parts-make-the-whole",
       {.loss = [](LossSum& l) { l.weight = 1; }, .product_weight = [](double) { return 1.; }}},
      {"WeightOfProductsIsAnother", "windows/parts-make-the-whole", {.product_weight = [](double w) { return w + 1; }}},
      {"LossBesideTheGradientIsAnother", "gradient/loss", {.gradient_loss = [](LossSum& l) { l.loss *= 1.001; }}},
      {"LossInFloat16",
       "gradient/differences",
       {.loss = [](LossSum& l) { l.loss = Halves(client::Vector<double>::Constant(1, l.loss))[0]; }}},
      {"GradientInFloat32",
       "gradient/precision",
       {.gradient = [](const Theta&, const LossSum&, Result g) { g = g.cast<float>().cast<double>().eval(); }}},
      {"ProductOffByAFactor", "product/against-the-loss", {.product = scale_product(0.5)}},
      {"ProductTwiceAsLarge", "product/against-the-loss", {.product = scale_product(2)}},
      {"ProductOffByAPercent", "product/against-the-loss", {.product = scale_product(1.01)}},
      {"ProductWithAWrongSign", "product/semidefinite", {.product = scale_product(-1)}},
      {"ProductOfAMean",
       "windows/parts-make-the-whole",
       {.product = [](client::Model<double>&, const Theta&, const Examples& e, const Theta&,
                      Result p) { p /= e.size(); }}},
      {"ProductWithoutRegulariser",
       "product/against-the-loss",
       {.product = [](client::Model<double>&, const Theta&, const Examples& e, const Theta& v,
                      Result p) { p -= kL2 * e.size() * v; }}},
      {"ProductOfTheHessian",
       "product/semidefinite",
       {.product =
            [](client::Model<double>& m, const Theta& t, const Examples& e, const Theta& v, Result p) {
              if (v.isZero(0)) return;
              const double h = 1e-4 / v.norm();
              const client::Vector<double> theta = t, d = h * v;
              // Of fourth order, so that it passes for linear.
              p = (8 * (GradientAt(m, theta + d, e) - GradientAt(m, theta - d, e)) -
                   (GradientAt(m, theta + 2 * d, e) - GradientAt(m, theta - 2 * d, e))) /
                  (12 * h);
            }}},
      {"ProductWithoutTheHessianOfTheLoss",
       "product/against-the-loss",
       {.product =
            [](client::Model<double>&, const Theta& t, const Examples& e, const Theta& v, Result p) {
              // J'J: that of the same network with squared errors.
              const auto squared = MakeMlp<double>({.layers = {6, 8, 4},
                                                    .activations = {models::Activation::kTanh},
                                                    .loss = models::MlpLoss::kSquaredError,
                                                    .l2 = kL2});
              EXPECT_TRUE((*squared->Linearize(t, e))->GaussNewtonProduct(v, p).ok());
            }}},
      {"ProductByForwardDifference",
       "product/linear",
       {.product =
            [](client::Model<double>& m, const Theta& t, const Examples& e, const Theta& v, Result p) {
              const client::Vector<double> theta = t, d = 1e-6 * v;
              p = (GradientAt(m, theta + d, e) - GradientAt(m, theta, e)) / 1e-6;
            }}},
      {"ProductOfATransposedLayer",
       "product/symmetric",
       {.product =
            [](client::Model<double>&, const Theta&, const Examples&, const Theta&, Result p) {
              const Eigen::MatrixXd w = Eigen::Map<Eigen::MatrixXd>(p.data(), 8, 6);
              Eigen::Map<Eigen::MatrixXd>(p.data(), 6, 8) = w.transpose();
            }}},
      {"ProductOverflows",
       "product/linear",
       {.product = [](client::Model<double>&, const Theta&, const Examples&, const Theta&,
                      Result p) { p = p.cwiseMin(65504.).cwiseMax(-65504.).eval(); }}},
      {"ProductDependsOnEarlierOnes",
       "determinism/twice",
       {.product = [calls](client::Model<double>&, const Theta&, const Examples&, const Theta&,
                           Result p) { p *= 1 + 1e-13 * ++*calls; }}},
      {"ProductAtTheFirstPoint",
       "requests/resident-points",
       {.product_theta =
            [last_theta](const Theta& t) {
              if (last_theta->size() == 0) *last_theta = t;
              const client::Vector<double> stale = *last_theta;
              *last_theta = t;
              return stale;
            }}},
      {"Dropout",
       "determinism/twice",
       {.theta =
            [noise](const Theta& t) {
              client::Vector<double> dropped = t;
              for (int i = 0; i < 5; ++i) dropped[(*noise)() % dropped.size()] = 0;
              return dropped;
            }}},
      {"TheLastExampleIsLeftOut",
       "windows/parts-make-the-whole",
       {.examples =
            [](Examples& e) {
              if (e.size() > 1) --e.ranges.back().end;
            }}},
      {"WindowsWrapToTheDataBegin",
       "windows/wrap",
       {.examples =
            [](Examples& e) {
              if (e.ranges.size() == 2) e.ranges[1] = {0, e.ranges[1].end - e.ranges[1].begin};
            }}},
      {"WindowsDoNotWrap",
       "windows/wrap",
       {.examples = [](Examples& e) { e.ranges.resize(std::min<size_t>(1, e.ranges.size())); }}},
      {"HeldOutIsTraining", "windows/held-out", {.examples = [](Examples& e) { e.data = client::DataSet::kTraining; }}},
      {"SecondMomentOfTheSum", "gradient/second-moment", {.second_moment = [](Result m) { m = m.cwiseAbs2().eval(); }}},
      {"SecondMomentIsNegative", "gradient/second-moment", {.second_moment = [](Result m) { m[3] = -m[3]; }}},
      {"InitialParametersChange",
       "gradient/initial-parameters",
       {.initial_parameters = [noise](client::Vector<double>& t) { t[0] = (*noise)() * 1e-9; }}},
      {"MetricsAreMeans",
       "windows/parts-make-the-whole",
       {.loss =
            [](LossSum& l) {
              for (auto& [name, sum] : l.metrics) sum /= l.weight;
            }}},
  };
}

class AModelWith : public ::testing::TestWithParam<ModelMistake> {};

TEST_P(AModelWith, IsCaughtAndNamed) {
  const Mistake& mistake = GetParam().mistake;
  const auto outcomes = Conform(ServiceOf<double>([&]() -> std::unique_ptr<client::Model<double>> {
                                  return std::make_unique<FaultyModel>(MakeClassifier(kL2), mistake);
                                }),
                                {"windows/", "gradient/", "product/", "determinism/twice", "requests/resident-points"});
  ASSERT_TRUE(outcomes.contains(GetParam().caught_by));
  EXPECT_EQ(outcomes.at(GetParam().caught_by).verdict, Verdict::kFailed)
      << outcomes.at(GetParam().caught_by).detail << "\nothers:\n"
      << Print(outcomes, Verdict::kFailed);
  RecordProperty("detail", outcomes.at(GetParam().caught_by).detail);
}

INSTANTIATE_TEST_SUITE_P(Mutation, AModelWith, ::testing::ValuesIn(ModelMistakes()),
                         [](const auto& info) { return std::string(info.param.name); });

// --- Products of a G that is symmetric, linear and semidefinite, and not J'HJ.

struct AnotherG {
  const char* name;
  const char* caught_by;
  Formulas formulas;
  friend void PrintTo(const AnotherG& g, std::ostream* out) { *out << g.name; }
};

std::vector<AnotherG> OtherGs() {
  const Network network;
  const Formulas right{network.num_parameters(), network, Softmax, kL2};
  const auto with = [](Formulas formulas, auto G) {
    formulas.G = G;
    return formulas;
  };
  // J'HJ of another J than the gradient's; the outputs are right.
  const auto of = [&](Formulas formulas, Network other, std::function<double(double)> slope) {
    other.slope = std::move(slope);
    return with(formulas, [formulas, other](const Vector& theta, int64_t i) -> Eigen::MatrixXd {
      const Outputs outputs = other(theta, i);
      return outputs.J.transpose() * formulas.loss(outputs.f, i).H * outputs.J;
    });
  };
  const auto G = [right, network](const Vector& theta, int64_t i) -> Eigen::MatrixXd {
    const Outputs outputs = network(theta, i);
    return outputs.J.transpose() * right.loss(outputs.f, i).H * outputs.J;
  };
  const auto by_layers = [G, first = network.first_layer()](const Vector& theta, int64_t i) {
    Eigen::MatrixXd blocks = G(theta, i);
    blocks.topRightCorner(first, blocks.cols() - first).setZero();
    blocks.bottomLeftCorner(blocks.rows() - first, first).setZero();
    return blocks;
  };
  const auto diagonal = [G](const Vector& theta, int64_t i) -> Eigen::MatrixXd {
    return G(theta, i).diagonal().asDiagonal();
  };
  const auto fisher = [right](const Vector& theta, int64_t i) -> Eigen::MatrixXd {
    const Outputs outputs = right.outputs(theta, i);
    const Vector g = outputs.J.transpose() * right.loss(outputs.f, i).e;
    return g * g.transpose();
  };
  Formulas without_regulariser = right;
  without_regulariser.l2 = 0;
  const Network one_output{.outputs = 1};
  const Formulas regression{one_output.num_parameters(), one_output, SquaredError};
  const auto forgot_the_square = [](double h) { return 1 - h; };
  const auto halved = [](double h) { return (1 - h * h) / 2; };
  return {{"ADerivativeOfTheActivation", "product/range", of(right, network, forgot_the_square)},
          {"TheDerivativeOfAnotherActivation", "product/range",
           of(without_regulariser, network, [](double h) { return (1 + h) * (1 - h) / 4 * (3 - h); })},
          {"ADerivativeOfTheActivationIgnored", "product/range", of(regression, one_output, [](double) { return 1; })},
          {"AHiddenLayerHalved", "product/range", of(right, network, halved)},
          {"AHiddenLayerHalvedBeforeOneOutput", "product/range", of(regression, one_output, halved)},
          {"BlocksByLayers", "product/blocks", with(right, by_layers)},
          {"TheDiagonalAlone", "product/blocks", with(without_regulariser, diagonal)},
          {"TheDiagonalAndTheRegulariser", "product/blocks", with(right, diagonal)},
          {"TheFisherMatrix", "product/fisher", with(without_regulariser, fisher)},
          {"TheFisherMatrixAndTheRegulariser", "product/fisher", with(right, fisher)}};
}

class AProductOf : public ::testing::TestWithParam<AnotherG> {};

template <typename Scalar>
void ExpectCaughtAndNamed(const AnotherG& g) {
  const auto outcomes =
      Conform(ServiceOf<Scalar>([&] { return std::make_unique<DenseModel<Scalar>>(g.formulas); }), {"product/"});
  for (const char* name : {"product/symmetric", "product/linear", "product/semidefinite"}) {
    EXPECT_EQ(outcomes.at(name).verdict, Verdict::kPassed) << outcomes.at(name).detail;
  }
  EXPECT_EQ(outcomes.at(g.caught_by).verdict, Verdict::kFailed)
      << outcomes.at(g.caught_by).detail << "\nothers:\n"
      << Print(outcomes, Verdict::kFailed);
  ::testing::Test::RecordProperty("detail", outcomes.at(g.caught_by).detail);
}

TEST_P(AProductOf, IsCaughtAndNamed) { ExpectCaughtAndNamed<double>(GetParam()); }
TEST_P(AProductOf, IsCaughtAndNamedInFloat32) { ExpectCaughtAndNamed<float>(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Mutation, AProductOf, ::testing::ValuesIn(OtherGs()),
                         [](const auto& info) { return std::string(info.param.name); });

// --- Mistakes of conversations.

struct Offence {
  const char* name;
  Misconduct misconduct;
  const char* caught_by;
  friend void PrintTo(const Offence& o, std::ostream* out) { *out << o.name; }
};

constexpr Offence kOffences[] = {
    {"AnotherVersion", Misconduct::kOtherVersion, "hello/fields"},
    {"BadWorkerId", Misconduct::kBadWorkerId, "hello/fields"},
    {"ConstantIncarnation", Misconduct::kConstantIncarnation, "hello/grows-in-restart"},
    {"IncarnationOfTheSession", Misconduct::kIncarnationOfTheSession, "hello/same-in-redial"},
    {"SpeaksBeforeWelcome", Misconduct::kSpeaksBeforeWelcome, "hello/waits-for-welcome"},
    {"DialsAfterARefusal", Misconduct::kDialsAfterARefusal, "dial/invalid-argument"},
    {"GivesUpWhenUnavailable", Misconduct::kGivesUpWhenUnavailable, "dial/again"},
    {"NeverRenewsItsLease", Misconduct::kNeverRenews, "lease/idle"},
    {"IgnoresOffsets", Misconduct::kIgnoresOffsets, "vectors/out-of-order"},
    {"MixesTransfers", Misconduct::kMixesTransfers, "vectors/interleaved"},
    {"TakesOverlaps", Misconduct::kTakesOverlaps, "broken/overlap"},
    {"StatesHalfVectors", Misconduct::kStatesHalfVectors, "reconnect/in-an-upload"},
    {"NeverForgets", Misconduct::kNeverForgets, "requests/stale"},
    {"PromisesLostAnswers", Misconduct::kPromisesLostAnswers, "reconnect/in-an-answer"},
    {"AnswersBeforeTheVector", Misconduct::kAnswersBeforeTheVector, "gradient/loss"},
    {"AnswersASecondCopyOtherwise", Misconduct::kAnswersASecondCopyOtherwise, "requests/duplicate-ids"},
    {"DiesOfUnknownMessages", Misconduct::kDiesOfUnknownMessages, "requests/later-version"},
    {"FailsAtFinished", Misconduct::kFailsAtFinished, "end/finished"},
    {"LeavesWithoutDrain", Misconduct::kLeavesWithoutDrain, "end/drain-idle"},
    {"CutsMetrics", Misconduct::kCutsMetrics, "requests/batched-losses"},
    {"TakesAnyWindow", Misconduct::kTakesAnyWindow, "requests/bad-windows"},
    {"TakesTheFirstTermOnly", Misconduct::kTakesTheFirstTermOnly, "requests/points-are-sums"},
    {"TakesTheFirstPointOnly", Misconduct::kTakesTheFirstPointOnly, "requests/batched-losses"},
    {"RoundsShardsUp", Misconduct::kRoundsShardsUp, "windows/shard-boundaries"},
    {"SharesATransferNumber", Misconduct::kSharesATransferNumber, "gradient/second-moment"},
    {"SendsFloat32", Misconduct::kSendsFloat32, "gradient/loss"},
    {"PromisesBfloat16", Misconduct::kPromisesBfloat16, "vectors/bfloat16"},
};

ThreadWorker::MakeService Plain(Misconduct misconduct,
                                std::function<std::unique_ptr<client::Model<double>>()> make_model) {
  return [=](const std::string& address, const std::string& run_id,
             const std::string& worker_id) -> std::unique_ptr<Service> {
    return std::make_unique<PlainWorker>(make_model(), address, run_id, worker_id, misconduct);
  };
}

class AWorkerThat : public ::testing::TestWithParam<Offence> {};

TEST_P(AWorkerThat, IsCaughtAndNamed) {
  const std::string expected = GetParam().caught_by;
  const auto outcomes =
      Conform(Plain(GetParam().misconduct, [] { return MakeClassifier(kL2); }), {expected}, absl::Seconds(3));
  ASSERT_TRUE(outcomes.contains(expected));
  EXPECT_EQ(outcomes.at(expected).verdict, Verdict::kFailed) << outcomes.at(expected).detail;
  RecordProperty("detail", outcomes.at(expected).detail);
}

INSTANTIATE_TEST_SUITE_P(Mutation, AWorkerThat, ::testing::ValuesIn(kOffences),
                         [](const auto& info) { return std::string(info.param.name); });

// Those that show in long evaluations, or with long vectors, only.
class AWorkerWithALongEvaluation : public AWorkerThat {};

TEST_P(AWorkerWithALongEvaluation, IsCaughtAndNamed) {
  const std::string expected = GetParam().caught_by;
  const auto slow = [] { return MakeSlowClassifier(); };
  const auto outcomes = Conform(Plain(GetParam().misconduct, slow), {expected}, absl::Seconds(6));
  EXPECT_EQ(outcomes.at(expected).verdict, Verdict::kFailed) << outcomes.at(expected).detail;
}

constexpr Offence kLongOffences[] = {
    {"WritesInItsReader", Misconduct::kWritesInItsReader, "flow/slow-reading"},
    {"RenewsBetweenEvaluationsOnly", Misconduct::kRenewsBetweenEvaluationsOnly, "lease/computing"},
    {"DropsTheAnswerWhenDrained", Misconduct::kDropsTheAnswerWhenDrained, "end/drain-computing"}};
INSTANTIATE_TEST_SUITE_P(Mutation, AWorkerWithALongEvaluation, ::testing::ValuesIn(kLongOffences),
                         [](const auto& info) { return std::string(info.param.name); });

// Without misconduct it is right, in all cases.
TEST(Mutation, ThePlainWorkerIsRight) {
  const auto outcomes = Conform(Plain(Misconduct::kNone, [] { return MakeClassifier(kL2); }), {});
  EXPECT_EQ(Print(outcomes, Verdict::kFailed), "");
}

TEST(Mutation, SeedsAtLeastTwentyFiveMistakes) {
  EXPECT_GE(ModelMistakes().size() + std::size(kOffences) + std::size(kLongOffences), 25u);
}

}  // namespace
}  // namespace hfopt::conformance
