#include "core/damping.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace hfopt {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(ReductionRatio, IsActualOverPredicted) {
  EXPECT_EQ(ReductionRatio(3, 4), 0.75);
  EXPECT_EQ(ReductionRatio(-3, 4), -0.75);
  EXPECT_EQ(ReductionRatio(0, 4), 0);
}

TEST(ReductionRatio, IsNanUnlessBothAreFiniteAndAReductionIsPredicted) {
  const double bad[][2] = {{1, 0},    {1, -1},        {-1, -1},        {0, 0},        {1, kNaN},
                           {kNaN, 1}, {kInfinity, 1}, {-kInfinity, 1}, {1, kInfinity}};
  for (const auto& [actual, predicted] : bad) {
    EXPECT_TRUE(std::isnan(ReductionRatio(actual, predicted))) << actual << " / " << predicted;
  }
}

TEST(Damping, TheFirstIsGivenOrHalfOfACurvatureWithinTheBounds) {
  EXPECT_EQ(FirstDamping(7, {.initial = 0.3}), 0.3);
  for (const auto& [curvature, first] : {std::pair(7.0, 3.5), {1e-30, 1e-3}, {1e9, 100.0}, {0.0, 1.0}, {-1.0, 1.0}, {kNaN, 1.0}, {kInfinity, 1.0}}) {
    EXPECT_EQ(FirstDamping(curvature, {.initial = 0, .min = 1e-3, .max = 100}), first) << curvature;
  }
  EXPECT_EQ(FirstDamping(7, {.initial = 0, .min = 0, .max = 0}), 0) << "none at all";
}

TEST(Damping, LevenbergMarquardtRowByRow) {
  const DampingOptions options{.rule = DampingRule::kLevenbergMarquardt};
  const struct {
    double rho, factor;
  } rows[] = {{kNaN, 1.5}, {-kInfinity, 1.5}, {-1, 1.5},        {0, 1.5},    {0.2499, 1.5}, {0.25, 1},
              {0.5, 1},    {0.75, 1},         {0.7501, 2. / 3}, {1, 2. / 3}, {100, 2. / 3}};
  for (const auto& [rho, factor] : rows) {
    EXPECT_DOUBLE_EQ(NextDamping(6, {.rho = rho, .accepted = true}, options), 6 * factor) << rho;
    EXPECT_DOUBLE_EQ(NextDamping(6, {.rho = rho, .accepted = false}, options), 6 * 1.5) << rho;
  }
}

TEST(Damping, ContinuousRowByRow) {
  const DampingOptions options{.rule = DampingRule::kContinuous, .target_ratio = 0.5};
  const struct {
    double rho, factor;
  } rows[] = {{kNaN, 4},
              {-kInfinity, 4},
              {-10, 4},
              {0, std::sqrt(10)},
              {0.25, std::pow(10, 0.25)},
              {0.5, 1},
              {0.75, std::pow(10, -0.25)},
              {1, 1 / std::sqrt(10)},
              {10, 1. / 8}};
  for (const auto& [rho, factor] : rows) {
    EXPECT_DOUBLE_EQ(NextDamping(6, {.rho = rho, .accepted = true}, options), 6 * factor) << rho;
  }
}

TEST(Damping, ContinuousByShareAimsLowerTheMoreDampingHas) {
  const DampingOptions options{.rule = DampingRule::kContinuousByShare, .target_ratio = 0.6};
  const struct {
    double share, rho, factor;
  } rows[] = {{0, 0.6, 1},
              {0.5, 0.3, 1},
              {0.5, 0.6, std::pow(10, -0.3)},
              {1, 0, 1},
              {1, 0.25, std::pow(10, -0.25)},
              {7, 0, 1},       // G indefinite, d'Gd < 0: counts as 1
              {-1, 0.6, 1},    // d'Gd below -lambda |d|^2: counts as 0
              {kNaN, 0.6, 1},  // no step: likewise
              {0.5, kNaN, 4},
              {0.5, -10, 4},
              {0.5, 10, 1. / 8}};
  for (const auto& [share, rho, factor] : rows) {
    EXPECT_DOUBLE_EQ(NextDamping(6, {.rho = rho, .accepted = true, .damping_share = share}, options), 6 * factor) << rho << ", " << share;
  }
  EXPECT_DOUBLE_EQ(NextDamping(6, {.rho = 0.5, .accepted = false, .damping_share = 0.5}, options), 6 * std::pow(10, 0.3)) << "a rejected step counts as 0";
}

