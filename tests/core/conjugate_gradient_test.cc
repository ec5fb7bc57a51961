// Letters as in core/conjugate_gradient.cc: B = G + lambda I, b = -g, x iterate, r = b - Bx, D diagonal of the
// preconditioner, phi_i = q(x_i).

#include "core/conjugate_gradient.h"

#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Dense"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"

namespace hfopt {
namespace {

using support::DenseProduct;
using support::Random;
using ::testing::ElementsAre;

// A system, and a solve that only the iteration cap or numerical trouble ends, with every iterate kept.
template <typename Scalar = double>
struct System {
  Eigen::MatrixXd G;
  Eigen::VectorXd g;
  double lambda = 0;
  Eigen::VectorXd start, diagonal;
  PairList<Scalar> pairs;
  double noise = 0;
  ConjugateGradientOptions options{.progress_tolerance = 0, .kept_iterate_ratio = 1.0001};
  PreconditionerOptions preconditioner;

  Eigen::MatrixXd B() const { return G + lambda * Eigen::MatrixXd::Identity(G.rows(), G.cols()); }
  double q(const Eigen::VectorXd& x) const { return g.dot(x) + x.dot(B() * x) / 2; }
  Eigen::VectorXd Solution() const { return B().ldlt().solve(-g); }

  absl::StatusOr<CgResult<Scalar>> TrySolve(DenseProduct<Scalar>& product) const {
    const Vector<Scalar> gradient = g.cast<Scalar>(), x0 = start.cast<Scalar>(), D = diagonal.cast<Scalar>();
    return MinimizeQuadratic<Scalar>({.G = product,
                                      .damping = lambda,
                                      .gradient = gradient,
                                      .start = x0,
                                      .gradient_noise = noise,
                                      .diagonal = D,
                                      .pairs = pairs},
                                     options, preconditioner);
  }
  CgResult<Scalar> Solve() const {
    DenseProduct<Scalar> product(G);
    return *TrySolve(product);
  }
};

System<> RandomSystem(int n, double condition, uint64_t seed) {
  Random random(seed);
  System<> system{.G = random.Spd(n, condition), .g = random.Vector(n)};
  system.options.max_iterations = n;
  return system;
}

// x_0 .. x_N by preconditioned CG as in Nocedal & Wright 2006, Algorithm 5.3, with M a dense approximation of B^-1.
std::vector<Eigen::VectorXd> TextbookPcg(const Eigen::MatrixXd& B, const Eigen::VectorXd& b, const Eigen::MatrixXd& M,
                                         Eigen::VectorXd x, int iterations) {
  std::vector<Eigen::VectorXd> iterates = {x};
  Eigen::VectorXd r = b - B * x, z = M * r, p = z;
  for (int i = 0; i < iterations; ++i) {
    const double a = r.dot(z) / p.dot(B * p);
    x += a * p;
    const double rz = r.dot(z);
    r -= a * B * p;
    z = M * r;
    p = z + r.dot(z) / rz * p;
    iterates.push_back(x);
  }
  return iterates;
}

template <typename Scalar>
void ExpectIterates(const CgResult<Scalar>& result, const std::vector<Eigen::VectorXd>& expected, double tolerance) {
  ASSERT_EQ(result.iterations + 1, static_cast<int>(expected.size()));
  ASSERT_EQ(result.kept.size() + 1, expected.size()) << "every iterate but the start";
  for (const CgIterate<Scalar>& kept : result.kept) {
    const Eigen::VectorXd& x = expected[kept.iteration];
    EXPECT_LE((kept.x.template cast<double>() - x).norm(), tolerance * x.norm()) << "iteration " << kept.iteration;
  }
}

// Pairs of directions that are conjugate with respect to B, as a CG solve makes them.
PairList<double> ConjugatePairs(const System<>& system, int memory) {
  System<> other = system;
  other.g = Random(77).Vector(static_cast<int>(system.g.size()));
  other.preconditioner = {.lbfgs = LbfgsMode::kFrozen, .memory = memory};
  return other.Solve().pairs;
}

// Pairs that have nothing to do with a solve, so that no direction is conjugate to another by itself.
PairList<double> RandomPairs(const Eigen::MatrixXd& G, int count) {
  Random random(99);
  PairList<double> pairs;
  for (int i = 0; i < count; ++i) {
    const Eigen::VectorXd p = random.Vector(static_cast<int>(G.rows()));
    pairs.push_back(std::make_shared<CurvaturePair<double>>(CurvaturePair<double>{p, G * p}));
  }
  return pairs;
}

// ---- The solution ----

TEST(ConjugateGradient, EndsInAsManyStepsAsThereAreUnknowns) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const int n : {1, 2, 5, 8}) {
      for (const double condition : {1.0, 10.0, 100.0}) {
        const System<> system = RandomSystem(n, condition, seed);
        const CgResult<double> result = system.Solve();
        EXPECT_LE(result.products, n);
        // Rounding spoils conjugacy a little more in each step, and the more the worse the condition.
        EXPECT_LE((result.last().x - system.Solution()).norm(), 1e-8 * system.Solution().norm())
            << n << " " << condition;
        EXPECT_LE(result.final_residual, 1e-8 * result.initial_residual);
      }
    }
  }
}

