// H: the approximation of B^-1 with B = G + lambda I; s = p and y = Bp of a pair; D: the diagonal.

#include "core/lbfgs_preconditioner.h"

#include <limits>
#include <memory>
#include <vector>

#include "Eigen/Dense"
#include "core/conjugate_gradient.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"

namespace hfopt {
namespace {

using support::DenseProduct;
using support::Random;

template <typename Scalar>
PairList<Scalar> Pairs(const Eigen::MatrixXd& G, const std::vector<Eigen::VectorXd>& directions) {
  PairList<Scalar> pairs;
  for (const Eigen::VectorXd& p : directions) {
    const Eigen::VectorXd Gp = G * p;
    pairs.push_back(
        std::make_shared<CurvaturePair<Scalar>>(CurvaturePair<Scalar>{p.cast<Scalar>(), Gp.cast<Scalar>()}));
  }
  return pairs;
}

template <typename Scalar = double>
PairList<Scalar> RandomPairs(const Eigen::MatrixXd& G, int count, uint64_t seed) {
  Random random(seed);
  std::vector<Eigen::VectorXd> directions;
  for (int i = 0; i < count; ++i) directions.push_back(random.Vector(static_cast<int>(G.rows())));
  return Pairs<Scalar>(G, directions);
}

// H as a matrix, column by column.
template <typename Scalar>
Eigen::MatrixXd Dense(LbfgsPreconditioner<Scalar>& preconditioner, int n) {
  Eigen::MatrixXd H(n, n);
  for (int i = 0; i < n; ++i) {
    const Vector<Scalar> unit = Vector<Scalar>::Unit(n, i);
    Vector<Scalar> column;
    preconditioner.Apply(unit, column);
    H.col(i) = column.template cast<double>();
  }
  return H;
}

Eigen::MatrixXd Dense(double lambda, const PairList<double>& pairs, const Eigen::VectorXd& D, int n) {
  LbfgsPreconditioner<double> preconditioner(lambda, 1e-8, D);
  preconditioner.SetPairs(pairs);
  return Dense(preconditioner, n);
}

// Nocedal & Wright 2006, eq. 6.17: H <- (I - rho s y') H (I - rho y s') + rho s s' from H_0 = gamma D^-1, as dense
// matrices.
Eigen::MatrixXd DenseBfgs(double lambda, const PairList<double>& pairs, const Eigen::VectorXd& D) {
  const Eigen::MatrixXd D_inverse = D.cwiseInverse().asDiagonal();
  const Eigen::MatrixXd I = Eigen::MatrixXd::Identity(D.size(), D.size());
  const auto y_of = [&](const CurvaturePair<double>& pair) -> Eigen::VectorXd { return pair.Gp + lambda * pair.p; };
  const Eigen::VectorXd y_newest = y_of(*pairs.back());
  Eigen::MatrixXd H = pairs.back()->p.dot(y_newest) / y_newest.dot(D_inverse * y_newest) * D_inverse;
  for (const auto& pair : pairs) {
    const Eigen::VectorXd s = pair->p, y = y_of(*pair);
    const double rho = 1 / s.dot(y);
    H = (I - rho * s * y.transpose()) * H * (I - rho * y * s.transpose()) + rho * s * s.transpose();
  }
  return H;
}

TEST(LbfgsPreconditioner, WithoutPairsIsTheIdentity) {
  LbfgsPreconditioner<double> preconditioner(0.5, 1e-8);
  EXPECT_TRUE(preconditioner.is_identity());
  EXPECT_EQ(Dense(preconditioner, 4), Eigen::MatrixXd::Identity(4, 4));
}

TEST(LbfgsPreconditioner, WithoutPairsIsTheInverseOfTheDiagonal) {
  const Vector<double> D = Eigen::Vector4d(1, 2, 4, 8);
  LbfgsPreconditioner<double> preconditioner(0.5, 1e-8, D);
  EXPECT_FALSE(preconditioner.is_identity());
  EXPECT_EQ(Dense(preconditioner, 4), Eigen::MatrixXd(D.cwiseInverse().asDiagonal()));
}

TEST(LbfgsPreconditioner, EqualsTheDenseUpdateOfBfgs) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const int m : {1, 2, 6, 14}) {  // more pairs than unknowns, too
      const int n = 10;
      const Eigen::MatrixXd G = Random(seed).Spd(n, 1e3);
      const Eigen::VectorXd D = Random(seed + 20).Vector(n).array().exp();
      const PairList<double> pairs = RandomPairs(G, m, seed + 40);
      const Eigen::MatrixXd expected = DenseBfgs(0.1, pairs, D);
      EXPECT_LE((Dense(0.1, pairs, D, n) - expected).norm(), 1e-11 * expected.norm()) << m;
      const Eigen::MatrixXd plain = DenseBfgs(0.1, pairs, Eigen::VectorXd::Ones(n));
      EXPECT_LE((Dense(0.1, pairs, {}, n) - plain).norm(), 1e-11 * plain.norm()) << m;
    }
  }
}

