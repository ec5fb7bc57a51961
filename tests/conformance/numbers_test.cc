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

// Symmetric, with these eigenvalues, and zeros for the rest; its eigenvectors.
struct Spectrum {
  Eigen::MatrixXd matrix, vectors;
  Spectrum(int n, const std::vector<double>& eigenvalues) {
    Eigen::MatrixXd random(n, n);
    for (int j = 0; j < n; ++j) random.col(j) = NormalVector(n, j + 1);
    vectors = Eigen::HouseholderQR<Eigen::MatrixXd>(random).householderQ();
    Vector diagonal = Vector::Zero(n);
    for (size_t i = 0; i < eigenvalues.size(); ++i) diagonal[i] = eigenvalues[i];
    matrix = vectors * diagonal.asDiagonal() * vectors.transpose();
  }
  absl::StatusOr<Vector> operator()(const Vector& v) const { return Vector(matrix * v); }
};

TEST(DistanceFromRange, IsThePartInTheNullSpace) {
  const Spectrum a(30, {5, 2, 0.5, -1, -4});
  const Vector inside = a.vectors.leftCols(5) * NormalVector(5, 9), outside = a.vectors.col(17);
  for (const double part : {0., 1e-3, 0.7}) {
    const auto distance = DistanceFromRange(a, Vector(inside + part * outside), 20, 1e-11);
    ASSERT_TRUE(distance.ok());
    EXPECT_TRUE(distance->is_exhausted);
    EXPECT_EQ(distance->dimension, part > 0 ? 6 : 5);
    EXPECT_NEAR(distance->distance, part / std::hypot(inside.norm(), part), 1e-12);
    EXPECT_GT(distance->scale, 1);
    EXPECT_LE(distance->scale, 5 + 1e-12);
  }
}

TEST(DistanceFromRange, TakesWhatIsSmallAgainstTheScaleForRounding) {
  const Spectrum a(30, {5, 1e-6});
  const Vector start = a.vectors.col(0) + a.vectors.col(1);
  EXPECT_EQ(DistanceFromRange(a, start, 20, 1e-11)->distance, 0);
  EXPECT_NEAR(DistanceFromRange(a, start, 20, 1e-11, 1e6)->distance, std::sqrt(0.5), 1e-6);
}

TEST(DistanceFromRange, IsUnknownBeforeTheSpaceIsExhausted) {
  const Spectrum a(30, {5, 2, 0.5, -1, -4});
  const auto distance = DistanceFromRange(a, NormalVector(30, 99), 5, 1e-11);
  ASSERT_TRUE(distance.ok());
  EXPECT_FALSE(distance->is_exhausted);
  EXPECT_EQ(distance->dimension, 5);
}

TEST(DistanceFromRange, IsKnownWhereTheSpaceIsTheWholeSpace) {
  const Spectrum a(4, {3, 2, 1, -1});
  const auto distance = DistanceFromRange(a, NormalVector(4, 99), 100, 1e-11);
  ASSERT_TRUE(distance.ok());
  EXPECT_TRUE(distance->is_exhausted);
  EXPECT_EQ(distance->distance, 0);
}

TEST(LanczosExtremes, FindsBothEndsOfASpectrum) {
  // Diagonal in a random basis, with one negative eigenvalue.
  const int n = 40;
  Vector eigenvalues = Vector::LinSpaced(n, 0.5, 9);
  eigenvalues[7] = -3;
  const Spectrum a(n, {eigenvalues.begin(), eigenvalues.end()});
  const auto extremes = LanczosExtremes(a, NormalVector(n, 99), 30);
  ASSERT_TRUE(extremes.ok());
  EXPECT_NEAR(extremes->smallest, -3, 1e-6);
  EXPECT_NEAR(extremes->largest, 9, 1e-3);
  EXPECT_NEAR(extremes->smallest_vector.dot(a.matrix * extremes->smallest_vector), extremes->smallest, 1e-9);
}

TEST(LanczosExtremes, StopsWhereTheSpaceIsExhausted) {
  const auto extremes =
      LanczosExtremes([](const Vector& v) -> absl::StatusOr<Vector> { return Vector(2 * v); }, NormalVector(5, 1), 30);
  ASSERT_TRUE(extremes.ok());
  EXPECT_NEAR(extremes->smallest, 2, 1e-12);
  EXPECT_NEAR(extremes->largest, 2, 1e-12);
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
