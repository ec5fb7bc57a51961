#ifndef HFOPT_CORE_DAMPING_H_
#define HFOPT_CORE_DAMPING_H_

#include "core/optimizer_options.h"

namespace hfopt {

// rho = actual / predicted, both being positive for a step that improves. NaN unless both are finite and predicted > 0.
double ReductionRatio(double actual, double predicted);

// lambda for the next solve. NaN in rho counts as the worst outcome. A rejected step raises lambda as rho = 0 would, at least.
double NextDamping(double lambda, double rho, bool accepted, const DampingOptions& options);

}  // namespace hfopt

#endif  // HFOPT_CORE_DAMPING_H_