TEST(ConjugateGradient, EndsInAsManyStepsAsThereAreDifferentEigenvalues) {
  Random random(3);
  const Eigen::VectorXd eigenvalues = Eigen::VectorXd::LinSpaced(30, 0, 2.9).array().floor() + 1;  // 1, 2 and 3
  System<> system{.G = random.Symmetric(eigenvalues), .g = random.Vector(30)};
  system.options.max_iterations = 3;
  EXPECT_LE((system.Solve().last().x - system.Solution()).norm(), 1e-12 * system.Solution().norm());
}

TEST(ConjugateGradient, SolvesTheDampedSystem) {
  System<> system = RandomSystem(8, 100, 1);
  system.lambda = 0.3;
  EXPECT_LE((system.Solve().last().x - system.Solution()).norm(), 1e-10 * system.Solution().norm());
}

TEST(ConjugateGradient, SolvesInFloatToItsPrecision) {
  const System<> in_double = RandomSystem(20, 50, 2);
  System<float> system{.G = in_double.G, .g = in_double.g, .lambda = 0.1};
  system.options.max_iterations = 40;
  system.options.residual_tolerance = 1e-5;
  const CgResult<float> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kResidual);
  // condition * (residual tolerance + a few float epsilons)
  EXPECT_LE((result.last().x.cast<double>() - system.Solution()).norm(), 1e-3 * system.Solution().norm());
}

TEST(ConjugateGradient, EqualsTheTextbookWithoutPreconditioner) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(15, 100, seed);
    system.options.max_iterations = 8;
    const Eigen::MatrixXd I = Eigen::MatrixXd::Identity(15, 15);
    ExpectIterates(system.Solve(), TextbookPcg(system.G, -system.g, I, Eigen::VectorXd::Zero(15), 8), 1e-10);
  }
}

// ---- Model values ----

TEST(ConjugateGradient, ModelValuesAreThoseOfTheModelAndFall) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(25, 1e4, seed);
    system.lambda = 1e-3;
    system.start = 0.1 * Random(seed + 100).Vector(25);
    system.options.max_iterations = 15;
    const CgResult<double> result = system.Solve();
    ASSERT_EQ(result.model_values.size(), 16u);
    EXPECT_NEAR(result.model_values[0], system.q(system.start), 1e-12);
    for (const CgIterate<double>& kept : result.kept) {
      EXPECT_EQ(kept.model_value, result.model_values[kept.iteration]);
      EXPECT_NEAR(kept.model_value, system.q(kept.x), 1e-10 * std::abs(kept.model_value));
      EXPECT_LT(kept.model_value, result.model_values[kept.iteration - 1]);
    }
  }
}

TEST(ConjugateGradient, ModelValuesInFloatFollowTheIteratesInFloat) {
  const System<> in_double = RandomSystem(200, 1e3, 5);
  System<float> system{.G = in_double.G, .g = in_double.g, .lambda = 1e-2};
  system.options.max_iterations = 50;
  for (const CgIterate<float>& kept : system.Solve().kept) {
    EXPECT_NEAR(kept.model_value, system.q(kept.x.cast<double>()), 1e-4 * std::abs(kept.model_value));
  }
}

// ---- Martens' stopping rule ----

// Martens 2010, sec. 4.4, transcribed from the paper; `factor_k` is left out by several public implementations.
int MartensStop(const std::vector<double>& phi, double epsilon, bool factor_k) {
  for (int i = 1; i < static_cast<int>(phi.size()); ++i) {
    const int k = static_cast<int>(std::fmax(10, 0.1 * i));
    if (i > k && phi[i] < 0 && (phi[i] - phi[i - k]) / phi[i] < (factor_k ? k * epsilon : epsilon)) return i;
  }
  return -1;
}

TEST(ConjugateGradient, StopsWhereMartensRuleSays) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(200, 1e4, seed);
    system.options.max_iterations = 1000;
    const std::vector<double> phi = system.Solve().model_values;
    for (const double epsilon : {5e-3, 5e-4, 5e-5}) {
      system.options.progress_tolerance = epsilon;
      const CgResult<double> result = system.Solve();
      EXPECT_EQ(result.stop, CgStop::kSmallProgress);
      EXPECT_EQ(result.iterations, MartensStop(phi, epsilon, /*factor_k=*/true));
      // Without the factor k = 10 or more it would be a good deal later: the rule is not confused with that.
      const int without_k = MartensStop(phi, epsilon, /*factor_k=*/false);
      EXPECT_TRUE(without_k == -1 || without_k > result.iterations + 5) << without_k;
    }
  }
}

