// Letters as in client/models/mlp.cc. Derivatives are compared in double with central differences of step h = 1e-5,
// whose error is of the order h^2 = 1e-10 against numbers of the order of 1.

#include "client/models/mlp.h"

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "Eigen/Core"
#include "client/cpp/shuffle.h"
#include "client/models/layers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/dense_source.h"
#include "tests/client/models/matchers.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using client::Examples;
using client::LossSum;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kStep = 1e-5;
constexpr double kTolerance = 1e-7;

Eigen::MatrixXd RandomMatrix(client::SplitMix64& generator, int64_t rows, int64_t cols, double scale = 1) {
  Eigen::MatrixXd m(rows, cols);
  for (double& x : m.reshaped()) x = scale * Normal(generator);
  return m;
}

// A small network and its examples, all of them a function of the seed.
template <typename Scalar>
struct Problem {
  Problem(MlpOptions options, int64_t num_examples, uint64_t seed = 1, double theta_scale = 0.5)
      : layers(options.layers), loss(options.loss), l2(options.l2) {
    client::SplitMix64 generator(seed);
    inputs = RandomMatrix(generator, layers.front(), num_examples);
    targets = Eigen::MatrixXd(layers.back(), num_examples);
    for (double& t : targets.reshaped()) t = Uniform(generator);
    for (int64_t i = 0; i < num_examples; ++i) labels.push_back(static_cast<int32_t>(generator.Below(layers.back())));
    theta = RandomMatrix(generator, NumParameters(layers), 1, theta_scale).cast<Scalar>();
    v = RandomMatrix(generator, NumParameters(layers), 1).cast<Scalar>();
    const auto source = std::make_shared<DenseSource<Scalar>>(inputs, targets, labels, layers.back());
    mlp = *Mlp<Scalar>::Create(options, source);
    all = {DataSet::kTraining, {{0, num_examples}}};
  }

  LossSum Loss(const client::Vector<Scalar>& at, const Examples& examples) { return *mlp->Loss(at, examples); }
  client::Vector<Scalar> Gradient(const client::Vector<Scalar>& at, const Examples& examples) {
    client::Vector<Scalar> gradient(mlp->num_parameters());
    EXPECT_THAT(mlp->Gradient(at, examples, gradient), IsOk());
    return gradient;
  }
  client::Vector<Scalar> SecondMoment(const client::Vector<Scalar>& at, const Examples& examples) {
    client::Vector<Scalar> second_moment(mlp->num_parameters());
    EXPECT_THAT(mlp->SecondMoment(at, examples, second_moment), IsOk());
    return second_moment;
  }
  client::Vector<Scalar> Product(const client::Vector<Scalar>& at, const client::Vector<Scalar>& direction,
                                 const Examples& examples) {
    client::Vector<Scalar> product(mlp->num_parameters());
    EXPECT_THAT((*mlp->Linearize(at, examples))->GaussNewtonProduct(direction, product), IsOk());
    return product;
  }
  Matrix<Scalar> Outputs(const client::Vector<Scalar>& at) {
    Matrix<Scalar> outputs;
    EXPECT_THAT(mlp->Outputs(at, inputs.cast<Scalar>(), outputs), IsOk());
    return outputs;
  }

  std::vector<int64_t> layers;
  MlpLoss loss;
  double l2;
  Eigen::MatrixXd inputs, targets;
  std::vector<int32_t> labels;
  client::Vector<Scalar> theta, v;
  std::unique_ptr<Mlp<Scalar>> mlp;
  Examples all;
};

// Hessian of an example's loss with respect to its outputs z, from the definition of the loss.
Eigen::MatrixXd LossHessian(MlpLoss loss, const Eigen::VectorXd& z) {
  switch (loss) {
    case MlpLoss::kSoftmaxCrossEntropy: {
      const Eigen::VectorXd p = z.array().exp() / z.array().exp().sum();
      return Eigen::MatrixXd(p.asDiagonal()) - p * p.transpose();
    }
    case MlpLoss::kBernoulliCrossEntropy: {
      const Eigen::VectorXd p = 1 / (1 + (-z.array()).exp());
      return (p.array() * (1 - p.array())).matrix().asDiagonal();
    }
    case MlpLoss::kSquaredError:
      return Eigen::MatrixXd::Identity(z.size(), z.size());
  }
  return {};
}

