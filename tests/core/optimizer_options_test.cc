#include "core/optimizer_options.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(OptimizerOptions, PresetsAreValid) {
  for (const OptimizerOptions& options : {OptimizerOptions(), OptimizerOptions::Published(),
                                          OptimizerOptions::Accelerated(), OptimizerOptions::Deterministic()}) {
    EXPECT_EQ(options.Validate(), absl::OkStatus());
  }
}

TEST(OptimizerOptions, PublishedHasThePublishedConstants) {
  const OptimizerOptions published = OptimizerOptions::Published();
  EXPECT_EQ(published.conjugate_gradient.max_iterations, 250);          // Martens 2010, sec. 4.4
  EXPECT_EQ(published.conjugate_gradient.progress_tolerance, 5e-4);     // Martens 2010, sec. 4.4
  EXPECT_EQ(published.conjugate_gradient.kept_iterate_ratio, 1.3);      // Martens 2010, sec. 4.6
  EXPECT_EQ(published.conjugate_gradient.warm_start_decay, 0.95);       // Martens' code
  EXPECT_EQ(published.damping.rule, DampingRule::kLevenbergMarquardt);  // Martens 2010, sec. 4.1
  EXPECT_EQ(published.line_search.sufficient_decrease, 1e-2);           // Martens' code
  EXPECT_EQ(published.line_search.shrink, 0.8);
  EXPECT_EQ(published.line_search.max_tries, 60);
  EXPECT_EQ(published.samples.initial_gradient_examples, 0) << "all data";
  EXPECT_EQ(published.samples.curvature_fraction, 0.01);  // Kingsbury 2012
  EXPECT_EQ(published.samples.held_out_fraction, 0) << "all held-out data";
  EXPECT_EQ(published.preconditioner.lbfgs, LbfgsMode::kNone);
  EXPECT_EQ(published.preconditioner.diagonal, DiagonalMode::kNone);
}

// Each field with its allowed range, and values just outside.
struct Bad {
  std::string field;
  std::function<void(OptimizerOptions&)> set;
};

