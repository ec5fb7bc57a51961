#include "core/sample_schedule.h"

#include <algorithm>
#include <cmath>

namespace hfopt {
namespace {

// ceil(size), at most `most`, also where `size` is too large for an integer.
int64_t CeilAtMost(double size, int64_t most) {
  return size < static_cast<double>(most) ? static_cast<int64_t>(std::ceil(size)) : most;
}

}  // namespace

int64_t FirstGradientSize(const DataLayout& layout, const SampleOptions& options) {
  const int64_t all = layout.training_examples;
  return options.initial_gradient_examples == 0 ? all : std::min(all, options.initial_gradient_examples);
}

int64_t NextGradientSize(const DataLayout& layout, const SampleOptions& options, int64_t iteration, int64_t size,
                         double gradient_norm, double gradient_noise) {
  const int64_t all = layout.training_examples;
  const int64_t first = FirstGradientSize(layout, options);
  if (first == all) return all;
  switch (options.growth) {
    case SampleGrowth::kGeometric:
      return CeilAtMost(first * std::pow(options.growth_factor, static_cast<double>(iteration)), all);
    case SampleGrowth::kVariance: {
      // Keep S while noise^2 <= (theta |g|)^2, with noise^2 = sum(Var) / |S|; otherwise |S| <- sum(Var) / (theta |g|)^2.
      const double ratio = gradient_noise / (options.variance_tolerance * gradient_norm);
      return ratio > 1 ? CeilAtMost(static_cast<double>(size) * ratio * ratio, all) : std::min(size, all);
    }
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