// An example's loss by the formula of the header, in the way of a textbook.
double ExampleLoss(MlpLoss loss, const Eigen::VectorXd& z, const Eigen::VectorXd& t, int label) {
  switch (loss) {
    case MlpLoss::kSoftmaxCrossEntropy:
      return std::log(z.array().exp().sum()) - z(label);
    case MlpLoss::kBernoulliCrossEntropy: {
      const Eigen::ArrayXd p = 1 / (1 + (-z.array()).exp());
      return -(t.array() * p.log() + (1 - t.array()) * (1 - p).log()).sum();
    }
    case MlpLoss::kSquaredError:
      return (z - t).squaredNorm() / 2;
  }
  return 0;
}

class MlpDerivatives : public testing::TestWithParam<std::tuple<MlpLoss, Activation, double>> {
 protected:
  static constexpr int64_t kExamples = 7;

  Problem<double> p{{.layers = {4, 5, 3, 4},
                     .activations = {std::get<1>(GetParam()), std::get<1>(GetParam())},
                     .loss = std::get<0>(GetParam()),
                     .l2 = std::get<2>(GetParam()),
                     .block_size = 3},
                    kExamples};
};

TEST_P(MlpDerivatives, LossIsTheSumOverExamples) {
  const Eigen::MatrixXd z = p.Outputs(p.theta);
  double loss = kExamples * p.l2 / 2 * p.theta.squaredNorm();
  for (int64_t i = 0; i < kExamples; ++i) loss += ExampleLoss(p.loss, z.col(i), p.targets.col(i), p.labels[i]);

  const LossSum sum = p.Loss(p.theta, p.all);

  EXPECT_NEAR(sum.loss, loss, 1e-12 * loss);
  EXPECT_EQ(sum.weight, kExamples);
}

TEST_P(MlpDerivatives, GradientIsThatOfTheLoss) {
  client::Vector<double> gradient(p.mlp->num_parameters());
  const auto sum = p.mlp->Gradient(p.theta, p.all, gradient);

  ASSERT_THAT(sum, IsOk());
  EXPECT_EQ(sum->loss, p.Loss(p.theta, p.all).loss);
  EXPECT_EQ(sum->metrics, p.Loss(p.theta, p.all).metrics);
  for (int64_t i = 0; i < p.theta.size(); ++i) {
    client::Vector<double> up = p.theta, down = p.theta;
    up(i) += kStep;
    down(i) -= kStep;
    EXPECT_NEAR(gradient(i), (p.Loss(up, p.all).loss - p.Loss(down, p.all).loss) / (2 * kStep), kTolerance) << i;
  }
}

TEST_P(MlpDerivatives, ProductIsThatOfTheDenseMatrix) {
  const int64_t n = p.theta.size(), outputs = p.layers.back();
  Eigen::MatrixXd jacobian(outputs * kExamples, n);
  for (int64_t i = 0; i < n; ++i) {
    client::Vector<double> up = p.theta, down = p.theta;
    up(i) += kStep;
    down(i) -= kStep;
    jacobian.col(i) = (p.Outputs(up) - p.Outputs(down)).reshaped() / (2 * kStep);
  }
  const Eigen::MatrixXd z = p.Outputs(p.theta);
  Eigen::MatrixXd G = kExamples * p.l2 * Eigen::MatrixXd::Identity(n, n);
  for (int64_t j = 0; j < kExamples; ++j) {
    const Eigen::MatrixXd J = jacobian.middleRows(j * outputs, outputs);
    G += J.transpose() * LossHessian(p.loss, z.col(j)) * J;
  }

  const auto linearization = *p.mlp->Linearize(p.theta, p.all);

  EXPECT_EQ(linearization->weight(), kExamples);
  client::Vector<double> product(p.mlp->num_parameters());
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_THAT(linearization->GaussNewtonProduct(client::Vector<double>::Unit(n, i), product), IsOk());
    EXPECT_LT((product - G.col(i)).cwiseAbs().maxCoeff(), kTolerance) << i;
  }
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, product), IsOk());
  EXPECT_LT((product - G * p.v).cwiseAbs().maxCoeff(), 10 * kTolerance);
}

