#include "core/sample_schedule.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace hfopt {
namespace {

constexpr DataLayout kLayout{.shards = 4, .training_examples = 100'000, .held_out_examples = 8'000};

TEST(SampleSchedule, GradientSamplesGrowGeometricallyToAllData) {
  const SampleOptions options{.initial_gradient_examples = 3000, .growth_factor = 1.2};
  int64_t size = FirstGradientSize(kLayout, options);
  EXPECT_EQ(size, 3000);
  for (int k = 1; k <= 40; ++k) {
    size = NextGradientSize(kLayout, options, {.iteration = k, .size = size});
    const double ideal = std::min(1e5, 3000 * std::pow(1.2, k));
    EXPECT_GE(size, ideal * (1 - 1e-12));
    EXPECT_LE(size, ideal + 1);
  }
  EXPECT_EQ(size, 100'000);
  EXPECT_EQ(NextGradientSize(kLayout, options, {.iteration = 1'000'000'000, .size = size}), 100'000) << "no overflow";
}

TEST(SampleSchedule, GeometricGrowthDependsOnTheIterationAlone) {
  const SampleOptions options{.initial_gradient_examples = 100, .growth_factor = 1.5};
  EXPECT_EQ(NextGradientSize(kLayout, options, {.iteration = 7, .size = 1, .gradient_norm = 1, .gradient_noise = 5}),
            NextGradientSize(kLayout, options, {.iteration = 7, .size = 99'999, .gradient_norm = 3, .damping_share = 1}));
}

TEST(SampleSchedule, ZeroMeansAllDataFromTheBeginning) {
  for (const SampleGrowth growth : {SampleGrowth::kGeometric, SampleGrowth::kVariance, SampleGrowth::kDamping}) {
    const SampleOptions options{.growth = growth};
    EXPECT_EQ(FirstGradientSize(kLayout, options), 100'000);
    EXPECT_EQ(NextGradientSize(kLayout, options, {.iteration = 1, .size = 100'000, .gradient_norm = 1}), 100'000);
  }
}

TEST(SampleSchedule, NoSampleIsLargerThanTheData) {
  const SampleOptions options{.initial_gradient_examples = 500'000,
                              .min_curvature_examples = 500'000,
                              .held_out_fraction = 10,
                              .min_held_out_examples = 500'000};
  EXPECT_EQ(FirstGradientSize(kLayout, options), 100'000);
  EXPECT_EQ(CurvatureSize(kLayout, options, 100), 100'000);
  EXPECT_EQ(HeldOutSize(kLayout, options, 100), 8'000);
}

TEST(SampleSchedule, VarianceRuleKeepsTheSizeWhileTheNoiseIsSmall) {
  const SampleOptions options{
      .growth = SampleGrowth::kVariance, .initial_gradient_examples = 1000, .variance_tolerance = 0.5};
  EXPECT_EQ(NextGradientSize(kLayout, options, {.iteration = 3, .size = 1700, .gradient_norm = 2, .gradient_noise = 1}), 1700);
}

TEST(SampleSchedule, VarianceRuleGrowsToTheSizeAtWhichTheNoiseIsAllowed) {
  const SampleOptions options{
      .growth = SampleGrowth::kVariance, .initial_gradient_examples = 1000, .variance_tolerance = 0.5};
  const double norm = 2, noise = 3;
  const int64_t size = NextGradientSize(kLayout, options, {.iteration = 3, .size = 1700, .gradient_norm = norm, .gradient_noise = noise});
  // The noise of a mean falls with the square root of its size: at the new size it is just what is allowed.
  EXPECT_LE(noise * std::sqrt(1700.0 / static_cast<double>(size)), 0.5 * norm);
  EXPECT_GT(noise * std::sqrt(1700.0 / static_cast<double>(size - 1)), 0.5 * norm);
}

TEST(SampleSchedule, VarianceRuleTakesAllDataWhenTheGradientVanishes) {
  const SampleOptions options{.growth = SampleGrowth::kVariance, .initial_gradient_examples = 1000};
  const auto next = [&](double norm, double noise) {
    return NextGradientSize(kLayout, options, {.iteration = 3, .size = 1700, .gradient_norm = norm, .gradient_noise = noise});
  };
  EXPECT_EQ(next(0, 1), 100'000);
  EXPECT_EQ(next(0, 0), 1700) << "nothing is known";
  EXPECT_EQ(next(1, std::numeric_limits<double>::quiet_NaN()), 1700);
}

TEST(SampleSchedule, DampingRuleGrowsBySharesOfTheCurvature) {
  const SampleOptions options{.growth = SampleGrowth::kDamping, .initial_gradient_examples = 1000, .growth_factor = 1.2};
  const auto next = [&](int64_t size, double share) {
    return NextGradientSize(kLayout, options, {.iteration = 9, .size = size, .damping_share = share});
  };
  EXPECT_EQ(next(20'000, 0.4), 24'000) << "geometric where damping holds much";
  EXPECT_EQ(next(20'000, 1), 24'000);
  EXPECT_EQ(next(20'000, std::numeric_limits<double>::quiet_NaN()), 24'000) << "a solve without a step";
  EXPECT_EQ(next(20'000, 0.3), 21'266) << "1 + 0.2 (3/4)^4";
  EXPECT_EQ(next(20'000, 0), 20'400) << "but never less than a tenth of that";
  EXPECT_EQ(next(20'000, -1e-3), 24'000) << "an indefinite product";
  EXPECT_EQ(next(20'000, -2), 24'000);
  EXPECT_EQ(next(20'000, std::numeric_limits<double>::infinity()), 24'000);
  EXPECT_EQ(NextGradientSize(kLayout, options, {.size = 20'000, .damping_share = 0.1, .accepted = false}), 24'000);
  EXPECT_EQ(next(1, 0), 2) << "small samples grow, too";
  EXPECT_EQ(next(99'000, 0.4), 100'000);
  EXPECT_EQ(next(100'000, 0), 100'000);
}

TEST(SampleSchedule, CurvatureSampleIsAFractionWithAFloor) {
  const SampleOptions options{.curvature_fraction = 0.02, .min_curvature_examples = 1000};
  EXPECT_EQ(CurvatureSize(kLayout, options, 3'000), 1000);
  EXPECT_EQ(CurvatureSize(kLayout, options, 50'000), 1000);
  EXPECT_EQ(CurvatureSize(kLayout, options, 100'000), 2000);
  EXPECT_EQ(CurvatureSize(kLayout, {.curvature_fraction = 1}, 12'345), 12'345);
}

TEST(SampleSchedule, HeldOutSampleGrowsWithTheGradientSampleToAllOfIt) {
  const SampleOptions options{.held_out_fraction = 0.06, .min_held_out_examples = 500};
  EXPECT_EQ(HeldOutSize(kLayout, options, 3'000), 500);
  EXPECT_EQ(HeldOutSize(kLayout, options, 50'000), 3'000);
  EXPECT_EQ(HeldOutSize(kLayout, options, 100'000), 8'000) << "all, because the gradient uses all";
  EXPECT_EQ(HeldOutSize(kLayout, {}, 1), 8'000) << "off: always all";
}

}  // namespace
}  // namespace hfopt
