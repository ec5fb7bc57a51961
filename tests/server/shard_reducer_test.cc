#include "server/evaluation/shard_reducer.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace hfopt::server {
namespace {

TEST(LossReducer, DividesTheSumsByTheTotalWeight) {
  LossReducer reducer(2);
  reducer.Add({10, 20}, 4);
  reducer.AddMetric("errors", {1, 2});
  reducer.Add({2, 4}, 2);
  reducer.AddMetric("errors", {2, 4});
  const std::vector<LossAnswer> means = reducer.Mean();
  EXPECT_DOUBLE_EQ(means[0].loss, 2);
  EXPECT_DOUBLE_EQ(means[1].loss, 4);
  EXPECT_DOUBLE_EQ(means[1].metrics.at("errors"), 1);
  EXPECT_EQ(means[0].weight, 6);
}

TEST(LossReducer, KeepsANonFiniteLossToItsOwnPoint) {
  LossReducer reducer(2);
  reducer.Add({NAN, 1}, 1);
  reducer.Add({1, 1}, 1);
  EXPECT_TRUE(std::isnan(reducer.Mean()[0].loss));
  EXPECT_EQ(reducer.Mean()[1].loss, 1);
}

template <typename Scalar>
class VectorReducerOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(VectorReducerOf, Scalars);

TYPED_TEST(VectorReducerOf, IsTheWeightedMeanAtEverySize) {
  for (const int64_t n : {1, 2, 15, 16, 17, 100}) {
    const Vector<TypeParam> a = Vector<TypeParam>::LinSpaced(n, 2, 4), b = Vector<TypeParam>::LinSpaced(n, 6, 8);
    Vector<TypeParam> mean = Vector<TypeParam>::Constant(3, NAN);  // of no meaning, and of another size
    VectorReducer<TypeParam> reducer(mean);
    EXPECT_TRUE(reducer.Add(a, 1));
    EXPECT_TRUE(reducer.Add(b, 3));
    EXPECT_EQ(reducer.weight(), 4);
    reducer.Finish();
    EXPECT_EQ(mean, Vector<TypeParam>((a + b) * TypeParam(0.25))) << n;
  }
}

TYPED_TEST(VectorReducerOf, SeesEveryElementThatIsNotFinite) {
  for (const TypeParam bad : {TypeParam(NAN), TypeParam(INFINITY), TypeParam(-INFINITY)}) {
    for (int64_t i = 0; i < 35; ++i) {
      Vector<TypeParam> sum = Vector<TypeParam>::Ones(35), mean;
      VectorReducer<TypeParam> reducer(mean);
      EXPECT_TRUE(reducer.Add(sum, 1));
      sum[i] = bad;
      EXPECT_FALSE(reducer.Add(sum, 1)) << i;
      EXPECT_FALSE(VectorReducer<TypeParam>(mean).Add(sum, 1)) << "as the first, " << i;
    }
  }
}

TYPED_TEST(VectorReducerOf, KeepsDenormalNumbers) {
  const TypeParam least = std::numeric_limits<TypeParam>::denorm_min();
  const Vector<TypeParam> a = Vector<TypeParam>::Constant(20, 4 * least), b = Vector<TypeParam>::Constant(20, 2 * least);
  Vector<TypeParam> mean;
  VectorReducer<TypeParam> reducer(mean);
  EXPECT_TRUE(reducer.Add(a, 1));
  EXPECT_TRUE(reducer.Add(b, 1));
  reducer.Finish();
  EXPECT_EQ(mean, Vector<TypeParam>(Vector<TypeParam>::Constant(20, 3 * least)));
}

TYPED_TEST(VectorReducerOf, AddsLongVectorsInParts) {
  constexpr int64_t kPart = 1 << 18, n = 2 * kPart + 5;
  Vector<TypeParam> a(n), b(n);
  for (int64_t i = 0; i < n; ++i) {
    a[i] = static_cast<TypeParam>(i % 7);
    b[i] = static_cast<TypeParam>(i % 11);
  }
  Vector<TypeParam> mean;
  VectorReducer<TypeParam> reducer(mean);
  EXPECT_TRUE(reducer.Add(a, 1));
  EXPECT_TRUE(reducer.Add(b, 3));
  reducer.Finish();
  EXPECT_EQ(mean, Vector<TypeParam>((a + b) / 4));
  for (const int64_t place : {int64_t{0}, kPart, n - 1}) {
    Vector<TypeParam> broken = a;
    broken[place] = std::numeric_limits<TypeParam>::quiet_NaN();
    EXPECT_FALSE(VectorReducer<TypeParam>(mean).Add(broken, 1)) << place;
  }
}

TYPED_TEST(VectorReducerOf, TakesTheLargestNumbersForFinite) {
  const Vector<TypeParam> largest = Vector<TypeParam>::Constant(20, std::numeric_limits<TypeParam>::max());
  Vector<TypeParam> mean;
  EXPECT_TRUE(VectorReducer<TypeParam>(mean).Add(largest, 1));
}

TEST(GradientNoise, IsTheStandardDeviationOfTheMean) {
  // Parts of equal weight: the textbook formula, computed directly.
  std::mt19937 bits(1);
  const auto uniform = [&] { return bits() / 4294967296.0 - 0.5; };
  constexpr int kParts = 12, kSize = 5;
  constexpr double kWeight = 7;
  std::vector<Vector<double>> means;
  Vector<double> mean = Vector<double>::Zero(kSize);
  for (int part = 0; part < kParts; ++part) {
    means.push_back(Vector<double>::NullaryExpr(kSize, uniform));
    mean += means.back() / kParts;
  }
  double variance = 0;
  std::vector<PartNorm> parts;
  for (const Vector<double>& part : means) {
    variance += (part - mean).squaredNorm() / (kParts - 1) / kParts;
    parts.push_back({.squared_norm = (kWeight * part).squaredNorm(), .weight = kWeight});
  }
  EXPECT_NEAR(GradientNoise(parts, mean.norm()), std::sqrt(variance), 1e-12);
}

TEST(GradientNoise, IsZeroWithoutParts) {
  EXPECT_EQ(GradientNoise({}, 1), 0);
  EXPECT_EQ(GradientNoise({{.squared_norm = 1, .weight = 1}}, 1), 0);
}

}  // namespace
}  // namespace hfopt::server