TEST_P(MlpDerivatives, SecondMomentIsTheSumOfSquaredGradients) {
  client::Vector<double> sum = client::Vector<double>::Zero(p.theta.size());
  for (int64_t i = 0; i < kExamples; ++i) sum += p.Gradient(p.theta, p.all.Part(i, i + 1)).cwiseAbs2();

  EXPECT_LT((p.SecondMoment(p.theta, p.all) - sum).cwiseAbs().maxCoeff(), 1e-13 * sum.maxCoeff());
}

TEST_P(MlpDerivatives, AreSumsOfTheirParts) {
  const Examples window{DataSet::kHeldOut, {{5, 7}, {0, 4}}};
  for (int64_t cut = 0; cut <= window.size(); ++cut) {
    const Examples a = window.Part(0, cut), b = window.Part(cut, window.size());
    const LossSum whole = p.Loss(p.theta, window), first = p.Loss(p.theta, a), second = p.Loss(p.theta, b);
    EXPECT_NEAR(whole.loss, first.loss + second.loss, 1e-12 * whole.loss);
    EXPECT_EQ(whole.weight, first.weight + second.weight);
    for (const auto& [name, value] : whole.metrics) {
      EXPECT_NEAR(value, (cut > 0 ? first.metrics.at(name) : 0) + (cut < 6 ? second.metrics.at(name) : 0),
                  1e-12 * value);
    }
    const double tolerance = 1e-12 * window.size();
    EXPECT_LT((p.Gradient(p.theta, window) - p.Gradient(p.theta, a) - p.Gradient(p.theta, b)).norm(), tolerance);
    EXPECT_LT((p.Product(p.theta, p.v, window) - p.Product(p.theta, p.v, a) - p.Product(p.theta, p.v, b)).norm(),
              10 * tolerance);
    EXPECT_LT((p.SecondMoment(p.theta, window) - p.SecondMoment(p.theta, a) - p.SecondMoment(p.theta, b)).norm(),
              10 * tolerance);
  }
}

std::string ProblemName(const testing::TestParamInfo<MlpDerivatives::ParamType>& info) {
  const std::map<MlpLoss, std::string> losses = {{MlpLoss::kSoftmaxCrossEntropy, "softmax"},
                                                 {MlpLoss::kBernoulliCrossEntropy, "bernoulli"},
                                                 {MlpLoss::kSquaredError, "squared"}};
  const auto& [loss, activation, l2] = info.param;
  return losses.at(loss) + "_" + std::string(Name(activation)) + (l2 > 0 ? "_l2" : "");
}

INSTANTIATE_TEST_SUITE_P(All, MlpDerivatives,
                         testing::Combine(testing::Values(MlpLoss::kSoftmaxCrossEntropy,
                                                          MlpLoss::kBernoulliCrossEntropy, MlpLoss::kSquaredError),
                                          testing::Values(Activation::kSigmoid, Activation::kTanh, Activation::kRelu,
                                                          Activation::kLinear),
                                          testing::Values(0, 0.3)),
                         ProblemName);

// An auto-encoder with a linear code layer, more examples than a block.
MlpOptions Autoencoder() {
  return {.layers = {20, 17, 3, 17, 20},
          .activations = {Activation::kSigmoid, Activation::kLinear, Activation::kSigmoid},
          .loss = MlpLoss::kBernoulliCrossEntropy,
          .l2 = 0.01,
          .block_size = 16};
}

TEST(Mlp, BlockSizeChangesRoundingOnly) {
  MlpOptions options = Autoencoder();
  Problem<double> reference(options, 50);
  for (const int64_t block_size : {1, 7, 50, 512}) {
    options.block_size = block_size;
    Problem<double> p(options, 50);
    EXPECT_NEAR(p.Loss(p.theta, p.all).loss, reference.Loss(p.theta, p.all).loss, 1e-10);
    EXPECT_LT((p.Gradient(p.theta, p.all) - reference.Gradient(p.theta, p.all)).norm(), 1e-10);
    EXPECT_LT((p.Product(p.theta, p.v, p.all) - reference.Product(p.theta, p.v, p.all)).norm(), 1e-10);
  }
}

