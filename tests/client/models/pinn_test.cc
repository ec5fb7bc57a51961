// Derivatives with respect to theta are compared in double with central differences of step h = 1e-5, whose error is of
// the order h^2 = 1e-10 of the derivative's size; derivatives with respect to coordinates with differences of fourth
// order.

#include "client/models/pinn.h"

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "client/cpp/shuffle.h"
#include "client/models/initialization.h"
#include "client/models/layers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using client::Examples;
using client::LossSum;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Layers = std::vector<int64_t>;

constexpr double kPi = 3.14159265358979323846;
constexpr double kStep = 1e-5;
constexpr double kTolerance = 1e-7;  // of the largest number

// A network at a random point with biases, and a direction: functions of the seed.
template <typename Scalar>
struct Problem {
  explicit Problem(PinnOptions options, uint64_t seed = 1) : problem(options.problem) {
    pinn = *Pinn<Scalar>::Create(options);
    client::SplitMix64 generator(seed);
    theta.resize(pinn->num_parameters());
    v.resize(theta.size());
    for (Scalar& x : theta) x = static_cast<Scalar>(0.5 * Normal(generator));
    for (Scalar& x : v) x = static_cast<Scalar>(Normal(generator));
    all = {DataSet::kTraining, {{0, pinn->num_examples(DataSet::kTraining)}}};
  }

  LossSum Loss(const client::Vector<Scalar>& at, const Examples& examples) { return *pinn->Loss(at, examples); }
  client::Vector<Scalar> Gradient(const client::Vector<Scalar>& at, const Examples& examples) {
    client::Vector<Scalar> gradient(pinn->num_parameters());
    EXPECT_THAT(pinn->Gradient(at, examples, gradient), IsOk());
    return gradient;
  }
  client::Vector<Scalar> Product(const client::Vector<Scalar>& at, const client::Vector<Scalar>& direction,
                                 const Examples& examples) {
    client::Vector<Scalar> product(pinn->num_parameters());
    EXPECT_THAT((*pinn->Linearize(at, examples))->GaussNewtonProduct(direction, product), IsOk());
    return product;
  }
  client::Vector<Scalar> Residuals(const client::Vector<Scalar>& at, const Examples& examples) {
    client::Vector<Scalar> residuals;
    EXPECT_THAT(pinn->Residuals(at, examples, residuals), IsOk());
    return residuals;
  }
  double Value(double x, double y) {
    Matrix<Scalar> point(2, 1);
    point << static_cast<Scalar>(x), static_cast<Scalar>(y);
    client::Vector<Scalar> value;
    EXPECT_THAT(pinn->Values(theta, point, value), IsOk());
    return value(0);
  }

  PinnProblem problem;
  std::unique_ptr<Pinn<Scalar>> pinn;
  client::Vector<Scalar> theta, v;
  Examples all;
};

constexpr PinnProblem kProblems[] = {PinnProblem::kPoisson, PinnProblem::kConvection};

class PinnDerivatives : public testing::TestWithParam<std::tuple<PinnProblem, Layers>> {
 protected:
  Problem<double> p{{.problem = std::get<0>(GetParam()), .layers = std::get<1>(GetParam()), .block_size = 37}};
  // Two ranges, all kinds of examples, no multiple of the block size.
  const Examples window{DataSet::kHeldOut, {{1000, 1050}, {0, 100}}};
};

// f' and f'' at 0; the error is of the order h^4.
double First(const std::function<double(double)>& f, double h) {
  return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h);
}
double Second(const std::function<double(double)>& f, double h) {
  return (-f(-2 * h) + 16 * f(-h) - 30 * f(0) + 16 * f(h) - f(2 * h)) / (12 * h * h);
}