TEST(LbfgsPreconditioner, IsSymmetricAndPositiveDefinite) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const int n = 12;
    const Eigen::MatrixXd G = Random(seed).Spd(n, 1e4);
    const Eigen::MatrixXd H = Dense(1e-3, RandomPairs(G, 8, seed + 1), {}, n);
    EXPECT_LE((H - H.transpose()).norm(), 1e-12 * H.norm());
    EXPECT_GT(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(H).eigenvalues().minCoeff(), 0);
  }
}

TEST(LbfgsPreconditioner, SatisfiesTheSecantEquationOfTheNewestPair) {
  const int n = 12;
  const Eigen::MatrixXd G = Random(1).Spd(n, 1e3);
  const PairList<double> pairs = RandomPairs(G, 5, 2);
  const Eigen::VectorXd y = pairs.back()->Gp + 0.2 * pairs.back()->p;
  EXPECT_LE((Dense(0.2, pairs, {}, n) * y - pairs.back()->p).norm(), 1e-12 * pairs.back()->p.norm());
}

TEST(LbfgsPreconditioner, AllPairsOfASolveAreTheInverse) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    for (const int n : {2, 6, 12}) {
      const double lambda = 0.05;
      const Eigen::MatrixXd G = Random(seed).Spd(n, 100);
      const Vector<double> g = Random(seed + 1).Vector(n), none;
      DenseProduct<double> product(G);
      const auto cg = MinimizeQuadratic<double>(
          {.G = product, .damping = lambda, .gradient = g, .start = none, .diagonal = none, .pairs = {}},
          {.max_iterations = n, .progress_tolerance = 0}, {.lbfgs = LbfgsMode::kFrozen, .memory = 2 * n});
      ASSERT_EQ(static_cast<int>(cg->pairs.size()), n);
      const Eigen::MatrixXd inverse = (G + lambda * Eigen::MatrixXd::Identity(n, n)).inverse();
      // Directions are conjugate up to condition * epsilon * n.
      EXPECT_LE((Dense(lambda, cg->pairs, {}, n) - inverse).norm(), 1e-9 * inverse.norm()) << n;
    }
  }
}

TEST(LbfgsPreconditioner, ChangeOfLambdaCorrectsThePairsExactly) {
  // Pairs measured at any damping, or none, are the same pairs: (p, Gp). With the new lambda they are those of the new
  // matrix.
  const int n = 8;
  const Eigen::MatrixXd G = Random(1).Spd(n, 1e3), I = Eigen::MatrixXd::Identity(n, n);
  Random random(2);
  std::vector<Eigen::VectorXd> directions;
  for (int i = 0; i < 5; ++i) directions.push_back(random.Vector(n));
  for (const double lambda : {0.0, 1e-3, 1.0, 1e3}) {
    const Eigen::MatrixXd corrected = Dense(lambda, Pairs<double>(G, directions), {}, n);
    const Eigen::MatrixXd from_scratch = Dense(0, Pairs<double>(G + lambda * I, directions), {}, n);
    EXPECT_LE((corrected - from_scratch).norm(), 1e-12 * from_scratch.norm()) << lambda;
  }
}

