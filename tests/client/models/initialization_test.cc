#include "client/models/initialization.h"

#include <cmath>

#include "gtest/gtest.h"

namespace hfopt::models {
namespace {

TEST(Uniform, HasItsMomentsAndRange) {
  client::SplitMix64 generator(1);
  constexpr int kNumbers = 100000;
  double sum = 0, squares = 0;
  for (int i = 0; i < kNumbers; ++i) {
    const double u = Uniform(generator);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
  }

  // Five standard errors: 5 sqrt(1/12 / kNumbers), 5 sqrt(4/45 / kNumbers).
  EXPECT_NEAR(sum / kNumbers, 0.5, 0.0046);
  EXPECT_NEAR(squares / kNumbers, 1.0 / 3, 0.0048);
}

TEST(Normal, HasItsMoments) {
  client::SplitMix64 generator(1);
  constexpr int kNumbers = 100000;
  double moments[5] = {};
  for (int i = 0; i < kNumbers; ++i) {
    const double x = Normal(generator);
    for (int p = 1; p <= 4; ++p) moments[p] += std::pow(x, p) / kNumbers;
  }

  EXPECT_NEAR(moments[1], 0, 0.016);
  EXPECT_NEAR(moments[2], 1, 0.023);
  EXPECT_NEAR(moments[3], 0, 0.062);
  EXPECT_NEAR(moments[4], 2.9, 0.16);  // Irwin-Hall: 3 - 1.2 / 12
}

TEST(Initialization, SparseUnitsHaveFifteenConnections) {
  client::SplitMix64 generator(3);
  Eigen::MatrixXd weights(500, 40);
  Eigen::VectorXd biases(500);
  InitializeSparse(generator, 0.25, 0.5, weights, biases);

  for (int64_t unit = 0; unit < weights.rows(); ++unit) EXPECT_EQ((weights.row(unit).array() != 0).count(), 15);
  EXPECT_TRUE((biases.array() == 0.5).all());
  EXPECT_NEAR(weights.squaredNorm() / (500 * 15), 0.25 * 0.25, 0.006);
  // Every input is as likely: 500 * 15 / 40 connections, standard deviation 10.8.
  for (int64_t input = 0; input < weights.cols(); ++input) {
    EXPECT_NEAR(static_cast<double>((weights.col(input).array() != 0).count()), 187.5, 55);
  }
}

TEST(Initialization, SparseUnitsOfFewInputsHaveThemAll) {
  client::SplitMix64 generator(3);
  Eigen::MatrixXd weights(4, 7);
  Eigen::VectorXd biases(4);
  InitializeSparse(generator, 1, 0, weights, biases);

  EXPECT_TRUE((weights.array() != 0).all());
}

TEST(Initialization, GlorotWeightsFillTheirRange) {
  client::SplitMix64 generator(3);
  Eigen::MatrixXd weights(100, 200);
  Eigen::VectorXd biases = Eigen::VectorXd::Ones(100);
  InitializeGlorot(generator, weights, biases);

  const double bound = std::sqrt(6.0 / 300);
  EXPECT_LE(weights.cwiseAbs().maxCoeff(), bound);
  EXPECT_GT(weights.cwiseAbs().maxCoeff(), 0.999 * bound);
  EXPECT_NEAR(weights.squaredNorm() / 20000, 2.0 / 300, 3e-4);
  EXPECT_TRUE((biases.array() == 0).all());
}

}  // namespace
}  // namespace hfopt::models