TEST(Mlp, FloatAgreesWithDouble) {
  for (const MlpLoss loss : {MlpLoss::kSoftmaxCrossEntropy, MlpLoss::kBernoulliCrossEntropy, MlpLoss::kSquaredError}) {
    const MlpOptions options{.layers = {40, 33, 33, 20},
                             .activations = {Activation::kTanh, Activation::kSigmoid},
                             .loss = loss,
                             .l2 = 1e-3,
                             .block_size = 64};
    Problem<float> single(options, 200, 1, 0.3);
    Problem<double> exact(options, 200, 1, 0.3);
    const auto relative = [](const client::Vector<float>& a, const client::Vector<double>& b) {
      return (a.cast<double>() - b).norm() / b.norm();
    };
    EXPECT_NEAR(single.Loss(single.theta, single.all).loss / exact.Loss(exact.theta, exact.all).loss, 1, 1e-6);
    EXPECT_LT(relative(single.Gradient(single.theta, single.all), exact.Gradient(exact.theta, exact.all)), 1e-5);
    EXPECT_LT(
        relative(single.Product(single.theta, single.v, single.all), exact.Product(exact.theta, exact.v, exact.all)),
        1e-5);
    EXPECT_LT(relative(single.SecondMoment(single.theta, single.all), exact.SecondMoment(exact.theta, exact.all)),
              1e-5);
  }
}

TEST(Mlp, AnswersArePureFunctionsInAnyOrder) {
  Problem<float> p(Autoencoder(), 50);
  const client::Vector<float> other = 0.5f * p.theta;
  const client::Vector<float> gradient = p.Gradient(p.theta, p.all), product = p.Product(p.theta, p.v, p.all);
  const double loss = p.Loss(p.theta, p.all).loss;

  const auto linearization = *p.mlp->Linearize(p.theta, p.all);
  p.Gradient(other, p.all.Part(0, 20));  // leaves its numbers in the buffers that all calls share
  const auto other_linearization = *p.mlp->Linearize(other, p.all.Part(10, 40));

  client::Vector<float> again(p.mlp->num_parameters());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);
  EXPECT_EQ(p.Gradient(p.theta, p.all), gradient);
  EXPECT_EQ(p.Loss(p.theta, p.all).loss, loss);
  ASSERT_THAT(other_linearization->GaussNewtonProduct(p.v, again), IsOk());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);
}

TEST(Mlp, LinearizationKeepsItsPointAndExamples) {
  Problem<double> p(Autoencoder(), 50);
  const client::Vector<double> product = p.Product(p.theta, p.v, p.all);
  client::Vector<double> theta = p.theta;
  Examples examples = p.all;
  const auto linearization = *p.mlp->Linearize(theta, examples);

  theta.setZero();
  examples.ranges.clear();

  client::Vector<double> again(p.mlp->num_parameters());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);
}

TEST(Mlp, ActivationsThatAreNotKeptAreComputedAnew) {
  MlpOptions options = Autoencoder();
  Problem<float> all_kept(options, 50);
  const client::Vector<float> product = all_kept.Product(all_kept.theta, all_kept.v, all_kept.all);
  const int64_t example_bytes = (17 + 3 + 17 + 20) * 4;
  for (const int64_t kept : {0, 1, 20, 49}) {
    options.max_kept_bytes = kept * example_bytes;
    Problem<float> p(options, 50);
    EXPECT_EQ(p.Product(p.theta, p.v, p.all), product) << kept;
  }
}

