#include "core/optimizer_options.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/status_macros.h"

namespace hfopt {
namespace {

// lo <= value <= hi, NaN excluded.
absl::Status InRange(absl::string_view field, double value, double lo, double hi) {
  if (value >= lo && value <= hi) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("optimizer.", field, " is ", value, "; allowed: ", lo, " to ", hi));
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMaxCount = 1e15;  // exactly representable, and far above anything real

}  // namespace

OptimizerOptions OptimizerOptions::Published() {
  OptimizerOptions options;
  options.samples.curvature_fraction = 0.01;  // Kingsbury 2012: about 1 %
  return options;
}

OptimizerOptions OptimizerOptions::Accelerated() {
  OptimizerOptions options;
  // 15 is right for short, noisy solves (AN4), and three times too short for auto-encoders, where the limit grows (NextRestraint).
  options.conjugate_gradient.initial_max_iterations = 15;
  options.conjugate_gradient.max_iterations = 100;
  // On an auto-encoder (784-100-25-6 and back, CURVES, seeds 1 and 2) the held-out loss after 250 example-passes is 71.8 and 74.1 with the
  // diagonal, 82.8 and 85.1 without; to 0.86 on AN4 (seeds 1, 2, 3) it takes 64, 70 and 69 passes, and 69, 69 and 65.
  options.preconditioner.diagonal = DiagonalMode::kSquaredGradientsIfOffered;
  // With kContinuous, which aims at 0.5 at d_N whatever damping has of the curvature, the held-out loss of half of AN4 was 0.951, 0.940 and 0.960 after 100
  // example-passes (seeds 1, 2, 3), and is 0.922, 0.937 and 0.920; that of a quarter 1.078, 1.087 and 1.109 after 92, and 1.049, 1.054 and 1.038; that of all
  // of it 0.977 and 0.975 after 33, and 0.918 and 0.906; with triphones (440-512-512-512-512, a quarter, seed 1) 2.308 after 51, and 2.207. Auto-encoders
  // are where they were: 73.9 and 75.1 in place of 75.0 and 76.0 on CURVES after 130, 69.5 and 70.0 in place of 68.4 and 70.8 on one of MNIST after 71.
  // With a target of 0.5 more steps are rejected (9 of 35 on a quarter, seed 3, which came to 1.123); with 0.5 and rho taken at d_N a quarter was at 1.068,
  // 1.065 and 1.063, all other data as with 0.6.
  options.damping.rule = DampingRule::kContinuousByShare;
  options.damping.target_ratio = 0.6;
  // That is 0.95 on AN4, where 1 had been tuned, and 42 on an auto-encoder of MNIST (Martens: 45). A deep auto-encoder (CURVES, 5,000 cases, 784-100-80-60-50-25-6 and back, seeds 1 and 2) leaves its plateau, at a loss of 115,
  // after 16 iterations; with 1, whose first steps lead deeper into it, after 40 and 72.
  options.damping.initial = 0;
  // The first iterations cost little and need little. With 1,000 and 500 examples the held-out loss of CURVES, 784-100-25-6 and back, was 82.1 and 86.0
  // (seeds 1 and 2) after 66 example-passes, and 77.1 and 79.4 after 130; with 3,000 and 1,000, which the figures of the diagonal had, 91.4 and 91.3,
  // and 81.9 and 84.4. On a quarter of AN4 1.120 and 1.115, and 1.061 and 1.068, in place of 1.157 and 1.127, and 1.082 and 1.076; on all of it no difference. With
  // half as many (500 and 250) AN4 was no better.
  // They grow where damping says that they are too small: with geometric growth throughout that auto-encoder of CURVES was at 77.5 and 79.4 after 130
  // example-passes, and is at 75.0 and 75.5; one of MNIST (784-250-100-30 and back) at 85.3 and 84.5 after 60, and 72.3 and 71.3. On AN4 no difference.
  options.samples = {.growth = SampleGrowth::kDamping,
                     .initial_gradient_examples = 1000,
                     .growth_factor = 1.2,
                     .curvature_fraction = 0.02,
                     .min_curvature_examples = 500,
                     .held_out_fraction = 0.06,
                     .min_held_out_examples = 500};
  return options;
}

OptimizerOptions OptimizerOptions::Deterministic() {
  OptimizerOptions options;
  options.conjugate_gradient.max_iterations = 200;
  options.conjugate_gradient.progress_tolerance = 0;
  options.conjugate_gradient.residual_tolerance = 0.1;
  options.preconditioner.lbfgs = LbfgsMode::kFrozen;
  // On pinn-poisson 64 pairs reached a 4 times lower loss than 32 in the same time, on pinn-convection and inverse the same one;
  // 128 gave no more.
  options.preconditioner.memory = 64;
  options.damping.rule = DampingRule::kContinuous;
  // A solve that is too long costs most and gains least here; with 0.5 two in five are, with 0.9 one in seven. Against 0.5 and any warm
  // start the loss fell, in equal work, 2.6 times lower on pinn-convection and 1.6 times on pinn-poisson (medians of four seeds); inverse
  // was as quick.
  options.damping.target_ratio = 0.9;
  options.damping.actual_reduction = ActualReduction::kHeldOutAtLast;
  options.damping.initial = 1e-2;
  options.samples.curvature_fraction = 1;
  options.line_search.rescue_tries = 6;
  return options;
}

absl::Status OptimizerOptions::Validate() const {
  const auto& cg = conjugate_gradient;
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.max_iterations", cg.max_iterations, 1, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.initial_max_iterations", cg.initial_max_iterations, 0, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.progress_tolerance", cg.progress_tolerance, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.residual_tolerance", cg.residual_tolerance, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.noise_factor", cg.noise_factor, 0, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.warm_start_decay", cg.warm_start_decay, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.kept_iterate_ratio", cg.kept_iterate_ratio, 1.05, 100));
  HFOPT_RETURN_IF_ERROR(InRange("conjugate_gradient.orthogonalization_depth", cg.orthogonalization_depth, 1, 1000));

  const auto& p = preconditioner;
  HFOPT_RETURN_IF_ERROR(InRange("preconditioner.memory", p.memory, 2, 1000));
  if (p.memory % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("optimizer.preconditioner.memory is ", p.memory, "; it must be even (Morales & Nocedal spacing)"));
  }
  HFOPT_RETURN_IF_ERROR(InRange("preconditioner.diagonal_exponent", p.diagonal_exponent, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("preconditioner.diagonal_examples", static_cast<double>(p.diagonal_examples), 0, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("preconditioner.min_pair_curvature", p.min_pair_curvature, 0, 1));

  HFOPT_RETURN_IF_ERROR(InRange("damping.min", damping.min, 0, 1e30));
  HFOPT_RETURN_IF_ERROR(InRange("damping.max", damping.max, damping.min, 1e30));
  if (damping.initial != 0) HFOPT_RETURN_IF_ERROR(InRange("damping.initial", damping.initial, damping.min, damping.max));
  HFOPT_RETURN_IF_ERROR(InRange("damping.target_ratio", damping.target_ratio, 0.01, 1));
  if (p.diagonal != DiagonalMode::kNone && damping.min == 0) {
    return absl::InvalidArgumentError(
        "optimizer.damping.min is 0; the squared-gradient diagonal needs a positive lambda to be invertible");
  }

  HFOPT_RETURN_IF_ERROR(InRange("samples.initial_gradient_examples", static_cast<double>(samples.initial_gradient_examples), 0, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("samples.growth_factor", samples.growth_factor, 1, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("samples.variance_tolerance", samples.variance_tolerance, 1e-6, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("samples.curvature_fraction", samples.curvature_fraction, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("samples.min_curvature_examples", static_cast<double>(samples.min_curvature_examples), 1, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("samples.held_out_fraction", samples.held_out_fraction, 0, 1e6));
  HFOPT_RETURN_IF_ERROR(InRange("samples.min_held_out_examples", static_cast<double>(samples.min_held_out_examples), 1, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("samples.sub_batches", samples.sub_batches, 2, 10000));

  HFOPT_RETURN_IF_ERROR(InRange("line_search.sufficient_decrease", line_search.sufficient_decrease, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("line_search.shrink", line_search.shrink, 0.01, 0.99));
  HFOPT_RETURN_IF_ERROR(InRange("line_search.max_tries", line_search.max_tries, 1, 1000));
  HFOPT_RETURN_IF_ERROR(InRange("line_search.batch", line_search.batch, 1, 1000));
  HFOPT_RETURN_IF_ERROR(InRange("line_search.rescue_tries", line_search.rescue_tries, 0, 1000));

  HFOPT_RETURN_IF_ERROR(InRange("stop.max_iterations", static_cast<double>(stop.max_iterations), 0, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("stop.max_products", static_cast<double>(stop.max_products), 0, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("stop.max_example_passes", stop.max_example_passes, 0, kMaxCount));
  HFOPT_RETURN_IF_ERROR(InRange("stop.target_loss", stop.target_loss, -kInfinity, kInfinity));
  HFOPT_RETURN_IF_ERROR(InRange("stop.patience", stop.patience, 0, 1e9));
  HFOPT_RETURN_IF_ERROR(InRange("stop.min_improvement", stop.min_improvement, 0, 1));
  HFOPT_RETURN_IF_ERROR(InRange("stop.max_rejections", stop.max_rejections, 1, 1e9));
  return InRange("stop.gradient_tolerance", stop.gradient_tolerance, 0, kInfinity);
}

}  // namespace hfopt