TEST_P(PinnDerivatives, ResidualsAreOfTheNetworkLessTheExactSolution) {
  const client::Vector<double> residuals = p.Residuals(p.theta, window);

  const double h = 3e-4;
  for (int64_t i = 0; i < window.size(); ++i) {
    const PinnExample& e = p.pinn->examples()[i < 50 ? 1000 + i : i - 50];
    const auto along = [&](double dx, double dy) {
      return [&, dx, dy](double s) {
        const double x = e.x + s * dx, y = e.y + s * dy;
        return p.Value(x, y) - p.pinn->ExactSolution(x, y);
      };
    };
    double expected = 0;
    switch (e.residual) {
      case PinnResidual::kInterior:
        // Both equations are linear, so that the right side is the operator's value at the exact solution.
        expected = p.problem == PinnProblem::kPoisson ? Second(along(1, 0), h) + Second(along(0, 1), h)
                                                      : First(along(0, 1), h) + 30 * First(along(1, 0), h);
        break;
      case PinnResidual::kValue:
        expected = along(0, 0)(0);
        break;
      case PinnResidual::kPeriodic:
        expected = p.Value(0, e.y) - p.Value(2 * kPi, e.y);
        break;
    }
    // Rounding errors of second differences are of the order 1e-16 / h^2.
    EXPECT_NEAR(residuals(i), expected, 1e-6) << i;
  }
}

TEST_P(PinnDerivatives, LossIsTheSumOfMeanSquares) {
  const client::Vector<double> r = p.Residuals(p.theta, p.all);
  double sums[3] = {}, sizes[3] = {};
  for (int64_t i = 0; i < r.size(); ++i) {
    const int kind = static_cast<int>(p.pinn->examples()[i].residual);
    sums[kind] += r(i) * r(i);
    ++sizes[kind];
  }
  const bool poisson = p.problem == PinnProblem::kPoisson;
  const double loss = poisson ? sums[0] / 900 + 100 * sums[1] / 160 : sums[0] / 900 + sums[1] / 128 + sums[2] / 64;

  const LossSum sum = p.Loss(p.theta, p.all);

  EXPECT_EQ(sizes[0], 900);
  EXPECT_EQ(sizes[1], poisson ? 160 : 128);
  EXPECT_EQ(sizes[2], poisson ? 0 : 64);
  EXPECT_EQ(sum.weight, r.size());
  EXPECT_NEAR(sum.loss / sum.weight, loss, 1e-12 * loss);
  double parts = 0;
  for (const auto& [name, value] : sum.metrics) parts += value;
  EXPECT_EQ(sum.metrics.size(), poisson ? 2 : 3);
  EXPECT_NEAR(parts, sum.loss, 1e-12 * sum.loss);
  EXPECT_NEAR(sum.metrics.at("interior_loss") / sum.weight, sums[0] / 900, 1e-12 * loss);
}

TEST_P(PinnDerivatives, GradientIsThatOfTheLoss) {
  client::Vector<double> gradient(p.pinn->num_parameters());
  const auto sum = p.pinn->Gradient(p.theta, window, gradient);

  ASSERT_THAT(sum, IsOk());
  EXPECT_EQ(sum->loss, p.Loss(p.theta, window).loss);
  EXPECT_EQ(sum->metrics, p.Loss(p.theta, window).metrics);
  const double tolerance = kTolerance * gradient.cwiseAbs().maxCoeff();
  for (int64_t i = 0; i < p.theta.size(); ++i) {
    client::Vector<double> up = p.theta, down = p.theta;
    up(i) += kStep;
    down(i) -= kStep;
    EXPECT_NEAR(gradient(i), (p.Loss(up, window).loss - p.Loss(down, window).loss) / (2 * kStep), tolerance) << i;
  }
}

TEST_P(PinnDerivatives, ProductIsThatOfTheDenseMatrix) {
  const int64_t n = p.theta.size();
  Eigen::MatrixXd J(window.size(), n);
  for (int64_t i = 0; i < n; ++i) {
    client::Vector<double> up = p.theta, down = p.theta;
    up(i) += kStep;
    down(i) -= kStep;
    J.col(i) = (p.Residuals(up, window) - p.Residuals(down, window)) / (2 * kStep);
  }
  Eigen::VectorXd H(window.size());
  for (int64_t i = 0; i < window.size(); ++i) {
    H(i) = 2 * p.pinn->loss_weight(p.pinn->examples()[i < 50 ? 1000 + i : i - 50].residual);
  }
  const Eigen::MatrixXd G = J.transpose() * H.asDiagonal() * J;
  const double tolerance = kTolerance * G.cwiseAbs().maxCoeff();

  const auto linearization = *p.pinn->Linearize(p.theta, window);

  EXPECT_EQ(linearization->weight(), window.size());
  client::Vector<double> product(p.pinn->num_parameters());
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_THAT(linearization->GaussNewtonProduct(client::Vector<double>::Unit(n, i), product), IsOk());
    EXPECT_LT((product - G.col(i)).cwiseAbs().maxCoeff(), tolerance) << i;
  }
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, product), IsOk());
  EXPECT_LT((product - G * p.v).cwiseAbs().maxCoeff(), 10 * tolerance);
}

