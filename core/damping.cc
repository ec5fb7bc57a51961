#include "core/damping.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hfopt {
namespace {

// Where the gradient has the component s, of which its sample shows s + e, E e = 0, E e^2 = n^2, along a direction of curvature h, the step
// -(s + e) / (h + lambda) is expected to lower the loss by s^2 / (h + lambda) - h (s^2 + n^2) / (2 (h + lambda)^2): most at lambda = h n^2 / s^2. There
// rho = s^2 / (s^2 + n^2), and damping has the share n^2 / (s^2 + n^2) = 1 - rho of the curvature. That is of the damped prediction, at d_N.
// A share that is none counts as 0 (NaN of a solve without a step, negative of an indefinite product), one above 1 as 1.
double RatioOfBestStep(double share) { return share > 0 ? 1 - std::min(share, 1.0) : 1; }

// 10^(target - rho), within bounds; NaN counts as the worst rho.
double Continuous(double target, double rho) {
  // Picked on a speech task; they held on an auto-encoder and on physics-informed networks.
  constexpr double kLargestDecrease = 1.0 / 8, kLargestIncrease = 4;
  if (std::isnan(rho)) return kLargestIncrease;
  return std::clamp(std::pow(10, target - rho), kLargestDecrease, kLargestIncrease);
}

double Factor(double rho, double share, const DampingOptions& options) {
  switch (options.rule) {
    case DampingRule::kLevenbergMarquardt:
      if (!(rho >= 0.25)) return 1.5;
      return rho > 0.75 ? 1 / 1.5 : 1;
    case DampingRule::kContinuous:
      return Continuous(options.target_ratio, rho);
    case DampingRule::kContinuousByShare:
      return Continuous(options.target_ratio * RatioOfBestStep(share), rho);
    case DampingRule::kConstant:
      return 1;
  }
  return 1;
}

}  // namespace

double ReductionRatio(double actual, double predicted) {
  if (!std::isfinite(actual) || !std::isfinite(predicted) || !(predicted > 0)) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return actual / predicted;
}

double FirstDamping(double curvature, const DampingOptions& options) {
  if (options.initial != 0) return options.initial;
  // On a deep auto-encoder twice as much did as well and a third as much hardly helped; on a shallow one half and a third did as well as 1, and
  // twice as much cost a quarter more passes; on AN4 none of them made a difference.
  constexpr double kShare = 0.5;
  const double measured = std::isfinite(curvature) && curvature > 0 ? kShare * curvature : 1;
  return std::clamp(measured, options.min, options.max);
}

double NextDamping(double lambda, const SolveOutcome& outcome, const DampingOptions& options) {
  const double rho = !outcome.accepted && outcome.rho > 0 ? 0 : outcome.rho;
  return std::clamp(lambda * Factor(rho, outcome.damping_share, options), options.min, options.max);
}

int FirstCgLimit(const ConjugateGradientOptions& options) {
  const bool moves = options.initial_max_iterations > 0;
  return moves ? std::min(options.initial_max_iterations, options.max_iterations) : options.max_iterations;
}

Restraint NextRestraint(const Restraint& last, const SolveOutcome& outcome, const DampingOptions& damping,
                        const ConjugateGradientOptions& cg) {
  // On an auto-encoder 1.3 and 1.5 did as well, and a share of 0.03 to 0.3; on AN4, where damping has a sixth and more, CG stayed at 15.
  constexpr double kGrowth = 1.3, kLittle = 0.1;
  Restraint next{.damping = NextDamping(last.damping, outcome, damping), .cg_limit = last.cg_limit};
  if (next.damping > last.damping) {
    next.cg_limit = static_cast<int>(last.cg_limit / kGrowth);
  } else if (next.damping < last.damping && outcome.cut && outcome.damping_share < kLittle && last.cg_limit < cg.max_iterations) {
    next = {.damping = last.damping, .cg_limit = static_cast<int>(std::ceil(last.cg_limit * kGrowth))};
  }
  next.cg_limit = std::clamp(next.cg_limit, FirstCgLimit(cg), cg.max_iterations);
  return next;
}

}  // namespace hfopt
