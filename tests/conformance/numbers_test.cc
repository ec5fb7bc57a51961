#include "client/cli/conformance/numbers.h"

#include <cmath>

#include "Eigen/QR"

#include "client/cli/conformance/lab.h"
#include "gtest/gtest.h"

namespace hfopt::conformance {
namespace {

std::vector<double> Along(const std::function<double(double)>& f, double h, int levels) {
  std::vector<double> values = {f(0)};
  for (int i = 0; i < levels; ++i, h /= 2) {
    values.push_back(f(h));
    values.push_back(f(-h));
  }
  return values;
}

TEST(Extrapolate, FindsDerivativesToNearlyAllDigits) {
  const LineDerivatives line = Extrapolate(0.1, Along([](double t) { return std::exp(std::sin(2 * t)); }, 0.1, 16));
  EXPECT_NEAR(line.slope.value, 2, 1e-10);  // (2 cos 2t) e^sin 2t
  EXPECT_NEAR(line.curvature.value, 4, 1e-7);
  EXPECT_LT(line.slope.error, 1e-9);
  EXPECT_GE(line.curvature.error, std::abs(line.curvature.value - 4) / 10);
}

TEST(Extrapolate, KnowsThatARoughFunctionHasNoDerivative) {
  const LineDerivatives line =
      Extrapolate(0.1, Along([](double t) { return std::round(1000 * std::exp(0.7123 * t)) / 1000; }, 0.1, 16));
  EXPECT_GT(line.slope.error, 1e-4);
}

TEST(Extrapolate, IsExactWhereNothingChanges) {
  const LineDerivatives line = Extrapolate(0.1, Along([](double) { return 7; }, 0.1, 8));
  EXPECT_EQ(line.slope.value, 0);
  EXPECT_EQ(line.slope.error, 0);
}

TEST(LanczosExtremes, FindsBothEndsOfASpectrum) {
  // Diagonal in a random basis, with one negative eigenvalue.
  const int n = 40;
  Vector eigenvalues = Vector::LinSpaced(n, 0.5, 9);
  eigenvalues[7] = -3;
  Eigen::MatrixXd random(n, n);
  for (int j = 0; j < n; ++j) random.col(j) = NormalVector(n, j + 1);
  const Eigen::MatrixXd q = Eigen::HouseholderQR<Eigen::MatrixXd>(random).householderQ();
  const Eigen::MatrixXd a = q * eigenvalues.asDiagonal() * q.transpose();
  const auto extremes = LanczosExtremes([&](const Vector& v) -> absl::StatusOr<Vector> { return Vector(a * v); },
                                        NormalVector(n, 99), 30);
  ASSERT_TRUE(extremes.ok());
  EXPECT_NEAR(extremes->smallest, -3, 1e-6);
  EXPECT_NEAR(extremes->largest, 9, 1e-3);
  EXPECT_NEAR(extremes->smallest_vector.dot(a * extremes->smallest_vector), extremes->smallest, 1e-9);
}

TEST(LanczosExtremes, StopsWhereTheSpaceIsExhausted) {
  const auto extremes =
      LanczosExtremes([](const Vector& v) -> absl::StatusOr<Vector> { return Vector(2 * v); }, NormalVector(5, 1), 30);
  ASSERT_TRUE(extremes.ok());
  EXPECT_NEAR(extremes->smallest, 2, 1e-12);
  EXPECT_NEAR(extremes->largest, 2, 1e-12);
}

// A of rank 5 with eigenvalues of both signs in 30 dimensions; b with a part beside the range, or without.
TEST(DistanceFromRange, IsThatOfADenseMatrix) {
  const int n = 30, rank = 5;
  Eigen::MatrixXd factor(n, rank);
  for (int j = 0; j < rank; ++j) factor.col(j) = NormalVector(n, j + 1);
  const Eigen::MatrixXd q = Eigen::HouseholderQR<Eigen::MatrixXd>(factor).householderQ() * Eigen::MatrixXd::Identity(n, rank);
  const Vector eigenvalues{{3, -2, 1, -1e-3, 1e-6}};
  const Eigen::MatrixXd a = q * eigenvalues.asDiagonal() * q.transpose();
  const auto apply = [&](const Vector& v) -> absl::StatusOr<Vector> { return Vector(a * v); };
  const Vector b = NormalVector(n, 77), inside = q * (q.transpose() * b), beside = b - inside;

  const auto in_range = DistanceFromRange(apply, inside, 30, 1e-11);
  ASSERT_TRUE(in_range.ok());
  EXPECT_LT(in_range->residual, 1e-9);
  EXPECT_EQ(in_range->dimension, rank);
  EXPECT_TRUE(in_range->exhausted);

  const auto outside = DistanceFromRange(apply, b, 30, 1e-11);
  ASSERT_TRUE(outside.ok());
  EXPECT_NEAR(outside->residual, beside.norm() / b.norm(), 1e-9);
  EXPECT_EQ(outside->dimension, rank + 1);
  EXPECT_TRUE(outside->exhausted);

  const auto cut = DistanceFromRange(apply, b, 3, 1e-11);
  ASSERT_TRUE(cut.ok());
  EXPECT_FALSE(cut->exhausted);
  EXPECT_GT(cut->residual, outside->residual);

  // Of a zero matrix nothing is in the range.
  const auto zero = DistanceFromRange([&](const Vector& v) -> absl::StatusOr<Vector> { return Vector(0 * v); }, b, 30, 1e-11);
  ASSERT_TRUE(zero.ok());
  EXPECT_EQ(zero->residual, 1);
  EXPECT_TRUE(zero->exhausted);
}

TEST(LargestCluster, GroupsWhatAgreesWithinTolerances) {
  const std::vector<double> values = {1, 5, 1.001, 2, 0.9995, 5, 1};
  const std::vector<double> tolerances(values.size(), 0.001);
  std::vector<bool> use(values.size(), true);
  EXPECT_EQ(LargestCluster(values, tolerances, use), (std::vector<int>{0, 2, 4, 6}));
  use[0] = use[6] = false;
  EXPECT_EQ(LargestCluster(values, tolerances, use).size(), 2u);
}

}  // namespace
}  // namespace hfopt::conformance
