#include "core/termination.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt {
namespace {

using ::testing::HasSubstr;

constexpr DataLayout kLayout{.shards = 2, .training_examples = 1000, .held_out_examples = 100};

// A run in the middle of its work.
OptimizerState<float> MidRun() {
  OptimizerState<float> state;
  state.iteration = 7;
  state.held_out_loss = 2.5;
  state.held_out_examples = 100;
  state.gradient_norm = 0.3;
  state.gradient_examples = 1000;
  state.damping = 4;
  state.consecutive_rejections = 3;
  state.stalled_iterations = 3;
  state.cost = {.gradient_examples = 7000, .products = 50};
  return state;
}

void ExpectEnds(const StopOptions& options, TerminationReason reason, const std::string& detail) {
  const auto termination = CheckTermination(MidRun(), kLayout, options);
  ASSERT_TRUE(termination.has_value()) << TerminationReasonName(reason);
  EXPECT_EQ(termination->reason, reason) << TerminationReasonName(termination->reason);
  EXPECT_THAT(termination->detail, HasSubstr(detail));
}

TEST(Termination, EachRuleEndsTheRunExactlyWhenItsNumberIsReached) {
  using Reason = TerminationReason;
  ExpectEnds({.max_iterations = 7}, Reason::kIterationBudget, "7 iterations");
  ExpectEnds({.max_products = 50}, Reason::kProductBudget, "50");
  ExpectEnds({.max_example_passes = 21}, Reason::kExamplePassBudget, "21");  // 3 * 7000 / 1000
  ExpectEnds({.target_loss = 2.5}, Reason::kTargetReached, "2.5");
  ExpectEnds({.patience = 3}, Reason::kHeldOutStalled, "0.1 %");
  ExpectEnds({.max_rejections = 3}, Reason::kTooManyRejections, "lambda is 4");
  ExpectEnds({.gradient_tolerance = 0.3}, Reason::kConverged, "0.3");
  for (const StopOptions& options :
       {StopOptions{}, StopOptions{.max_rejections = 0}, StopOptions{.max_iterations = 8},
        StopOptions{.max_products = 51}, StopOptions{.max_example_passes = 21.001}, StopOptions{.target_loss = 2.499},
        StopOptions{.patience = 4}, StopOptions{.max_rejections = 4}, StopOptions{.gradient_tolerance = 0.299}}) {
    EXPECT_FALSE(CheckTermination(MidRun(), kLayout, options).has_value());
  }
}

TEST(Termination, NoRuleEndsARunBeforeItsFirstIteration) {
  const StopOptions all{.max_iterations = 1,
                        .max_products = 1,
                        .max_example_passes = 1e-3,
                        .target_loss = 1e300,
                        .patience = 1,
                        .max_rejections = 1,
                        .gradient_tolerance = 1e300};
  EXPECT_FALSE(CheckTermination(OptimizerState<double>(), kLayout, all).has_value());
}

TEST(Termination, SmallGradientOfAPartOfTheDataIsNotConvergence) {
  OptimizerState<float> state = MidRun();
  state.gradient_examples = 999;
  EXPECT_FALSE(CheckTermination(state, kLayout, {.gradient_tolerance = 1}).has_value());
}

TEST(Termination, TargetIsReachedOnAllHeldOutDataOnly) {
  OptimizerState<float> state = MidRun();
  state.held_out_examples = 99;
  EXPECT_FALSE(CheckTermination(state, kLayout, {.target_loss = 5}).has_value());
}

TEST(Termination, SuccessIsNamedBeforeABudgetThatEndsWithIt) {
  const StopOptions both{.max_iterations = 7, .max_products = 50, .target_loss = 2.5};
  EXPECT_EQ(CheckTermination(MidRun(), kLayout, both)->reason, TerminationReason::kTargetReached);
}

TEST(Termination, ReasonNamesAreDistinct) {
  std::set<std::string> names;
  for (int reason = 0; reason <= static_cast<int>(TerminationReason::kCancelled); ++reason) {
    names.emplace(TerminationReasonName(static_cast<TerminationReason>(reason)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(TerminationReason::kCancelled) + 1);
  EXPECT_EQ(names.count("UNKNOWN"), 0u);
}

}  // namespace
}  // namespace hfopt