#define HFOPT_BAD(member, value)                            \
  Bad {                                                     \
#member, [](OptimizerOptions & o) { o.member = value; } \
  }

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(OptimizerOptions, EveryBadFieldIsNamed) {
  const std::vector<Bad> bads = {HFOPT_BAD(conjugate_gradient.max_iterations, 0),
                                 HFOPT_BAD(conjugate_gradient.max_iterations, -1),
                                 HFOPT_BAD(conjugate_gradient.progress_tolerance, -1e-9),
                                 HFOPT_BAD(conjugate_gradient.progress_tolerance, kNaN),
                                 HFOPT_BAD(conjugate_gradient.residual_tolerance, 1.1),
                                 HFOPT_BAD(conjugate_gradient.residual_tolerance, kNaN),
                                 HFOPT_BAD(conjugate_gradient.noise_factor, -1),
                                 HFOPT_BAD(conjugate_gradient.noise_factor, kInfinity),
                                 HFOPT_BAD(conjugate_gradient.warm_start_decay, 1.01),
                                 HFOPT_BAD(conjugate_gradient.warm_start_decay, -0.1),
                                 HFOPT_BAD(conjugate_gradient.kept_iterate_ratio, 1),
                                 HFOPT_BAD(conjugate_gradient.kept_iterate_ratio, kInfinity),
                                 HFOPT_BAD(conjugate_gradient.orthogonalization_depth, 0),
                                 HFOPT_BAD(preconditioner.memory, 0),
                                 HFOPT_BAD(preconditioner.memory, 1),
                                 HFOPT_BAD(preconditioner.memory, 15),
                                 HFOPT_BAD(preconditioner.memory, 1002),
                                 HFOPT_BAD(preconditioner.diagonal_exponent, -0.1),
                                 HFOPT_BAD(preconditioner.diagonal_exponent, 1.5),
                                 HFOPT_BAD(preconditioner.min_pair_curvature, -1),
                                 HFOPT_BAD(preconditioner.min_pair_curvature, kNaN),
                                 HFOPT_BAD(damping.min, -1),
                                 HFOPT_BAD(damping.min, kNaN),
                                 HFOPT_BAD(damping.max, kInfinity),
                                 HFOPT_BAD(damping.max, kNaN),
                                 HFOPT_BAD(damping.initial, -1),
                                 HFOPT_BAD(damping.initial, 1e11),
                                 HFOPT_BAD(damping.initial, kNaN),
                                 HFOPT_BAD(damping.target_ratio, 1.5),
                                 HFOPT_BAD(damping.target_ratio, kNaN),
                                 HFOPT_BAD(samples.initial_gradient_examples, -1),
                                 HFOPT_BAD(samples.growth_factor, 0.9),
                                 HFOPT_BAD(samples.growth_factor, kNaN),
                                 HFOPT_BAD(samples.variance_tolerance, 0),
                                 HFOPT_BAD(samples.curvature_fraction, -0.1),
                                 HFOPT_BAD(samples.curvature_fraction, 1.1),
                                 HFOPT_BAD(samples.min_curvature_examples, 0),
                                 HFOPT_BAD(samples.held_out_fraction, -1),
                                 HFOPT_BAD(samples.held_out_fraction, kNaN),
                                 HFOPT_BAD(samples.min_held_out_examples, 0),
                                 HFOPT_BAD(samples.sub_batches, 1),
                                 HFOPT_BAD(line_search.sufficient_decrease, -1),
                                 HFOPT_BAD(line_search.sufficient_decrease, 1.1),
                                 HFOPT_BAD(line_search.shrink, 0),
                                 HFOPT_BAD(line_search.shrink, 1),
                                 HFOPT_BAD(line_search.shrink, kNaN),
                                 HFOPT_BAD(line_search.max_tries, 0),
                                 HFOPT_BAD(line_search.batch, 0),
                                 HFOPT_BAD(line_search.rescue_tries, -1),
                                 HFOPT_BAD(stop.max_iterations, -1),
                                 HFOPT_BAD(stop.max_products, -1),
                                 HFOPT_BAD(stop.max_example_passes, -1),
                                 HFOPT_BAD(stop.max_example_passes, kNaN),
                                 HFOPT_BAD(stop.target_loss, kNaN),
                                 HFOPT_BAD(stop.patience, -1),
                                 HFOPT_BAD(stop.min_improvement, -1),
                                 HFOPT_BAD(stop.min_improvement, kNaN),
                                 HFOPT_BAD(stop.max_rejections, 0),
                                 HFOPT_BAD(stop.gradient_tolerance, -1),
                                 HFOPT_BAD(stop.gradient_tolerance, kNaN)};
  for (const Bad& bad : bads) {
    OptimizerOptions options;
    bad.set(options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr("optimizer." + bad.field + " is "));
  }
}

TEST(OptimizerOptions, MessageHasValueAndRemedy) {
  OptimizerOptions options;
  options.line_search.shrink = 1.5;
  EXPECT_THAT(std::string(options.Validate().message()), AllOf(HasSubstr("1.5"), HasSubstr("0.01 to 0.99")));
  options = {};
  options.preconditioner.memory = 7;
  EXPECT_THAT(std::string(options.Validate().message()), AllOf(HasSubstr("7"), HasSubstr("even")));
  options = {};
  options.damping = {.initial = 5, .min = 10, .max = 100};
  EXPECT_THAT(std::string(options.Validate().message()), HasSubstr("10 to 100")) << "within the bounds given";
}

TEST(OptimizerOptions, SquaredGradientDiagonalNeedsAPositiveLambda) {
  OptimizerOptions options;
  options.damping.min = 0;
  EXPECT_TRUE(options.Validate().ok());
  options.preconditioner.diagonal = DiagonalMode::kSquaredGradients;
  EXPECT_EQ(options.Validate().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hfopt