TEST(Mlp, NonFiniteParametersMakeTheLossNonFinite) {
  for (const Activation activation :
       {Activation::kSigmoid, Activation::kTanh, Activation::kRelu, Activation::kLinear}) {
    for (const MlpLoss loss :
         {MlpLoss::kSoftmaxCrossEntropy, MlpLoss::kBernoulliCrossEntropy, MlpLoss::kSquaredError}) {
      // 19 units: vector instructions and the remainder.
      Problem<float> p({.layers = {3, 19, 19}, .activations = {activation}, .loss = loss}, 2);
      for (int64_t i = 0; i < p.theta.size(); i += 5) {
        client::Vector<float> theta = p.theta;
        theta(i) = std::numeric_limits<float>::quiet_NaN();
        EXPECT_FALSE(std::isfinite(p.Loss(theta, p.all).loss)) << Name(activation) << " " << i;
      }
    }
  }
}

TEST(Mlp, LossOfLargeOutputsIsExact) {
  for (const MlpLoss loss : {MlpLoss::kSoftmaxCrossEntropy, MlpLoss::kBernoulliCrossEntropy}) {
    Problem<float> p({.layers = {1, 2}, .activations = {}, .loss = loss}, 1);
    p.theta << 0, 0, 1000, -1000;  // z
    const double t0 = static_cast<float>(p.targets(0)), t1 = static_cast<float>(p.targets(1));
    const double expected =
        loss == MlpLoss::kSoftmaxCrossEntropy ? (p.labels[0] == 0 ? 0 : 2000) : 1000 * (1 - t0 + t1);
    EXPECT_NEAR(p.Loss(p.theta, p.all).loss, expected, 1e-3);
    EXPECT_TRUE(p.Gradient(p.theta, p.all).allFinite());
    EXPECT_TRUE(p.Product(p.theta, p.v, p.all).allFinite());
  }
}

TEST(Mlp, ErrorsAreExamplesWhoseLabelIsNotTheOnlyLargestOutput) {
  Problem<double> p({.layers = {4, 5}, .activations = {}}, 40);
  const Eigen::MatrixXd z = p.Outputs(p.theta);
  double errors = 0;
  for (int64_t i = 0; i < 40; ++i) {
    Eigen::Index largest = 0;
    z.col(i).maxCoeff(&largest);
    if (largest != p.labels[i]) ++errors;
  }

  EXPECT_EQ(p.Loss(p.theta, p.all).metrics.at("errors"), errors);
  EXPECT_EQ(p.Loss(0 * p.theta, p.all).metrics.at("errors"), 40);  // all outputs are equal
}

TEST(Mlp, SquaredErrorIsThatOfThePredictions) {
  for (const MlpLoss loss : {MlpLoss::kBernoulliCrossEntropy, MlpLoss::kSquaredError}) {
    Problem<double> p({.layers = {4, 5}, .activations = {}, .loss = loss}, 40);
    Eigen::ArrayXXd predictions = p.Outputs(p.theta);
    if (loss == MlpLoss::kBernoulliCrossEntropy) predictions = 1 / (1 + (-predictions).exp());

    EXPECT_NEAR(p.Loss(p.theta, p.all).metrics.at("squared_error"), (predictions - p.targets.array()).square().sum(),
                1e-12);
  }
}

TEST(Mlp, NoExamplesAreZeroSums) {
  Problem<double> p(Autoencoder(), 5);
  const Examples none{DataSet::kTraining, {}};

  EXPECT_EQ(p.Loss(p.theta, none).loss, 0);
  EXPECT_EQ(p.Loss(p.theta, none).weight, 0);
  EXPECT_EQ(p.Gradient(p.theta, none), 0 * p.theta);
  EXPECT_EQ(p.Product(p.theta, p.v, none), 0 * p.theta);
}

TEST(Mlp, InitialParametersAreAPureFunctionOfTheSeed) {
  for (const Initialization initialization : {Initialization::kSparse, Initialization::kGlorot}) {
    const MlpOptions options{
        .layers = {40, 30, 20}, .activations = {Activation::kTanh}, .initialization = initialization};
    Problem<double> a(options, 1), b(options, 2);
    Problem<float> single(options, 1);

    EXPECT_EQ(*a.mlp->InitialParameters(5), *b.mlp->InitialParameters(5));
    EXPECT_NE(*a.mlp->InitialParameters(5), *a.mlp->InitialParameters(6));
    EXPECT_EQ(a.mlp->InitialParameters(5)->cast<float>(), *single.mlp->InitialParameters(5));
  }
}

