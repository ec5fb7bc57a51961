#ifndef HFOPT_CORE_SAMPLE_SCHEDULE_H_
#define HFOPT_CORE_SAMPLE_SCHEDULE_H_

#include <cstdint>

#include "core/optimizer_options.h"
#include "core/sample.h"

namespace hfopt {

// Sizes are pure functions of their arguments, so a resumed run goes on where it was. All are at most the data there is.

int64_t FirstGradientSize(const DataLayout& layout, const SampleOptions& options);

// The size after iteration `iteration` (1 is the first), whose sample had `size` examples, a gradient of norm `gradient_norm` and the
// noise `gradient_noise` (GradientAnswer::noise). Geometric growth depends on the iteration alone.
int64_t NextGradientSize(const DataLayout& layout, const SampleOptions& options, int64_t iteration, int64_t size,
                         double gradient_norm, double gradient_noise);

int64_t CurvatureSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size);

int64_t HeldOutSize(const DataLayout& layout, const SampleOptions& options, int64_t gradient_size);

}  // namespace hfopt

#endif  // HFOPT_CORE_SAMPLE_SCHEDULE_H_