// The expected reduction on data that are not in the sample, in closed form: with target 1 the rule comes to rest where it is largest.
TEST(Damping, ContinuousByShareFindsTheStepThatIsExpectedToReduceTheLossMost) {
  const DampingOptions options{.rule = DampingRule::kContinuousByShare, .target_ratio = 1};
  constexpr double kSignal = 3, kCurvature = 2;
  for (const double noise : {0.5, 2.0, 6.0}) {  // standard deviation
    const double square = kSignal * kSignal + noise * noise;
    const auto reduction = [&](double lambda) {
      const double B = kCurvature + lambda;
      return kSignal * kSignal / B - kCurvature * square / (2 * B * B);
    };
    double lambda = 1;
    for (int i = 0; i < 300; ++i) {
      const double B = kCurvature + lambda;
      lambda = NextDamping(lambda, {.rho = reduction(lambda) / (square / (2 * B)), .accepted = true, .damping_share = lambda / B}, options);
    }
    EXPECT_NEAR(lambda, kCurvature * noise * noise / (kSignal * kSignal), 1e-9) << noise;
    for (const double other : {0.5, 0.9, 1.1, 2.0}) EXPECT_LT(reduction(other * lambda), reduction(lambda)) << noise << ", " << other;
  }
}

// A model that is right above some lambda and wrong below: lambda hovers about that one, and log10(4) up balances 1 - target down.
TEST(Damping, TargetSetsTheShareOfSolvesThatAreTooLong) {
  const struct {
    double target, share;
  } rows[] = {{0.5, 0.454}, {0.75, 0.293}, {0.9, 0.142}};
  for (const auto& [target, share] : rows) {
    const DampingOptions options{.rule = DampingRule::kContinuous, .target_ratio = target};
    constexpr int kSolves = 10000;
    int too_long = 0;
    double lambda = 1;
    for (int i = 0; i < kSolves; ++i) {
      const bool wrong = lambda < 1e-3;
      too_long += wrong ? 1 : 0;
      lambda = NextDamping(lambda, {.rho = wrong ? -10.0 : 1.0, .accepted = true}, options);
    }
    EXPECT_NEAR(too_long / double{kSolves}, share, 0.005) << target;
  }
}

TEST(Restraint, RowByRow) {
  const DampingOptions damping{.rule = DampingRule::kContinuous};
  const ConjugateGradientOptions cg{.max_iterations = 30, .initial_max_iterations = 15};
  const struct {
    int limit;
    SolveOutcome outcome;
    double factor;
    int next_limit;
  } rows[] = {
      {15, {.rho = 1, .accepted = true, .cut = true, .damping_share = 0.09}, 1, 20},
      {20, {.rho = 1, .accepted = true, .cut = true, .damping_share = 0.09}, 1, 26},
      {26, {.rho = 1, .accepted = true, .cut = true, .damping_share = 0.09}, 1, 30},
      // where the limit cannot grow, or would not help, lambda falls as ever
      {30, {.rho = 1, .accepted = true, .cut = true, .damping_share = 0.09}, std::pow(10, -0.5), 30},
      {20, {.rho = 1, .accepted = true, .cut = true, .damping_share = 0.11}, std::pow(10, -0.5), 20},
      {20, {.rho = 1, .accepted = true, .cut = true, .damping_share = kNaN}, std::pow(10, -0.5), 20},
      {20, {.rho = 1, .accepted = true, .cut = false, .damping_share = 0.01}, std::pow(10, -0.5), 20},
      {20, {.rho = 0.5, .accepted = true, .cut = true, .damping_share = 0.01}, 1, 20},
      // a rise of lambda takes the limit back, not below the first
      {26, {.rho = 0, .accepted = true, .cut = true, .damping_share = 0.01}, std::sqrt(10), 20},
      {20, {.rho = kNaN, .accepted = true, .cut = true, .damping_share = 0.01}, 4, 15},
      {20, {.rho = 3, .accepted = false, .cut = true, .damping_share = 0.01}, std::sqrt(10), 15},
      {15, {.rho = 0, .accepted = true, .cut = false, .damping_share = 0.01}, std::sqrt(10), 15},
  };
  for (const auto& [limit, outcome, factor, next_limit] : rows) {
    const Restraint next = NextRestraint({.damping = 6, .cg_limit = limit}, outcome, damping, cg);
    EXPECT_DOUBLE_EQ(next.damping, 6 * factor) << limit << ", rho " << outcome.rho << ", share " << outcome.damping_share;
    EXPECT_EQ(next.cg_limit, next_limit) << limit << ", rho " << outcome.rho << ", share " << outcome.damping_share;
  }
}