TEST_P(PinnDerivatives, AreSumsOfTheirParts) {
  const client::Vector<double> gradient = p.Gradient(p.theta, window), product = p.Product(p.theta, p.v, window);
  const LossSum whole = p.Loss(p.theta, window);
  for (const int64_t cut : {0, 1, 49, 50, 100, 149, 150}) {
    const Examples a = window.Part(0, cut), b = window.Part(cut, window.size());
    const LossSum first = p.Loss(p.theta, a), second = p.Loss(p.theta, b);
    EXPECT_NEAR(whole.loss, first.loss + second.loss, 1e-12 * whole.loss);
    EXPECT_EQ(whole.weight, first.weight + second.weight);
    EXPECT_LT((gradient - p.Gradient(p.theta, a) - p.Gradient(p.theta, b)).norm(), 1e-12 * gradient.norm());
    EXPECT_LT((product - p.Product(p.theta, p.v, a) - p.Product(p.theta, p.v, b)).norm(), 1e-12 * product.norm());
  }
}

std::string ProblemName(const testing::TestParamInfo<PinnDerivatives::ParamType>& info) {
  return std::string(Name(std::get<0>(info.param))) + "_" + std::to_string(std::get<1>(info.param).size() - 2) +
         "_hidden";
}

INSTANTIATE_TEST_SUITE_P(All, PinnDerivatives,
                         testing::Combine(testing::ValuesIn(kProblems),
                                          testing::Values(Layers{2, 5, 1}, Layers{2, 9, 4, 1}, Layers{2, 5, 3, 6, 1})),
                         ProblemName);

TEST(Pinn, HasTheProblemsDefaults) {
  const auto poisson = *Pinn<double>::Create({.problem = PinnProblem::kPoisson});
  EXPECT_EQ(poisson->num_parameters(), 1185);
  EXPECT_EQ(poisson->num_examples(DataSet::kTraining), 900 + 160);
  EXPECT_EQ(poisson->num_examples(DataSet::kHeldOut), 900 + 160);
  EXPECT_EQ(poisson->signature(), "pinn poisson 2-32-32-1 tanh, points of seed 1");

  const auto convection = *Pinn<float>::Create({.problem = PinnProblem::kConvection, .data_seed = 7});
  EXPECT_EQ(convection->num_parameters(), 5301);
  EXPECT_EQ(convection->num_examples(DataSet::kTraining), 900 + 128 + 64);
  EXPECT_EQ(convection->num_examples(DataSet::kHeldOut), 900 + 128 + 64);
  EXPECT_EQ(convection->signature(), "pinn convection 2-50-50-50-1 tanh, points of seed 7");
}

TEST(Pinn, EachCellOfTheGridHasAPoint) {
  for (const PinnProblem problem : kProblems) {
    const auto pinn = *Pinn<double>::Create({.problem = problem});
    const double end_x = problem == PinnProblem::kPoisson ? 1 : 2 * kPi;
    std::vector<int> counts(900);
    for (const PinnExample& e : pinn->examples()) {
      if (e.residual != PinnResidual::kInterior) continue;
      ++counts.at(static_cast<int>(30 * e.x / end_x) * 30 + static_cast<int>(30 * e.y));
    }
    EXPECT_EQ(counts, std::vector<int>(900, 1));
  }
}