TEST(ConjugateGradient, MartensWindowGrowsWithALongSolve) {
  // Slow progress for hundreds of iterations, so that k = i / 10 > 10 decides.
  System<> system = RandomSystem(500, 1e6, 1);
  system.options.max_iterations = 1500;
  const std::vector<double> phi = system.Solve().model_values;
  for (const double epsilon : {1e-3, 3e-4, 1e-4}) {
    system.options.progress_tolerance = epsilon;
    const CgResult<double> result = system.Solve();
    EXPECT_GT(result.iterations, 110);
    EXPECT_EQ(result.iterations, MartensStop(phi, epsilon, true));
  }
}

TEST(ConjugateGradient, MartensRuleWaitsForANegativeModelValue) {
  // From a start far uphill, with phi > 0 for many iterations.
  System<> system = RandomSystem(300, 1e5, 3);
  system.start = 1e3 * Random(8).Vector(300);
  system.options.max_iterations = 250;
  system.options.progress_tolerance = 1e-2;
  const CgResult<double> result = system.Solve();
  EXPECT_TRUE(result.stop == CgStop::kMaxIterations || result.last().model_value < 0);
  EXPECT_GT(result.iterations, 11);
}

// ---- What is kept, what is asked ----

TEST(ConjugateGradient, KeepsTheIteratesOfMartensGridAndTheLast) {
  System<> system = RandomSystem(60, 1e6, 1);
  system.options.kept_iterate_ratio = 1.3;
  for (const int cap : {1, 2, 3, 4, 5, 11, 40}) {
    system.options.max_iterations = cap;
    const CgResult<double> result = system.Solve();
    std::vector<int> expected;
    for (int j = 0; std::ceil(std::pow(1.3, j)) <= cap; ++j) {
      const int i = static_cast<int>(std::ceil(std::pow(1.3, j)));
      if (expected.empty() || expected.back() != i) expected.push_back(i);
    }
    if (expected.back() != cap) expected.push_back(cap);
    std::vector<int> kept;
    for (const auto& iterate : result.kept) kept.push_back(iterate.iteration);
    EXPECT_EQ(kept, expected);
    EXPECT_EQ(result.last().iteration, cap);
  }
}

TEST(ConjugateGradient, SpendsOneProductAnIterationAndOneMoreOnAWarmStart) {
  System<> system = RandomSystem(40, 1e4, 1);
  for (const int cap : {1, 7, 20}) {
    system.options.max_iterations = cap;
    for (const bool warm : {false, true}) {
      system.start = warm ? Random(2).Vector(40) : Eigen::VectorXd();
      DenseProduct<double> product(system.G);
      const CgResult<double> result = *system.TrySolve(product);
      EXPECT_EQ(result.iterations, cap);
      EXPECT_EQ(result.products, cap + (warm ? 1 : 0));
      EXPECT_EQ(static_cast<int>(product.asked.size()), result.products);
      if (warm) {
        EXPECT_EQ(product.asked[0], system.start);
      }
    }
  }
}

TEST(ConjugateGradient, WarmStartContinuesFromThere) {
  System<> system = RandomSystem(12, 100, 4);
  system.lambda = 0.01;
  system.start = Random(5).Vector(12);
  system.options.max_iterations = 6;
  ExpectIterates(system.Solve(), TextbookPcg(system.B(), -system.g, Eigen::MatrixXd::Identity(12, 12), system.start, 6),
                 1e-10);
}

TEST(ConjugateGradient, WithAResidualStopAStartWorseThanNoneIsNone) {
  System<> system = RandomSystem(30, 1e4, 3);
  system.lambda = 1e-2;
  system.options.residual_tolerance = 0.1;
  const CgResult<double> cold = system.Solve();
  // Along v the minimum of q is at t = -g'v / v'Bv; at 2 t it is zero again, and positive beyond, and on the other side of zero.
  const Eigen::VectorXd v = Random(8).Vector(30);
  const double t = -system.g.dot(v) / v.dot(system.B() * v);
  for (const double factor : {-0.1, 2.05, 1e6}) {
    system.start = factor * t * v;
    ASSERT_GT(system.q(system.start), 0);
    const CgResult<double> result = system.Solve();
    EXPECT_EQ(result.model_values, cold.model_values) << factor;
    EXPECT_EQ(result.initial_residual, cold.initial_residual);
    EXPECT_EQ(result.last().x, cold.last().x);
    EXPECT_EQ(result.products, cold.products + 1) << "the one that showed it";
  }
  system.start = 1.95 * t * v;
  ASSERT_LT(system.q(system.start), 0);
  EXPECT_NEAR(system.Solve().model_values[0], system.q(system.start), 1e-12);
  system.start = -t * v;
  system.options.residual_tolerance = 0;
  EXPECT_NEAR(system.Solve().model_values[0], system.q(system.start), 1e-12) << "other rules take any start";
}

