#include "core/damping.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hfopt {
namespace {

double Factor(double rho, const DampingOptions& options) {
  switch (options.rule) {
    case DampingRule::kLevenbergMarquardt:
      if (!(rho >= 0.25)) return 1.5;
      return rho > 0.75 ? 1 / 1.5 : 1;
    case DampingRule::kContinuous: {
      // Picked on a speech task; they held on an auto-encoder and on physics-informed networks.
      constexpr double kLargestDecrease = 1.0 / 8, kLargestIncrease = 4;
      if (std::isnan(rho)) return kLargestIncrease;
      return std::clamp(std::pow(10, options.target_ratio - rho), kLargestDecrease, kLargestIncrease);
    }
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

double NextDamping(double lambda, double rho, bool accepted, const DampingOptions& options) {
  if (!accepted && rho > 0) rho = 0;
  return std::clamp(lambda * Factor(rho, options), options.min, options.max);
}

}  // namespace hfopt