TEST(Pinn, ValuesAreGivenOnTheBoundary) {
  const auto poisson = Pinn<double>::Create({.problem = PinnProblem::kPoisson});
  for (const PinnExample& e : (*poisson)->examples()) {
    if (e.residual != PinnResidual::kValue) continue;
    EXPECT_EQ((e.x == 0) + (e.x == 1) + (e.y == 0) + (e.y == 1), 1);
    EXPECT_NEAR(e.right_side, 0, 1e-15);
  }
  const auto convection = Pinn<double>::Create({.problem = PinnProblem::kConvection});
  for (const PinnExample& e : (*convection)->examples()) {
    if (e.residual != PinnResidual::kValue) continue;
    EXPECT_EQ(e.y, 0);
    EXPECT_NEAR(e.right_side, std::sin(e.x), 1e-15);
  }
}

TEST(Pinn, ExamplesAreAPureFunctionOfTheSeed) {
  const auto coordinates = [](uint64_t seed) {
    std::vector<double> x;
    const auto model = Pinn<double>::Create({.data_seed = seed});
    for (const PinnExample& e : (*model)->examples()) x.push_back(e.x);
    return x;
  };
  EXPECT_EQ(coordinates(3), coordinates(3));
  EXPECT_NE(coordinates(3), coordinates(4));
}

TEST(Pinn, HalvesOfTheExamplesAreAlike) {
  for (const PinnProblem problem : kProblems) {
    const auto pinn = *Pinn<double>::Create({.problem = problem});
    const int64_t half = pinn->num_examples(DataSet::kTraining) / 2;
    int64_t interior = 0;
    for (int64_t i = 0; i < half; ++i) interior += pinn->examples()[i].residual == PinnResidual::kInterior;
    EXPECT_NEAR(interior, 450, 30);  // a standard deviation is below 6
  }
}

TEST(Pinn, ValuesAreThoseOfTheNetwork) {
  Problem<double> p({.layers = {2, 3, 2, 1}});
  Matrix<double> points(2, 300);
  for (int64_t j = 0; j < 300; ++j) points.col(j) << std::sin(1.0 * j), 0.02 * j - 3;
  client::Vector<double> values;
  ASSERT_THAT(p.pinn->Values(p.theta, points, values), IsOk());

  for (int64_t j = 0; j < 300; ++j) {
    Eigen::VectorXd a = points.col(j);
    for (int l = 1; l <= 3; ++l) {
      const auto layer = LayerOf(std::as_const(p.theta).data(), {2, 3, 2, 1}, l);
      const Eigen::VectorXd z = layer.weights * a + layer.biases;
      a = l < 3 ? Eigen::VectorXd(z.unaryExpr([](double x) { return std::tanh(x); })) : z;
    }
    EXPECT_NEAR(values(j), a(0), 1e-15);
  }
}

TEST(Pinn, LargeActivationsAreOne) {
  Problem<double> p({.layers = {2, 1, 1}});
  for (const double z : {-1e300, -1000.0, 1000.0, 1e300}) {
    p.theta << 0, 0, z, 1, 0;
    EXPECT_EQ(p.Value(0.5, 0.5), z < 0 ? -1 : 1);
    EXPECT_TRUE(std::isfinite(p.Loss(p.theta, p.all).loss));
  }
}

TEST(Pinn, ProductIsSymmetricAndPositive) {
  for (const PinnProblem problem : kProblems) {
    Problem<double> p({.problem = problem});
    const client::Vector<double> Gv = p.Product(p.theta, p.v, p.all), Gt = p.Product(p.theta, p.theta, p.all);
    EXPECT_NEAR(p.theta.dot(Gv), p.v.dot(Gt), 1e-12 * p.theta.norm() * Gv.norm());
    EXPECT_GT(p.v.dot(Gv), 0);
  }
}

TEST(Pinn, BlockSizeChangesRoundingOnly) {
  for (const PinnProblem problem : kProblems) {
    Problem<double> reference({.problem = problem});
    const client::Vector<double> gradient = reference.Gradient(reference.theta, reference.all);
    const client::Vector<double> product = reference.Product(reference.theta, reference.v, reference.all);
    const double loss = reference.Loss(reference.theta, reference.all).loss;
    for (const int64_t block_size : {1, 7, 4096}) {
      Problem<double> p({.problem = problem, .block_size = block_size});
      EXPECT_NEAR(p.Loss(p.theta, p.all).loss, loss, 1e-12 * loss);
      EXPECT_LT((p.Gradient(p.theta, p.all) - gradient).norm(), 1e-12 * gradient.norm());
      EXPECT_LT((p.Product(p.theta, p.v, p.all) - product).norm(), 1e-12 * product.norm());
    }
  }
}

