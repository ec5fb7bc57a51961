#include "client/cli/time_left.h"

#include <cmath>

#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

// Iterations of two seconds, 10 products and half an example-pass each.
std::vector<v1::IterationReport> Reports(int count) {
  std::vector<v1::IterationReport> reports(count);
  for (int i = 0; i < count; ++i) {
    reports[i].set_iteration(i + 1);
    reports[i].set_accepted(true);
    reports[i].mutable_seconds()->set_total(2);
    reports[i].mutable_cost()->set_products(10 * (i + 1));
    reports[i].mutable_cost()->set_example_passes(0.5 * (i + 1));
    reports[i].set_held_out_loss(1);
  }
  return reports;
}

TEST(TimeLeft, IsUnknownWithoutBudgetOrReports) {
  EXPECT_EQ(EstimateSecondsLeft(Reports(5), {}), std::nullopt);
  v1::RunOptions options;
  options.set_max_wall_seconds(10);
  EXPECT_EQ(EstimateSecondsLeft({}, options), std::nullopt);
}

TEST(TimeLeft, CountsEachBudgetDown) {
  const auto reports = Reports(5);
  v1::RunOptions wall, iterations, products, passes;
  wall.set_max_wall_seconds(60);
  iterations.mutable_optimizer()->mutable_stop()->set_max_iterations(20);
  products.mutable_optimizer()->mutable_stop()->set_max_products(100);
  passes.mutable_optimizer()->mutable_stop()->set_max_example_passes(10);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, wall).value(), 60 - 10);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, iterations).value(), 15 * 2);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, products).value(), 50 / 5.0);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, passes).value(), 7.5 / 0.25);
}

TEST(TimeLeft, TakesTheBudgetThatIsSpentFirst) {
  v1::RunOptions options;
  options.set_max_wall_seconds(60);
  options.mutable_optimizer()->mutable_stop()->set_max_iterations(6);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(Reports(5), options).value(), 2);
}

TEST(TimeLeft, IsNeverNegative) {
  v1::RunOptions options;
  options.set_max_wall_seconds(3);
  EXPECT_EQ(EstimateSecondsLeft(Reports(5), options), 0);
}

TEST(TimeLeft, FollowsTheLastIterations) {
  auto reports = Reports(10);
  for (int i = 7; i < 10; ++i) reports[i].mutable_seconds()->set_total(8);
  v1::RunOptions options;
  options.mutable_optimizer()->mutable_stop()->set_max_iterations(12);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, options).value(), 16);
}

// A loss of exactly 1 + 2 / iteration is 1.1 in iteration 20.
TEST(TimeLeft, ExtendsTheLearningCurveToTheTarget) {
  auto reports = Reports(5);
  for (int i = 0; i < 5; ++i) reports[i].set_held_out_loss(1 + 2.0 / (i + 1));
  v1::RunOptions options;
  options.mutable_optimizer()->mutable_stop()->set_target_loss(1.1);
  EXPECT_NEAR(EstimateSecondsLeft(reports, options).value(), 15 * 2, 1e-9);
}

// 1000 examples, doubled each time, are all 4000 of the data after two iterations.
TEST(TimeLeft, ExpectsLongerIterationsWhileSamplesGrow) {
  auto reports = Reports(3);
  reports[0].set_gradient_examples(250);
  reports[1].set_gradient_examples(300);  // growth need not be even
  reports[2].set_gradient_examples(1000);
  reports[2].mutable_cost()->set_gradient_examples(4000);
  reports[2].mutable_cost()->set_example_passes(3);
  v1::RunOptions options;
  options.mutable_optimizer()->mutable_stop()->set_max_iterations(8);
  EXPECT_DOUBLE_EQ(EstimateSecondsLeft(reports, options).value(), 2 * (2 + 4 + 4 + 4 + 4));
}

TEST(TimeLeft, DoesNotPromiseATargetOutOfReach) {
  auto reports = Reports(5);
  for (int i = 0; i < 5; ++i) reports[i].set_held_out_loss(1 + 2.0 / (i + 1));
  v1::RunOptions options;
  options.mutable_optimizer()->mutable_stop()->set_target_loss(0.9);
  EXPECT_EQ(EstimateSecondsLeft(reports, options), std::nullopt);
  options.mutable_optimizer()->mutable_stop()->set_target_loss(1.001);  // iteration 2000
  EXPECT_EQ(EstimateSecondsLeft(reports, options), std::nullopt);
  EXPECT_EQ(EstimateSecondsLeft(Reports(5), options), std::nullopt) << "a loss that stays as it is";
  options.mutable_optimizer()->mutable_stop()->set_target_loss(-INFINITY);  // the server's way to say "none"
  EXPECT_EQ(EstimateSecondsLeft(Reports(5), options), std::nullopt);
}

}  // namespace
}  // namespace hfopt::cli
