#ifndef HFOPT_CORE_SAMPLE_SCHEDULE_H_
#define HFOPT_CORE_SAMPLE_SCHEDULE_H_

#include <cstdint>

#include "core/optimizer_options.h"
#include "core/sample.h"

namespace hfopt {

// Sizes are pure functions of their arguments, so a resumed run goes on where it was. All are at most the data there is.

int64_t FirstGradientSize(const DataLayout& layout, const SampleOptions& options);

// What an iteration tells of its gradient sample. Geometric growth reads the iteration alone, growth by variance size, norm and noise, growth by
// damping size, share and whether the step was accepted.
struct SampleOutcome {
  int64_t iteration = 0;  // 1 is the first
  int64_t size = 0;
  double gradient_norm = 0;
  double gradient_noise = 0;  // GradientAnswer::noise
  double damping_share = 0;   // SolveOutcome::damping_share
  bool accepted = true;
};

int64_t NextGradientSize(const DataLayout& layout, const SampleOptions& options, const SampleOutcome& last);

int64_t CurvatureSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size);

int64_t HeldOutSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size);

}  // namespace hfopt

#endif  // HFOPT_CORE_SAMPLE_SCHEDULE_H_
