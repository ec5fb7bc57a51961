#include "server/evaluation/shard_reducer.h"

#include <cmath>
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

TEST(VectorReducer, IsTheWeightedMean) {
  VectorReducer<double> reducer;
  reducer.Add(Vector<double>{{2, 4}}, 1);
  reducer.Add(Vector<double>{{6, 8}}, 3);
  EXPECT_EQ(reducer.weight(), 4);
  EXPECT_EQ(std::move(reducer).Mean(), (Vector<double>{{2, 3}}));
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
