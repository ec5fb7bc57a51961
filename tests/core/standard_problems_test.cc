// Nonlinear least squares that nobody tuned the presets on: the standard problems of Moré, Garbow & Hillstrom 1981, "Testing unconstrained
// optimization software" (ACM TOMS 7), whose numbers the names carry, from their standard starting points. Narrow curved valleys (1, 14), scales
// that differ by factors of 10^5 to 10^12 (3, 4, 10), singular Jacobians at the solution (13), residuals that stay large (16).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "core/hessian_free.h"
#include "core/termination.h"
#include "gtest/gtest.h"
#include "tests/support/least_squares_objective.h"
#include "unsupported/Eigen/AutoDiff"

namespace hfopt {
namespace {

// A number that carries its derivatives by theta.
using Number = Eigen::AutoDiffScalar<Eigen::VectorXd>;
using Numbers = Eigen::Matrix<Number, Eigen::Dynamic, 1>;

struct Problem {
  std::string name;
  Eigen::VectorXd start;
  int residuals = 0;
  std::function<Number(const Numbers& x, int i)> residual;  // i = 0 .. residuals - 1
  double minimum = 0;  // of the sum of squares; the one that is reached from the start, where there are several
};

Eigen::VectorXd Repeated(std::vector<double> values, int times) {
  return Eigen::Map<Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size())).replicate(times, 1);
}

Number Square(const Number& x) { return x * x; }

// x[0] .. x[1] of the problem in two variables that 1 and 21 consist of.
Number RosenbrockPart(const Numbers& x, int i) {
  const int k = i - i % 2;
  if (i % 2 == 1) return 1 - x[k];
  return 10 * (x[k + 1] - Square(x[k]));
}

Number PowellSingularPart(const Numbers& x, int i) {
  const int k = i - i % 4;
  switch (i % 4) {
    case 0: return x[k] + 10 * x[k + 1];
    case 1: return std::sqrt(5) * (x[k + 2] - x[k + 3]);
    case 2: return Square(x[k + 1] - 2 * x[k + 2]);
    default: return std::sqrt(10) * Square(x[k] - x[k + 3]);
  }
}

Number Watson(const Numbers& x, int i) {
  if (i == 29) return x[0];
  if (i == 30) return x[1] - Square(x[0]) - 1;
  const double t = (i + 1) / 29.0;
  Number slope = 0 * x[0], value = 0 * x[0];
  for (int j = 0; j < x.size(); ++j) {
    if (j > 0) slope += j * std::pow(t, j - 1) * x[j];
    value += std::pow(t, j) * x[j];
  }
  return slope - Square(value) - 1;
}