TEST(Pinn, FloatAgreesWithDouble) {
  for (const PinnProblem problem : kProblems) {
    Problem<float> single({.problem = problem});
    Problem<double> exact({.problem = problem});
    const auto relative = [](const client::Vector<float>& a, const client::Vector<double>& b) {
      return (a.cast<double>() - b).norm() / b.norm();
    };
    // theta and the points are rounded to 6e-8, and the equation differentiates.
    EXPECT_NEAR(single.Loss(single.theta, single.all).loss / exact.Loss(exact.theta, exact.all).loss, 1, 1e-5);
    EXPECT_LT(relative(single.Gradient(single.theta, single.all), exact.Gradient(exact.theta, exact.all)), 1e-5);
    EXPECT_LT(
        relative(single.Product(single.theta, single.v, single.all), exact.Product(exact.theta, exact.v, exact.all)),
        1e-5);
    EXPECT_NEAR(*single.pinn->RelativeError(single.theta), *exact.pinn->RelativeError(exact.theta), 1e-4);
  }
}

TEST(Pinn, AnswersArePureFunctionsInAnyOrder) {
  for (const PinnProblem problem : kProblems) {
    Problem<double> p({.problem = problem});
    const client::Vector<double> other = 0.5 * p.theta;
    const client::Vector<double> gradient = p.Gradient(p.theta, p.all), product = p.Product(p.theta, p.v, p.all);
    const double loss = p.Loss(p.theta, p.all).loss;

    const auto linearization = *p.pinn->Linearize(p.theta, p.all);
    p.Gradient(other, p.all.Part(0, 20));  // leaves its numbers in the buffers that all calls share
    const auto other_linearization = *p.pinn->Linearize(other, p.all.Part(10, 400));

    client::Vector<double> again(p.pinn->num_parameters());
    ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
    EXPECT_EQ(again, product);
    EXPECT_EQ(p.Gradient(p.theta, p.all), gradient);
    EXPECT_EQ(p.Loss(p.theta, p.all).loss, loss);
    ASSERT_THAT(other_linearization->GaussNewtonProduct(p.v, again), IsOk());
    ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
    EXPECT_EQ(again, product);
  }
}

TEST(Pinn, LinearizationKeepsItsPointAndExamples) {
  Problem<double> p({.layers = {2, 7, 5, 1}});
  const client::Vector<double> product = p.Product(p.theta, p.v, p.all);
  client::Vector<double> theta = p.theta;
  Examples examples = p.all;
  const auto linearization = *p.pinn->Linearize(theta, examples);

  theta.setZero();
  examples.ranges.clear();

  client::Vector<double> again(p.pinn->num_parameters());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);
}

TEST(Pinn, NonFiniteParametersMakeTheLossNonFinite) {
  // 19 units: vector instructions and the remainder.
  Problem<double> p({.layers = {2, 19, 19, 1}});
  Problem<float> single({.layers = {2, 19, 19, 1}});
  for (int64_t i = 0; i < p.theta.size(); i += 5) {
    client::Vector<double> theta = p.theta;
    theta(i) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_FALSE(std::isfinite(p.Loss(theta, p.all).loss)) << i;
    EXPECT_FALSE(std::isfinite(single.Loss(theta.cast<float>(), p.all).loss)) << i;
  }
}

TEST(Pinn, NoExamplesAreZeroSums) {
  Problem<double> p({.layers = {2, 4, 1}});
  const Examples none{DataSet::kTraining, {}};

  EXPECT_EQ(p.Loss(p.theta, none).loss, 0);
  EXPECT_EQ(p.Loss(p.theta, none).weight, 0);
  EXPECT_EQ(p.Gradient(p.theta, none), 0 * p.theta);
  EXPECT_EQ(p.Product(p.theta, p.v, none), 0 * p.theta);
}

