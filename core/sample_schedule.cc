#include "core/sample_schedule.h"

#include <algorithm>
#include <cmath>

namespace hfopt {
namespace {

// ceil(size), at most `most`, also where `size` is too large for an integer.
int64_t CeilAtMost(double size, int64_t most) {
  return size < static_cast<double>(most) ? static_cast<int64_t>(std::ceil(size)) : most;
}

// How much of geometric growth a sample needs, a tenth to 1. Damping makes up for what the held-out data do not confirm of the model's promise, and with
// a sample that is too small that is its noise: damping holds little where a small sample will do. All of it after a step that was rejected, and where
// the share is none (NaN of a solve without a step, negative of an indefinite product).
double ShareOfGrowth(const SampleOutcome& last) {
  // On AN4 damping holds 0.3 to 0.8 from the first iteration to the last (by share 0.25 to 0.75), and half the growth costs up to a seventh more passes;
  // on auto-encoders it holds 0.2 to 0.45, and half the growth saves half the passes. Fourth power and two fifths were the best on both: with a half AN4
  // is slower, with the first or second power auto-encoders are, and with a threshold alone their samples may never grow. The least growth brings all
  // data in the end.
  constexpr double kMuch = 0.4, kLeast = 0.1;
  const bool holds_little = last.damping_share >= 0 && last.damping_share < kMuch;
  if (!last.accepted || !holds_little) return 1;
  return std::max(kLeast, std::pow(last.damping_share / kMuch, 4));
}

}  // namespace

int64_t FirstGradientSize(const DataLayout& layout, const SampleOptions& options) {
  const int64_t all = layout.training_examples;
  return options.initial_gradient_examples == 0 ? all : std::min(all, options.initial_gradient_examples);
}

int64_t NextGradientSize(const DataLayout& layout, const SampleOptions& options, const SampleOutcome& last) {
  const int64_t all = layout.training_examples;
  const int64_t first = FirstGradientSize(layout, options);
  if (first == all) return all;
  switch (options.growth) {
    case SampleGrowth::kGeometric:
      return CeilAtMost(first * std::pow(options.growth_factor, static_cast<double>(last.iteration)), all);
    case SampleGrowth::kVariance: {
      // Keep S while noise^2 <= (theta |g|)^2, with noise^2 = sum(Var) / |S|; otherwise |S| <- sum(Var) / (theta |g|)^2.
      const double ratio = last.gradient_noise / (options.variance_tolerance * last.gradient_norm);
      return ratio > 1 ? CeilAtMost(static_cast<double>(last.size) * ratio * ratio, all) : std::min(last.size, all);
    }
    case SampleGrowth::kDamping:
      return CeilAtMost(static_cast<double>(last.size) * (1 + (options.growth_factor - 1) * ShareOfGrowth(last)), all);
  }
  return all;
}

int64_t CurvatureSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size) {
  const int64_t fraction = CeilAtMost(options.curvature_fraction * static_cast<double>(gradient_size), gradient_size);
  return std::min(layout.training_examples, std::max(options.min_curvature_examples, fraction));
}

int64_t HeldOutSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size) {
  const int64_t all = layout.held_out_examples;
  if (options.held_out_fraction == 0 || gradient_size >= layout.training_examples) return all;
  const int64_t fraction = CeilAtMost(options.held_out_fraction * static_cast<double>(gradient_size), all);
  return std::min(all, std::max(options.min_held_out_examples, fraction));
}

}  // namespace hfopt