TEST(Restraint, WithoutAFirstLimitItStaysAtTheLast) {
  const ConjugateGradientOptions fixed{.max_iterations = 40};
  EXPECT_EQ(FirstCgLimit(fixed), 40);
  for (const double rho : {-1.0, 0.5, 1.0}) {
    const Restraint next = NextRestraint({.damping = 6, .cg_limit = 40}, {.rho = rho, .accepted = true, .cut = true},
                                         {.rule = DampingRule::kContinuous}, fixed);
    EXPECT_EQ(next.cg_limit, 40);
    EXPECT_EQ(next.damping, NextDamping(6, {.rho = rho, .accepted = true}, {.rule = DampingRule::kContinuous}));
  }
  EXPECT_EQ(FirstCgLimit({.max_iterations = 10, .initial_max_iterations = 15}), 10) << "a lower limit needs no other option";
}

TEST(Damping, RejectedStepIsTreatedAsAZeroRatioAtBest) {
  const DampingOptions options{.rule = DampingRule::kContinuous};
  for (const double rho : {0.1, 0.5, 3.0}) {
    EXPECT_EQ(NextDamping(1, {.rho = rho, .accepted = false}, options), NextDamping(1, {.rho = 0, .accepted = true}, options)) << rho;
  }
  EXPECT_EQ(NextDamping(1, {.rho = -5, .accepted = false}, options), 4) << "a worse ratio stays as bad as it is";
  EXPECT_EQ(NextDamping(1, {.rho = kNaN, .accepted = false}, options), 4);
}

TEST(Damping, RejectedStepNeverLowersLambda) {
  for (const DampingRule rule :
       {DampingRule::kLevenbergMarquardt, DampingRule::kContinuous, DampingRule::kContinuousByShare, DampingRule::kConstant}) {
    for (const double rho : {kNaN, -kInfinity, -1.0, 0.0, 0.3, 0.6, 0.9, 5.0, kInfinity}) {
      for (const double share : {0.0, 0.5, 1.0, 7.0, -1.0, kNaN}) {
        EXPECT_GE(NextDamping(0.7, {.rho = rho, .accepted = false, .damping_share = share}, {.rule = rule}), 0.7) << rho << ", " << share;
      }
    }
  }
}

TEST(Damping, ConstantIsConstant) {
  for (const double rho : {kNaN, 0.0, 1.0}) {
    EXPECT_EQ(NextDamping(0.3, {.rho = rho, .accepted = true}, {.rule = DampingRule::kConstant}), 0.3);
  }
}

TEST(Damping, StaysWithinItsBoundsThroughAThousandIterations) {
  for (const DampingRule rule : {DampingRule::kLevenbergMarquardt, DampingRule::kContinuous, DampingRule::kContinuousByShare}) {
    const DampingOptions options{.rule = rule, .min = 1e-3, .max = 1e4};
    double up = 1, down = 1;
    for (int i = 0; i < 1000; ++i) {
      up = NextDamping(up, {.rho = kNaN, .accepted = false}, options);
      down = NextDamping(down, {.rho = 100, .accepted = true}, options);
      ASSERT_LE(up, 1e4);
      ASSERT_GE(down, 1e-3);
    }
    EXPECT_EQ(up, 1e4);
    EXPECT_EQ(down, 1e-3);
  }
  double lambda = 1;
  for (int i = 0; i < 1000; ++i) lambda = NextDamping(lambda, {.rho = kNaN, .accepted = false}, {});
  EXPECT_TRUE(std::isfinite(lambda)) << "with the default bounds";
}

}  // namespace
}  // namespace hfopt