TEST(ConjugateGradient, AResidualStopNeverLeavesTheModelAboveZero) {
  // The start solves the stiff direction, so its residual is small, and is far too long along two flat ones: one step does not bring
  // q under zero, and the residual stop would end the solve.
  System<> system{.G = Eigen::Vector3d(1, 1e-3, 1e-4).asDiagonal(), .g = -Eigen::Vector3d(1, 1e-3, 1e-4)};
  system.start = Eigen::Vector3d(1, 60, 501);
  system.options.residual_tolerance = 0.1;
  ASSERT_GT(system.q(system.start), 0);
  ASSERT_LT((system.g + system.G * system.start).norm(), 0.1 * system.g.norm());
  const CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kResidual);
  EXPECT_LT(result.last().model_value, 0);
}

TEST(ConjugateGradient, NeverRunsWithoutCap) {
  // An operator that is no matrix at all: no residual falls, and every tolerance is off.
  class Noise : public CurvatureProduct<double> {
   public:
    absl::Status Apply(const Vector<double>& v, Vector<double>& product) override {
      product = v + 0.9 * v.norm() / std::sqrt(50.0) * random_.Vector(50);
      ++calls;
      return absl::OkStatus();
    }
    int calls = 0;

   private:
    Random random_{1};
  } noise;
  const Vector<double> g = Random(2).Vector(50), none;
  for (const int cap : {1, 250, 3000}) {
    noise.calls = 0;
    const auto result =
        MinimizeQuadratic<double>({.G = noise, .gradient = g, .start = none, .diagonal = none, .pairs = {}},
                                  {.max_iterations = cap, .progress_tolerance = 0}, {});
    EXPECT_LE(noise.calls, cap);
    EXPECT_EQ(result->iterations, cap) << CgStopName(result->stop);
  }
}

// ---- Why it stops ----

TEST(ConjugateGradient, StopsAtItsCap) {
  System<> system = RandomSystem(20, 1e4, 1);
  system.options.max_iterations = 4;
  EXPECT_EQ(system.Solve().stop, CgStop::kMaxIterations);
}

TEST(ConjugateGradient, StopsAtTheFirstResidualBelowTheTolerance) {
  System<> system = RandomSystem(50, 1e4, 1);
  system.options.max_iterations = 1000;
  system.options.residual_tolerance = 0.01;
  const CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kResidual);
  for (const CgIterate<double>& kept : result.kept) {
    const bool below = (system.g + system.B() * kept.x).norm() <= 0.01 * system.g.norm();
    EXPECT_EQ(below, kept.iteration == result.iterations) << kept.iteration;
  }
  EXPECT_NEAR(result.final_residual, (system.g + system.B() * result.last().x).norm(), 1e-10);
}

TEST(ConjugateGradient, StopsAtTheFirstResidualBelowTheNoiseOfTheGradient) {
  System<> system = RandomSystem(50, 1e4, 1);
  system.options.max_iterations = 1000;
  system.options.noise_factor = 0.5;
  system.noise = 0.2 * system.g.norm();
  const CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kNoise);
  for (const CgIterate<double>& kept : result.kept) {
    const bool below = (system.g + system.B() * kept.x).norm() <= 0.1 * system.g.norm();
    EXPECT_EQ(below, kept.iteration == result.iterations) << kept.iteration;
  }
}

TEST(ConjugateGradient, TakesAStepHoweverNoisyTheGradient) {
  // A solve without a step would look like a rejected one: lambda would rise, and for no fault of the model.
  System<> system = RandomSystem(10, 100, 1);
  system.options.noise_factor = 1;
  system.noise = 10 * system.g.norm();
  CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kNoise);
  EXPECT_EQ(result.iterations, 1);
  system.noise = 0;
  system.options.residual_tolerance = 1;
  system.start = system.Solution() + 1e-3 * Random(2).Vector(10);
  result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kResidual);
  EXPECT_EQ(result.iterations, 1);
}

TEST(ConjugateGradient, StopsAtNonPositiveCurvature) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Random random(seed);
    Eigen::VectorXd eigenvalues = random.Vector(20).cwiseAbs();
    eigenvalues[0] = -0.5;
    System<> system{.G = random.Symmetric(eigenvalues), .g = random.Vector(20)};
    system.options.max_iterations = 100;
    DenseProduct<double> product(system.G);
    const CgResult<double> result = *system.TrySolve(product);
    ASSERT_EQ(result.stop, CgStop::kNonPositiveCurvature);
    const Eigen::VectorXd& p = product.asked.back();
    EXPECT_LE(p.dot(system.G * p), 0);
    EXPECT_EQ(result.products, result.iterations + 1) << "the last product is about a direction that is not used";
    // What was reached before is kept, and improves the model.
    EXPECT_TRUE(result.last().x.allFinite());
    EXPECT_LT(result.last().model_value, 0);
  }
}

