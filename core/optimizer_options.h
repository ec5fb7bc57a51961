#ifndef HFOPT_CORE_OPTIMIZER_OPTIONS_H_
#define HFOPT_CORE_OPTIMIZER_OPTIONS_H_

#include <cstdint>
#include <limits>

#include "absl/status/status.h"

namespace hfopt {

// Conjugate gradient on q(d) = g'd + d'(G + lambda I)d / 2. x is the iterate, r = -g - (G + lambda I)x its residual, phi = q(x).
struct ConjugateGradientOptions {
  int max_iterations = 250;  // Martens 2010, sec. 4.4
  // The limit of the first solve, which then moves between this and max_iterations (NextRestraint); 0: max_iterations for every solve.
  int initial_max_iterations = 0;
  // Stop at i when i > k, phi_i < 0 and (phi_i - phi_{i-k}) / phi_i < k * tolerance with k = max(10, 0.1 i); 0: off.
  double progress_tolerance = 5e-4;
  double residual_tolerance = 0;  // stop at |r| <= tolerance |g|, and start at zero where q(d_0) > 0; 0: off
  double noise_factor = 0;        // stop at |r| <= factor * (standard deviation of g, see GradientAnswer::noise); 0: off
  double warm_start_decay = 0.95;  // d_0 = decay * the last iterate of the solve before (Martens' code); 0: start at zero
  double kept_iterate_ratio = 1.3;  // iterates ceil(ratio^j) are kept for backtracking (Martens 2010, sec. 4.6)
  // Flexible CG: a new direction is made conjugate to this many before it (Notay 2000; 1 is the Polak-Ribiere form).
  int orthogonalization_depth = 1;
};

enum class LbfgsMode {
  kNone,
  kFrozen,    // a solve uses the pairs of the solve before (Morales & Nocedal 2000)
  kFlexible,  // pairs enter while the solve runs (Sainath et al. 2013); needs flexible CG
};

enum class DiagonalMode {
  kNone,
  kSquaredGradients,           // H_0 = diag((second moment + lambda)^-exponent) (Martens 2010, sec. 4.7)
  kSquaredGradientsIfOffered,  // that where the objective has second moments, else none
};

// Whether gradients are asked for second moments, of an objective that has them or not.
constexpr bool UsesSecondMoment(DiagonalMode mode, bool has_second_moment) {
  return mode == DiagonalMode::kSquaredGradients || (mode == DiagonalMode::kSquaredGradientsIfOffered && has_second_moment);
}

struct PreconditionerOptions {
  LbfgsMode lbfgs = LbfgsMode::kNone;
  int memory = 16;  // pairs m, even
  DiagonalMode diagonal = DiagonalMode::kNone;
  double diagonal_exponent = 0.75;
  // The second moment is that of so many examples, others for each solve; 0: of the gradient's own (Martens). With 32, 100, 256 and all of them an
  // auto-encoder (as in Accelerated) was at 71.2, 72.2, 72.4 and 72.0 after 250 example-passes; in models without a rule for all examples at
  // once, each costs a gradient of its own.
  int64_t diagonal_examples = 128;
  double min_pair_curvature = 1e-8;  // a pair is skipped when y's <= this |s||y|
};

enum class DampingRule {
  kLevenbergMarquardt,  // lambda * 3/2 if rho < 1/4 or NaN, * 2/3 if rho > 3/4 (Martens 2010, sec. 4.1)
  kContinuous,          // lambda * clamp(10^(target - rho), 1/8, 4)
  kContinuousByShare,   // kContinuous with target_ratio * (1 - share), share = lambda |d_N|^2 / d_N'(G + lambda I)d_N (damping.cc: RatioOfBestStep)
  kConstant,
};

// rho = actual reduction / predicted reduction.
enum class ActualReduction {
  kHeldOutAtLast,          // held-out loss at the last CG iterate: already known from backtracking
  kHeldOutAtChosen,        // held-out loss at the chosen iterate (Kingsbury 2012, Algorithm 1)
  kGradientSampleAtLast,   // one more loss, on the gradient's own sample (Martens 2010)
};

enum class PredictedReduction {
  kDamped,    // -q(d_N)
  kUndamped,  // -q(d_N) + lambda |d_N|^2 / 2
};

struct DampingOptions {
  DampingRule rule = DampingRule::kLevenbergMarquardt;
  double initial = 1;  // 0: half the curvature along the first gradient, g'Gg / (2 |g|^2), within the bounds
  double min = 1e-16;
  double max = 1e10;
  double target_ratio = 0.5;  // kContinuous and kContinuousByShare
  ActualReduction actual_reduction = ActualReduction::kHeldOutAtChosen;
  PredictedReduction predicted_reduction = PredictedReduction::kDamped;
};

enum class SampleGrowth {
  kGeometric,  // |S_k| = min(N, ceil(|S_0| growth_factor^k))
  kVariance,   // |S| grows to noise^2 |S| / (tolerance^2 |g|^2) when that is larger (Byrd, Chin, Nocedal & Wu 2012)
  // |S| grows to |S| (1 + (growth_factor - 1) clamp((share / 0.4)^4, 0.1, 1)), share = lambda |d_N|^2 / d_N'(G + lambda I)d_N; to |S| growth_factor after
  // a rejected step. For continuous damping, whose lambda follows rho (sample_schedule.cc)
  kDamping,
};

struct SampleOptions {
  SampleGrowth growth = SampleGrowth::kGeometric;
  int64_t initial_gradient_examples = 0;  // 0: all
  double growth_factor = 1.2;
  double variance_tolerance = 0.15;
  // The curvature sample is max(min_curvature_examples, curvature_fraction * gradient sample), drawn anew for each solve.
  double curvature_fraction = 0.02;
  int64_t min_curvature_examples = 1;
  // The held-out sample is max(min_held_out_examples, held_out_fraction * gradient sample); 0: always all.
  double held_out_fraction = 0;
  int64_t min_held_out_examples = 1;
  int sub_batches = 10;  // asked for only when a rule needs the noise
};

// Armijo backtracking along the chosen direction: accept alpha when L(theta + alpha d) <= L(theta) + c alpha min(g'd, 0).
struct LineSearchOptions {
  double sufficient_decrease = 1e-2;  // c (Martens' code)
  double shrink = 0.8;                // alpha <- shrink * alpha (Martens' code)
  int max_tries = 60;                 // then the step is rejected
  int batch = 4;                      // candidate losses asked for in one exchange; the answer does not depend on it
  // When no CG iterate improves: try the best of them at 1/2, 1/4, ... this often before rejecting. For deterministic problems.
  int rescue_tries = 0;
};

// When to end. 0 (or the infinity) switches a rule off.
struct StopOptions {
  int64_t max_iterations = 0;
  int64_t max_products = 0;
  double max_example_passes = 0;
  double target_loss = -std::numeric_limits<double>::infinity();  // on all held-out data
  // Stop after `patience` iterations in a row in which the held-out loss fell by less than min_improvement, relative to itself.
  int patience = 0;
  double min_improvement = 1e-3;
  int max_rejections = 20;  // in a row
  double gradient_tolerance = 0;  // |g| on all training data
};

struct OptimizerOptions {
  ConjugateGradientOptions conjugate_gradient;
  PreconditionerOptions preconditioner;
  DampingOptions damping;
  SampleOptions samples;
  LineSearchOptions line_search;
  StopOptions stop;

  // Kingsbury 2012, Algorithm 1, with the published constants: gradient on all data, curvature on 1 %, no preconditioner.
  static OptimizerOptions Published();
  // Growing samples, continuous damping, short solves: the default for learning from much data.
  static OptimizerOptions Accelerated();
  // All data in every evaluation, long solves, frozen L-BFGS pairs: for deterministic, ill-conditioned least squares.
  static OptimizerOptions Deterministic();

  // INVALID_ARGUMENT naming the first bad field (as in proto), its value and the allowed range.
  absl::Status Validate() const;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_OPTIMIZER_OPTIONS_H_