TEST(LbfgsPreconditioner, LengthOfADirectionDoesNotMatter) {
  const int n = 8;
  const Eigen::MatrixXd G = Random(1).Spd(n, 1e3);
  Random random(2);
  std::vector<Eigen::VectorXd> directions, scaled;
  for (int i = 0; i < 4; ++i) {
    directions.push_back(random.Vector(n));
    scaled.push_back(directions.back() * (i % 2 == 0 ? 1e-6 : 1e6));
  }
  const Eigen::MatrixXd H = Dense(0.1, Pairs<double>(G, directions), {}, n);
  EXPECT_LE((Dense(0.1, Pairs<double>(G, scaled), {}, n) - H).norm(), 1e-12 * H.norm());
}

TEST(LbfgsPreconditioner, SkipsPairsWithoutCurvatureWhateverTheirLength) {
  for (const double length : {1e-6, 1.0, 1e6}) {
    const Eigen::MatrixXd G = Eigen::Vector3d(-1, 0, 1).asDiagonal();
    const auto p = [&](double x, double y, double z) -> Eigen::VectorXd { return length * Eigen::Vector3d(x, y, z); };
    // p'Gp: negative, zero, just not enough (1e-3 |p||Gp|), enough
    const PairList<double> pairs = Pairs<double>(G, {p(1, 0, 0), p(0, 1, 0), p(1, 0, 1), p(1, 0, 1.0005), p(0, 0, 1)});
    LbfgsPreconditioner<double> preconditioner(0, 1e-3);
    preconditioner.SetPairs(pairs);
    EXPECT_EQ(preconditioner.num_pairs(), 1) << length;
    EXPECT_EQ(preconditioner.num_skipped(), 4) << length;
    EXPECT_EQ(Dense(preconditioner, 3), Dense(0, {pairs.back()}, {}, 3));
  }
}

TEST(LbfgsPreconditioner, SkipsPairsThatAreNotFinite) {
  PairList<double> pairs = RandomPairs(Eigen::MatrixXd::Identity(3, 3), 1, 1);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    pairs.push_back(std::make_shared<CurvaturePair<double>>(
        CurvaturePair<double>{Eigen::Vector3d(1, 2, 3), Eigen::Vector3d(1, bad, 3)}));
  }
  LbfgsPreconditioner<double> preconditioner(0, 1e-8);
  preconditioner.SetPairs(pairs);
  EXPECT_EQ(preconditioner.num_skipped(), 2);
  EXPECT_TRUE(Dense(preconditioner, 3).allFinite());
}

TEST(LbfgsPreconditioner, PairsMayComeAndGo) {
  const int n = 9;
  const Eigen::MatrixXd G = Random(1).Spd(n, 100);
  const PairList<double> all = RandomPairs(G, 6, 2);
  LbfgsPreconditioner<double> preconditioner(0.1, 1e-8);
  const std::vector<PairList<double>> history = {
      {all[0]}, {all[0], all[1], all[2]}, {all[0], all[2], all[3]}, {all[5], all[0], all[4]}, {}};
  for (const PairList<double>& pairs : history) {
    preconditioner.SetPairs(pairs);
    EXPECT_EQ(Dense(preconditioner, n), Dense(0.1, pairs, {}, n)) << "as if they had been set at once";
  }
}

TEST(LbfgsPreconditioner, InFloatFollowsTheDenseUpdate) {
  const int n = 20;
  const Eigen::MatrixXd G = Random(1).Spd(n, 100);
  LbfgsPreconditioner<float> preconditioner(0.1, 1e-8);
  preconditioner.SetPairs(RandomPairs<float>(G, 8, 2));
  EXPECT_EQ(preconditioner.num_pairs(), 8);
  const Eigen::MatrixXd expected = DenseBfgs(0.1, RandomPairs(G, 8, 2), Eigen::VectorXd::Ones(n));
  EXPECT_LE((Dense(preconditioner, n) - expected).norm(), 1e-4 * expected.norm());
}

}  // namespace
}  // namespace hfopt