TEST(ConjugateGradient, DampingRemovesNonPositiveCurvature) {
  Random random(1);
  Eigen::VectorXd eigenvalues = random.Vector(20).cwiseAbs();
  eigenvalues[0] = -0.5;
  System<> system{.G = random.Symmetric(eigenvalues), .g = random.Vector(20), .lambda = 0.6};
  system.options.residual_tolerance = 1e-10;
  EXPECT_EQ(system.Solve().stop, CgStop::kResidual);
}

TEST(ConjugateGradient, ZeroOperatorIsNonPositiveCurvatureAtTheStart) {
  const System<> system{.G = Eigen::MatrixXd::Zero(5, 5), .g = Random(1).Vector(5)};
  const CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kNonPositiveCurvature);
  EXPECT_EQ(result.iterations, 0);
  ASSERT_EQ(result.kept.size(), 1u);
  EXPECT_EQ(result.last().x, Eigen::VectorXd::Zero(5));
  EXPECT_THAT(result.model_values, ElementsAre(0));
}

TEST(ConjugateGradient, StopsWhenThePreconditionerIsNotPositive) {
  System<> system = RandomSystem(10, 100, 1);
  system.diagonal = -Eigen::VectorXd::Ones(10);
  CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kPreconditionerNotPositive);
  EXPECT_EQ(result.products, 0);
  EXPECT_EQ(result.last().x, Eigen::VectorXd::Zero(10));
  system.diagonal[3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(system.Solve().stop, CgStop::kPreconditionerNotPositive);
}

TEST(ConjugateGradient, StopsWhenNothingIsLeft) {
  System<> system = RandomSystem(10, 100, 1);
  system.g.setZero();
  const CgResult<double> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kZeroResidual);
  EXPECT_EQ(result.products, 0);
  EXPECT_EQ(result.last().x, Eigen::VectorXd::Zero(10));

  System<> identity{.G = Eigen::MatrixXd::Identity(4, 4), .g = Eigen::Vector4d(1, 2, -3, 4)};
  EXPECT_EQ(identity.Solve().stop, CgStop::kZeroResidual);
  EXPECT_EQ(identity.Solve().last().x, -identity.g);
}