std::vector<Problem> StandardProblems() {
  std::vector<Problem> problems;
  problems.push_back({"Rosenbrock1", Repeated({-1.2, 1}, 1), 2, RosenbrockPart, 0});
  problems.push_back({"FreudensteinRoth2", Repeated({0.5, -2}, 1), 2,
                      [](const Numbers& x, int i) -> Number {
                        if (i == 0) return x[0] - 13 + ((5 - x[1]) * x[1] - 2) * x[1];
                        return x[0] - 29 + ((x[1] + 1) * x[1] - 14) * x[1];
                      },
                      48.9842});
  problems.push_back({"PowellBadlyScaled3", Repeated({0, 1}, 1), 2,
                      [](const Numbers& x, int i) -> Number {
                        if (i == 0) return 1e4 * x[0] * x[1] - 1;
                        return exp(-x[0]) + exp(-x[1]) - 1.0001;
                      },
                      0});
  problems.push_back({"BrownBadlyScaled4", Repeated({1, 1}, 1), 3,
                      [](const Numbers& x, int i) -> Number {
                        if (i == 0) return x[0] - 1e6;
                        if (i == 1) return x[1] - 2e-6;
                        return x[0] * x[1] - 2;
                      },
                      0});
  problems.push_back({"Beale5", Repeated({1, 1}, 1), 3,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {1.5, 2.25, 2.625};
                        Number power = x[1];
                        for (int k = 0; k < i; ++k) power *= x[1];
                        return y[i] - x[0] * (1 - power);
                      },
                      0});
  problems.push_back({"JennrichSampson6", Repeated({0.3, 0.4}, 1), 10,
                      [](const Numbers& x, int i) -> Number { return 2.0 + 2 * (i + 1) - (exp((i + 1.0) * x[0]) + exp((i + 1.0) * x[1])); },
                      124.362});
  problems.push_back({"HelicalValley7", Repeated({-1, 0, 0}, 1), 3,
                      [](const Numbers& x, int i) -> Number {
                        if (i == 2) return x[2];
                        if (i == 1) return 10 * (sqrt(Square(x[0]) + Square(x[1])) - 1);
                        return 10 * (x[2] - 10 / (2 * M_PI) * atan2(x[1], x[0]));
                      },
                      0});
  problems.push_back({"Bard8", Repeated({1, 1, 1}, 1), 15,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {.14, .18, .22, .25, .29, .32, .35, .39, .37, .58, .73, .96, 1.34, 2.10, 4.39};
                        const double u = i + 1, v = 15 - i, w = std::min(u, v);
                        return y[i] - (x[0] + u / (v * x[1] + w * x[2]));
                      },
                      8.21487e-3});
  problems.push_back({"Gaussian9", Repeated({0.4, 1, 0}, 1), 15,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {.0009, .0044, .0175, .0540, .1295, .2420, .3521, .3989};
                        return x[0] * exp(-0.5 * x[1] * Square((7 - i) / 2.0 - x[2])) - y[std::min(i, 14 - i)];
                      },
                      1.12793e-8});
  problems.push_back({"Meyer10", Repeated({0.02, 4000, 250}, 1), 16,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872};
                        return x[0] * exp(x[1] / (50.0 + 5 * i + x[2])) - y[i];
                      },
                      87.9458});
  problems.push_back({"Box12", Repeated({0, 10, 20}, 1), 10,
                      [](const Numbers& x, int i) -> Number {
                        const double t = 0.1 * (i + 1);
                        return exp(-t * x[0]) - exp(-t * x[1]) - x[2] * (std::exp(-t) - std::exp(-10 * t));
                      },
                      0});
  problems.push_back({"PowellSingular13", Repeated({3, -1, 0, 1}, 1), 4, PowellSingularPart, 0});
  problems.push_back({"Wood14", Repeated({-3, -1, -3, -1}, 1), 6,
                      [](const Numbers& x, int i) -> Number {
                        switch (i) {
                          case 0: return 10 * (x[1] - Square(x[0]));
                          case 1: return 1 - x[0];
                          case 2: return std::sqrt(90) * (x[3] - Square(x[2]));
                          case 3: return 1 - x[2];
                          case 4: return std::sqrt(10) * (x[1] + x[3] - 2);
                          default: return (x[1] - x[3]) / std::sqrt(10);
                        }
                      },
                      0});
  problems.push_back({"KowalikOsborne15", Repeated({0.25, 0.39, 0.415, 0.39}, 1), 11,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {.1957, .1947, .1735, .1600, .0844, .0627, .0456, .0342, .0323, .0235, .0246};
                        constexpr double u[] = {4, 2, 1, .5, .25, .167, .125, .1, .0833, .0714, .0625};
                        return y[i] - x[0] * (u[i] * (u[i] + x[1])) / (u[i] * (u[i] + x[2]) + x[3]);
                      },
                      3.07505e-4});
  problems.push_back({"BrownDennis16", Repeated({25, 5, -5, -1}, 1), 20,
                      [](const Numbers& x, int i) -> Number {
                        const double t = (i + 1) / 5.0;
                        return Square(x[0] + t * x[1] - std::exp(t)) + Square(x[2] + std::sin(t) * x[3] - std::cos(t));
                      },
                      85822.2});
  problems.push_back({"Osborne17", Repeated({0.5, 1.5, -1, 0.01, 0.02}, 1), 33,
                      [](const Numbers& x, int i) -> Number {
                        constexpr double y[] = {.844, .908, .932, .936, .925, .908, .881, .850, .818, .784, .751, .718, .685, .658, .628, .603, .580,
                                                .558, .538, .522, .506, .490, .478, .467, .457, .448, .438, .431, .424, .420, .414, .411, .406};
                        return y[i] - (x[0] + x[1] * exp(-10.0 * i * x[3]) + x[2] * exp(-10.0 * i * x[4]));
                      },
                      5.46489e-5});
  problems.push_back({"Biggs18", Repeated({1, 2, 1, 1, 1, 1}, 1), 13,
                      [](const Numbers& x, int i) -> Number {
                        const double t = 0.1 * (i + 1), y = std::exp(-t) - 5 * std::exp(-10 * t) + 3 * std::exp(-4 * t);
                        return x[2] * exp(-t * x[0]) - x[3] * exp(-t * x[1]) + x[5] * exp(-t * x[4]) - y;
                      },
                      5.65565e-3});
  problems.push_back({"Watson20With6", Eigen::VectorXd::Zero(6), 31, Watson, 2.28767e-3});
  problems.push_back({"Watson20With12", Eigen::VectorXd::Zero(12), 31, Watson, 4.72238e-10});
  problems.push_back({"ExtendedRosenbrock21", Repeated({-1.2, 1}, 20), 40, RosenbrockPart, 0});
  problems.push_back({"ExtendedPowell22", Repeated({3, -1, 0, 1}, 10), 40, PowellSingularPart, 0});
  problems.push_back({"VariablyDimensioned25", Eigen::VectorXd::LinSpaced(10, 0.9, 0), 12,
                      [](const Numbers& x, int i) -> Number {
                        if (i < 10) return x[i] - 1;
                        Number sum = 0 * x[0];
                        for (int j = 0; j < 10; ++j) sum += (j + 1.0) * (x[j] - 1);
                        return i == 10 ? sum : Square(sum);
                      },
                      0});
  problems.push_back({"Trigonometric26", Repeated({0.1}, 10), 10,
                      [](const Numbers& x, int i) -> Number {
                        Number sum = 0 * x[0];
                        for (int j = 0; j < 10; ++j) sum += cos(x[j]);
                        return 10 - sum + (i + 1.0) * (1 - cos(x[i])) - sin(x[i]);
                      },
                      2.79506e-5});
  problems.push_back({"BrownAlmostLinear27", Repeated({0.5}, 10), 10,
                      [](const Numbers& x, int i) -> Number {
                        Number sum = x[0], product = x[0];
                        for (int j = 1; j < 10; ++j) {
                          sum += x[j];
                          product *= x[j];
                        }
                        if (i == 9) return product - 1;
                        return x[i] + sum - 11;
                      },
                      0});
  constexpr int kCells = 30;
  constexpr double kWidth = 1.0 / (kCells + 1);
  Eigen::VectorXd parabola(kCells);
  for (int i = 0; i < kCells; ++i) parabola[i] = (i + 1) * kWidth * ((i + 1) * kWidth - 1);
  problems.push_back({"BoundaryValue28", parabola, kCells,
                      [](const Numbers& x, int i) -> Number {
                        const Number y = x[i] + (i + 1) * kWidth + 1;
                        Number r = 2 * x[i] + 0.5 * kWidth * kWidth * Square(y) * y;
                        if (i > 0) r -= x[i - 1];
                        if (i + 1 < kCells) r -= x[i + 1];
                        return r;
                      },
                      0});
  problems.push_back({"BroydenTridiagonal30", Repeated({-1}, 40), 40,
                      [](const Numbers& x, int i) -> Number {
                        Number r = (3 - 2 * x[i]) * x[i] + 1;
                        if (i > 0) r -= x[i - 1];
                        if (i + 1 < x.size()) r -= 2 * x[i + 1];
                        return r;
                      },
                      0});
  return problems;
}