TEST(Pinn, InitialParametersAreAPureFunctionOfTheSeed) {
  const auto a = *Pinn<double>::Create({.data_seed = 1}), b = *Pinn<double>::Create({.data_seed = 2});
  const auto single = *Pinn<float>::Create({});

  EXPECT_EQ(*a->InitialParameters(5), *b->InitialParameters(5));
  EXPECT_NE(*a->InitialParameters(5), *a->InitialParameters(6));
  EXPECT_EQ(a->InitialParameters(5)->cast<float>(), *single->InitialParameters(5));
  EXPECT_EQ(a->InitialParameters(5)->segment(64, 32), client::Vector<double>::Zero(32));               // biases
  EXPECT_LE(a->InitialParameters(5)->segment(96, 1024).cwiseAbs().maxCoeff(), std::sqrt(6.0 / 64.0));  // weights
}

TEST(Pinn, RelativeErrorIsThatOfTheGrid) {
  for (const PinnProblem problem : kProblems) {
    Problem<double> p({.problem = problem, .layers = {2, 4, 1}});
    const double end_x = problem == PinnProblem::kPoisson ? 1 : 2 * kPi;
    double error = 0, exact = 0;
    for (int i = 0; i <= 100; ++i) {
      for (int j = 0; j <= 100; ++j) {
        const double u = p.pinn->ExactSolution(end_x * i / 100, j / 100.0);
        error += std::pow(p.Value(end_x * i / 100, j / 100.0) - u, 2);
        exact += u * u;
      }
    }
    EXPECT_NEAR(*p.pinn->RelativeError(p.theta), std::sqrt(error / exact), 1e-10);
    EXPECT_EQ(*p.pinn->RelativeError(0 * p.theta), 1);
  }
}

TEST(Pinn, RefusesWhatDoesNotFit) {
  Problem<double> p({.layers = {2, 4, 1}});
  const client::Vector<double> short_theta = p.theta.head(7);
  client::Vector<double> out(p.pinn->num_parameters());
  const auto wrong_size =
      IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("theta has 7 elements"), HasSubstr("17 parameters")));
  EXPECT_THAT(p.pinn->Loss(short_theta, p.all), wrong_size);
  EXPECT_THAT(p.pinn->Gradient(short_theta, p.all, out), wrong_size);
  EXPECT_THAT(p.pinn->Linearize(short_theta, p.all), wrong_size);
  EXPECT_THAT(p.pinn->Residuals(short_theta, p.all, out), wrong_size);
  EXPECT_THAT(p.pinn->RelativeError(short_theta), wrong_size);
  const auto linearization = *p.pinn->Linearize(p.theta, p.all);
  EXPECT_THAT(linearization->GaussNewtonProduct(short_theta, out),
              IsError(StatusCode::kInvalidArgument, HasSubstr("direction has 7 elements")));
  EXPECT_THAT(p.pinn->Values(p.theta, Matrix<double>::Zero(3, 5), out),
              IsError(StatusCode::kInvalidArgument, HasSubstr("a point has 3 coordinates")));

  for (const client::IndexRange range : {client::IndexRange{5, 1061}, {-1, 3}, {6, 5}}) {
    EXPECT_THAT(p.pinn->Loss(p.theta, {DataSet::kHeldOut, {range}}),
                IsError(StatusCode::kOutOfRange, HasSubstr("the held-out data have 1060")));
  }
}

TEST(Pinn, RefusesBadOptions) {
  const auto error = [](const PinnOptions& options, const std::string& what) {
    EXPECT_THAT(Pinn<double>::Create(options), IsError(StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  error({.layers = {2, 1}}, "layers are 2-1; give 2-...-1");
  error({.layers = {3, 8, 1}}, "layers are 3-8-1");
  error({.layers = {2, 8, 2}}, "layers are 2-8-2");
  error({.layers = {2, 0, 1}}, "the width 0 in 2-0-1");
  error({.block_size = 0}, "block_size is 0");
}

}  // namespace
}  // namespace hfopt::models