TEST(ConjugateGradient, StopNamesAreDistinct) {
  std::set<std::string> names;
  for (int stop = 0; stop <= static_cast<int>(CgStop::kZeroResidual); ++stop) {
    names.emplace(CgStopName(static_cast<CgStop>(stop)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(CgStop::kZeroResidual) + 1);
  EXPECT_EQ(names.count("UNKNOWN"), 0u);
}

// ---- Failures and numerical trouble ----

TEST(ConjugateGradient, NonFiniteProductLeavesWhatWasReachedBefore) {
  System<> system = RandomSystem(20, 1e3, 1);
  system.start = 0.1 * Random(9).Vector(20);
  system.options.max_iterations = 10;
  const CgResult<double> undisturbed = system.Solve();
  for (int i = 1; i < 10; ++i) {  // product 0 is the warm start's
    DenseProduct<double> product(system.G);
    product.nan_at = i;
    const CgResult<double> result = *system.TrySolve(product);
    EXPECT_EQ(result.stop, CgStop::kNonFinite);
    EXPECT_EQ(result.iterations, i - 1);
    EXPECT_EQ(result.products, i + 1);
    EXPECT_EQ(result.last().x, i == 1 ? Vector<double>(system.start) : undisturbed.kept[i - 2].x);
    const auto first = undisturbed.model_values.begin();
    EXPECT_EQ(result.model_values, std::vector<double>(first, first + i));
  }
}

TEST(ConjugateGradient, NonFiniteProductOfTheWarmStartLeavesTheZeroStep) {
  System<> system = RandomSystem(20, 1e3, 1);
  system.start = Random(9).Vector(20);
  DenseProduct<double> product(system.G);
  product.nan_at = 0;
  const CgResult<double> result = *system.TrySolve(product);
  EXPECT_EQ(result.stop, CgStop::kNonFinite);
  EXPECT_EQ(result.last().iteration, 0);
  EXPECT_EQ(result.last().x, Eigen::VectorXd::Zero(20));
  EXPECT_THAT(result.model_values, ElementsAre(0));
  EXPECT_DOUBLE_EQ(result.final_residual, system.g.norm()) << "that of the zero step";
}

TEST(ConjugateGradient, StepThatOverflowsIsNotKept) {
  // The curvature is so small that the minimum along p is beyond the largest float, although the residual vanishes
  // there.
  System<float> system{.G = 1e-38 * Eigen::MatrixXd::Identity(3, 3), .g = Eigen::Vector3d(100, 200, -300)};
  const CgResult<float> result = system.Solve();
  EXPECT_EQ(result.stop, CgStop::kNonFinite);
  for (const CgIterate<float>& kept : result.kept) {
    EXPECT_TRUE(kept.x.allFinite());
    EXPECT_TRUE(std::isfinite(kept.model_value));
  }
}

TEST(ConjugateGradient, AsksForProductsOfFiniteVectorsOnly) {
  // The preconditioner overflows: z = D^-1 r has infinities.
  System<float> system{.G = Eigen::MatrixXd::Identity(3, 3), .g = Eigen::Vector3d(1, 2, 3)};
  system.diagonal = Eigen::Vector3d::Constant(std::numeric_limits<float>::min() / 4);
  DenseProduct<float> product(system.G);
  const CgResult<float> result = *system.TrySolve(product);
  for (const Eigen::VectorXd& v : product.asked) EXPECT_TRUE(v.allFinite());
  EXPECT_EQ(result.stop, CgStop::kNonFinite);
  EXPECT_EQ(result.last().x, Eigen::VectorXf::Zero(3));
}

TEST(ConjugateGradient, PassesTheErrorOfAProductOn) {
  System<> system = RandomSystem(20, 1e3, 1);
  system.start = Random(9).Vector(20);
  system.options.max_iterations = 6;
  for (int call = 0; call < 7; ++call) {
    DenseProduct<double> product(system.G);
    product.fails_at = call;
    EXPECT_EQ(system.TrySolve(product).status(), absl::UnavailableError("scripted failure")) << call;
    EXPECT_EQ(static_cast<int>(product.asked.size()), call + 1) << "and asks no more";
  }
}

// ---- Preconditioning ----

TEST(ConjugateGradient, EqualsTheTextbookWithADiagonalPreconditioner) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(15, 100, seed);
    system.diagonal = (3 * Random(seed + 50).Vector(15)).array().exp();
    system.start = Random(seed + 60).Vector(15);
    system.options.max_iterations = 8;
    const Eigen::MatrixXd M = system.diagonal.cwiseInverse().asDiagonal();
    ExpectIterates(system.Solve(), TextbookPcg(system.G, -system.g, M, system.start, 8), 1e-9);
  }
}

TEST(ConjugateGradient, EqualsTheTextbookWithFrozenPairs) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(15, 100, seed);
    system.lambda = 0.02;
    system.pairs = ConjugatePairs(system, 6);
    system.preconditioner = {.lbfgs = LbfgsMode::kFrozen, .memory = 6};
    system.options.max_iterations = 8;
    LbfgsPreconditioner<double> lbfgs(system.lambda, 0);
    lbfgs.SetPairs(system.pairs);
    Eigen::MatrixXd M(15, 15);
    for (int i = 0; i < 15; ++i) {
      Vector<double> column;
      lbfgs.Apply(Eigen::VectorXd::Unit(15, i), column);
      M.col(i) = column;
    }
    ExpectIterates(system.Solve(), TextbookPcg(system.B(), -system.g, M, Eigen::VectorXd::Zero(15), 8), 1e-9);
  }
}

TEST(ConjugateGradient, FirstStepIsTheMinimumAlongThePreconditionedGradient) {
  // With r'r in place of r'z the step would be |r|^2 / r'z times too long.
  System<> system = RandomSystem(10, 10, 1);
  system.diagonal = (2 * Random(2).Vector(10)).array().exp() * 5;
  system.options.max_iterations = 1;
  const Eigen::VectorXd r = -system.g, z = r.cwiseQuotient(system.diagonal);
  const Eigen::VectorXd x = system.Solve().last().x;
  EXPECT_LE((x - r.dot(z) / z.dot(system.G * z) * z).norm(), 1e-12 * x.norm());
  EXPECT_NEAR(z.dot(system.g + system.G * x), 0, 1e-12 * z.norm() * r.norm()) << "q'(x) along z";
  EXPECT_GT(r.dot(r), 2 * r.dot(z)) << "else the test sees no difference";
}