// Residuals in other units: the loss is `scale` times as large.
support::ResidualFunction ResidualsOf(const Problem& problem, double scale) {
  return [&problem, factor = std::sqrt(scale)](const Eigen::VectorXd& theta, int64_t example) {
    Numbers x(theta.size());
    for (Eigen::Index k = 0; k < theta.size(); ++k) x[k] = Number(theta[k], theta.size(), k);
    const Number r = problem.residual(x, static_cast<int>(example));
    return support::Residual{factor * r.value(), factor * r.derivatives()};
  };
}

class StandardProblem : public ::testing::TestWithParam<Problem> {};

// To within 10^-4 of the minimum in the literature and 10^-10 of where it started, in units that differ by 10^12.
TEST_P(StandardProblem, IsSolvedByThePresetWithoutAnOption) {
  const Problem& problem = GetParam();
  const DataLayout layout{.shards = 1, .training_examples = problem.residuals, .held_out_examples = problem.residuals};
  const Sample all = DrawSample(layout, DataSet::kHeldOut, problem.residuals, 0);
  for (const double scale : {1e-6, 1.0, 1e6}) {
    SCOPED_TRACE(scale);
    support::LeastSquaresObjective<double> objective(problem.start.size(), layout, ResidualsOf(problem, scale));
    const Trial<double> start{};
    const double start_loss = objective.Losses(problem.start, {&start, 1}, all).value()[0].loss;
    OptimizerOptions options = OptimizerOptions::Deterministic();
    options.stop.target_loss = (1 + 1e-4) * scale * problem.minimum / (2 * problem.residuals) + 1e-10 * start_loss;
    options.stop.max_iterations = 1000;
    OptimizerState<double> state = InitialState<double>(problem.start, layout, options);
    std::optional<Termination> end;
    while (!(end = CheckTermination(state, layout, options.stop))) {
      auto next = Iterate<double>(state, objective, options);
      ASSERT_TRUE(next.ok()) << next.status();
      state = std::move(next->state);
    }
    EXPECT_EQ(end->reason, TerminationReason::kTargetReached)
        << end->detail << ": the loss is " << state.held_out_loss << " and should be " << options.stop.target_loss;
  }
}

INSTANTIATE_TEST_SUITE_P(MoreGarbowHillstrom, StandardProblem, ::testing::ValuesIn(StandardProblems()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace hfopt