TEST(Mlp, SparseTanhUnitsAreScaled) {
  Problem<double> p(
      {.layers = {40, 30, 20}, .activations = {Activation::kTanh}, .initialization = Initialization::kSparse}, 1);
  const client::Vector<double> theta = *p.mlp->InitialParameters(5);

  EXPECT_EQ((theta.head(40 * 30).array() != 0).count(), 15 * 30);
  EXPECT_NEAR(theta.head(40 * 30).squaredNorm() / (15 * 30), 0.25 * 0.25, 0.25 * 0.25 * 0.35);
  EXPECT_EQ((theta.segment(40 * 30, 30).array() == 0.5).count(), 30);
  EXPECT_EQ((theta.segment(41 * 30, 30 * 20).array() != 0).count(), 15 * 20);
  EXPECT_NEAR(theta.segment(41 * 30, 30 * 20).squaredNorm() / (15 * 20), 1, 0.4);
  EXPECT_EQ((theta.tail(20).array() == 0).count(), 20);
}

TEST(Mlp, SignatureTellsWhatItIs) {
  EXPECT_EQ(Problem<float>(Autoencoder(), 1).mlp->signature(),
            "mlp 20-17-3-17-20 sigmoid,linear,sigmoid, Bernoulli cross-entropy, l2 0.01, dense");
}

TEST(Mlp, RefusesWhatDoesNotFit) {
  Problem<double> p({.layers = {4, 5, 3}, .activations = {Activation::kTanh}}, 10);
  const client::Vector<double> short_theta = p.theta.head(7);
  client::Vector<double> out(p.mlp->num_parameters());
  const auto wrong_size =
      IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("theta has 7 elements"), HasSubstr("43 parameters")));
  EXPECT_THAT(p.mlp->Loss(short_theta, p.all), wrong_size);
  EXPECT_THAT(p.mlp->Gradient(short_theta, p.all, out), wrong_size);
  EXPECT_THAT(p.mlp->SecondMoment(short_theta, p.all, out), wrong_size);
  EXPECT_THAT(p.mlp->Linearize(short_theta, p.all), wrong_size);
  const auto linearization = *p.mlp->Linearize(p.theta, p.all);
  EXPECT_THAT(linearization->GaussNewtonProduct(short_theta, out),
              IsError(StatusCode::kInvalidArgument, HasSubstr("direction has 7 elements")));

  for (const client::IndexRange range : {client::IndexRange{5, 11}, {-1, 3}, {6, 5}}) {
    EXPECT_THAT(p.mlp->Loss(p.theta, {DataSet::kHeldOut, {range}}),
                IsError(StatusCode::kOutOfRange, HasSubstr("the held-out data have 10")));
  }
}

TEST(Mlp, RefusesBadOptions) {
  const auto error = [](const MlpOptions& options, const std::string& what) {
    const auto source = std::make_shared<DenseSource<double>>(Eigen::MatrixXd::Zero(4, 1), Eigen::MatrixXd::Zero(2, 1),
                                                              std::vector<int32_t>{0}, 3);
    EXPECT_THAT(Mlp<double>::Create(options, source), IsError(StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  error({.layers = {4}}, "layers has 1 widths");
  error({.layers = {4, 0, 3}, .activations = {Activation::kTanh}}, "the width 0 in 4-0-3");
  error({.layers = {4, 5, 3}}, "activations has 0 entries for 1 hidden layers");
  error({.layers = {4, 3}, .l2 = -1}, "l2 is -1");
  error({.layers = {4, 3}, .l2 = std::numeric_limits<double>::quiet_NaN()}, "l2 is nan");
  error({.layers = {4, 3}, .block_size = 0}, "block_size is 0");
  error({.layers = {5, 3}}, "have 4 inputs and 3 classes; give 4-...-3");
  error({.layers = {4, 3}, .loss = MlpLoss::kSquaredError}, "have 4 inputs and 2 target values");
}

}  // namespace
}  // namespace hfopt::models