TEST(ConjugateGradient, FlexibleEqualsOrdinaryWhenThePreconditionerIsFixed) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    System<> system = RandomSystem(30, 100, seed);
    system.lambda = 1e-3;
    system.diagonal = Random(seed + 50).Vector(30).array().exp();
    system.options.max_iterations = 10;
    system.preconditioner.min_pair_curvature = 2;  // no pair qualifies (Cauchy-Schwarz): what is left is the diagonal
    system.preconditioner.lbfgs = LbfgsMode::kFrozen;
    const CgResult<double> ordinary = system.Solve();
    system.preconditioner.lbfgs = LbfgsMode::kFlexible;
    for (const int depth : {1, 3}) {
      system.options.orthogonalization_depth = depth;
      const CgResult<double> flexible = system.Solve();
      EXPECT_EQ(flexible.pairs_used, 0);
      EXPECT_EQ(flexible.pairs_skipped, 10);
      for (size_t i = 0; i < flexible.kept.size(); ++i) {
        EXPECT_LE((flexible.kept[i].x - ordinary.kept[i].x).norm(), 1e-9 * ordinary.kept[i].x.norm());
      }
    }
  }
}

TEST(ConjugateGradient, FlexibleBetaIsTheFormOfPolakAndRibiere) {
  // p_{i+1} = z_{i+1} + beta p_i with beta = z_{i+1}'(r_{i+1} - r_i) / z_i'r_i (Notay 2000), recomputed from what was
  // asked. While the newest pair is in the preconditioner beta is 0 (z'Bp = r's = 0 by the secant equation); iteration
  // 5 is the first left out.
  System<> system = RandomSystem(20, 30, 3);
  system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 4};
  system.pairs = ConjugatePairs(system, 4);
  system.options.max_iterations = 9;
  DenseProduct<double> product(system.G);
  const CgResult<double> result = *system.TrySolve(product);
  const std::vector<Eigen::VectorXd>& p = product.asked;
  LbfgsPreconditioner<double> M(0, 1e-8);
  M.SetPairs(system.pairs);
  Eigen::VectorXd r_old = -system.g;
  Vector<double> z_old, z;
  M.Apply(r_old, z_old);
  EXPECT_LE((p[0] - z_old).norm(), 1e-12 * z_old.norm());
  EvenlySpacedPairs<double> new_pairs(4);
  for (int i = 1; i < 9; ++i) {
    // The new pairs come after the newest of the old ones, as many as find a place.
    new_pairs.Offer(i - 1, p[i - 1], system.G * p[i - 1]);
    PairList<double> pairs(system.pairs.begin() + new_pairs.pairs().size(), system.pairs.end());
    pairs.insert(pairs.end(), new_pairs.pairs().begin(), new_pairs.pairs().end());
    M.SetPairs(pairs);
    const Eigen::VectorXd r = -system.g - system.G * result.kept[i - 1].x;
    M.Apply(r, z);
    const double beta = z.dot(r - r_old) / z_old.dot(r_old);
    EXPECT_LE((p[i] - z - beta * p[i - 1]).norm(), 1e-9 * p[i].norm()) << i;
    EXPECT_EQ(std::abs(beta) > 1e-3, i == 6 || i == 8) << beta;
    r_old = r;
    z_old = z;
  }
}

TEST(ConjugateGradient, FlexibleConvergesWithAPreconditionerThatChangesInEveryIteration) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    for (const int depth : {1, 4}) {
      System<> system = RandomSystem(60, 1e3, seed);
      system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 8};
      system.pairs = ConjugatePairs(system, 8);
      system.options.orthogonalization_depth = depth;
      system.options.residual_tolerance = 1e-6;
      system.options.max_iterations = 500;
      const CgResult<double> result = system.Solve();
      EXPECT_EQ(result.stop, CgStop::kResidual) << CgStopName(result.stop) << " after " << result.iterations;
      for (size_t i = 1; i < result.model_values.size(); ++i) {
        ASSERT_LE(result.model_values[i] - result.model_values[i - 1], 1e-13 * std::abs(result.model_values[i]))
            << "each step minimises along its direction";
      }
    }
  }
}

TEST(ConjugateGradient, DirectionsStayConjugateToAsManyBeforeAsAskedFor) {
  for (const int depth : {1, 2, 5}) {
    System<> system = RandomSystem(40, 1e3, 7);
    system.lambda = 1e-2;
    system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 4};
    system.options = {.max_iterations = 20, .progress_tolerance = 0, .orthogonalization_depth = depth};
    system.pairs = RandomPairs(system.G, 4);
    DenseProduct<double> product(system.G);
    ASSERT_EQ(system.TrySolve(product)->iterations, 20);
    const Eigen::MatrixXd B = system.B();
    const auto cosine = [&](const Eigen::VectorXd& a, const Eigen::VectorXd& b) {
      return a.dot(B * b) / std::sqrt(a.dot(B * a) * b.dot(B * b));
    };
    for (int i = 1; i < 20; ++i) {
      for (int j = std::max(0, i - depth); j < i; ++j) {
        EXPECT_LE(std::abs(cosine(product.asked[i], product.asked[j])), 1e-9) << depth << ": " << i << ", " << j;
      }
    }
  }
}

TEST(ConjugateGradient, DirectionsThatSpanEverythingDoNoHarm) {
  // When all n directions are remembered, the next one is rounding alone. A step that is the minimum along it stays
  // harmless; with r'z in place of r'p it would be as long as 1 / epsilon.
  System<> system = RandomSystem(3, 10, 1);
  system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 4};
  system.options.orthogonalization_depth = 3;
  system.options.max_iterations = 15;
  const CgResult<double> result = system.Solve();
  EXPECT_LE((result.last().x - system.Solution()).norm(), 1e-10 * system.Solution().norm());
}

TEST(ConjugateGradient, PairsOfTheRunningSolveAloneAreConjugateGradientAgain) {
  // Without pairs of an earlier solve, quasi-Newton directions are those of CG up to their length (Nazareth 1979):
  // flexible pairs help from the second solve on, and against rounding.
  for (const int memory : {2, 4, 16}) {
    System<> system = RandomSystem(20, 30, 5);
    system.options.max_iterations = 8;
    const CgResult<double> plain = system.Solve();
    system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = memory};
    const CgResult<double> flexible = system.Solve();
    for (size_t i = 0; i < plain.kept.size(); ++i) {
      EXPECT_LE((flexible.kept[i].x - plain.kept[i].x).norm(), 1e-9 * plain.kept[i].x.norm()) << memory;
    }
  }
}

// ---- Preconditioning is really on ----

TEST(ConjugateGradient, PairsOfASolveShortenTheNext) {
  // What HF meets: another gradient, the same ill-conditioned curvature.
  for (const LbfgsMode mode : {LbfgsMode::kFrozen, LbfgsMode::kFlexible}) {
    Random random(1);
    Eigen::VectorXd eigenvalues = random.Vector(200).array() / 4 + 1;  // a bulk, and 20 large ones
    for (int i = 0; i < 20; ++i) eigenvalues[i] = 10 * std::pow(1.5, i);
    System<> system{.G = random.Symmetric(eigenvalues), .g = random.Vector(200)};
    system.options.max_iterations = 1000;
    system.options.residual_tolerance = 1e-3;
    const CgResult<double> plain = system.Solve();
    EXPECT_TRUE(plain.pairs.empty()) << "off: nothing is stored";

    system.preconditioner = {.lbfgs = mode, .memory = 32};
    system.pairs = ConjugatePairs(system, 32);
    ASSERT_EQ(system.pairs.size(), 32u);
    const CgResult<double> preconditioned = system.Solve();
    EXPECT_EQ(preconditioned.stop, CgStop::kResidual);
    EXPECT_EQ(preconditioned.pairs_used, 32);
    EXPECT_LE(preconditioned.iterations, 0.7 * plain.iterations) << "plain: " << plain.iterations;
    EXPECT_FALSE(preconditioned.kept[0].x.isApprox(plain.kept[0].x, 1e-3)) << "it matters from the first step";
  }
}

TEST(ConjugateGradient, FrozenPreconditionerOfAFirstSolveIsNone) {
  System<> system = RandomSystem(30, 1e3, 1);
  const CgResult<double> plain = system.Solve();
  system.preconditioner = {.lbfgs = LbfgsMode::kFrozen, .memory = 8};
  const CgResult<double> frozen = system.Solve();
  EXPECT_EQ(frozen.last().x, plain.last().x);
  EXPECT_EQ(frozen.pairs_used, 0);
  EXPECT_EQ(frozen.pairs.size(), 8u) << "but its pairs are kept for the next";
}

TEST(ConjugateGradient, FlexiblePairsEnterDuringTheFirstSolve) {
  System<> system = RandomSystem(30, 1e3, 1);
  const CgResult<double> plain = system.Solve();
  system.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 8};
  const CgResult<double> flexible = system.Solve();
  EXPECT_EQ(flexible.pairs_used, 8);
  EXPECT_EQ(flexible.kept[0].x, plain.kept[0].x) << "the first step knows no pair";
}

TEST(ConjugateGradient, PairsAreTheDirectionsAndTheirUndampedProducts) {
  System<> system = RandomSystem(10, 100, 1);
  system.lambda = 0.5;
  system.preconditioner = {.lbfgs = LbfgsMode::kFrozen, .memory = 10};
  DenseProduct<double> product(system.G);
  const CgResult<double> result = *system.TrySolve(product);
  ASSERT_EQ(result.pairs.size(), product.asked.size());
  for (size_t i = 0; i < result.pairs.size(); ++i) {
    EXPECT_EQ(result.pairs[i]->p, product.asked[i]);
    EXPECT_LE((result.pairs[i]->Gp - system.G * product.asked[i]).norm(), 1e-14 * product.asked[i].norm());
  }
}

}  // namespace
}  // namespace hfopt
