#ifndef HFOPT_CORE_HESSIAN_FREE_H_
#define HFOPT_CORE_HESSIAN_FREE_H_

#include "absl/status/statusor.h"
#include "core/iteration_report.h"
#include "core/objective.h"
#include "core/optimizer_options.h"
#include "core/optimizer_state.h"

namespace hfopt {

// The state before the first iteration. `theta` has n finite elements.
template <typename Scalar>
OptimizerState<Scalar> InitialState(Vector<Scalar> theta, const DataLayout& layout, const OptimizerOptions& options);

template <typename Scalar>
struct Iteration {
  OptimizerState<Scalar> state;
  IterationReport report;
};

// What the gradients of an iteration are asked for besides, because some rule of these options needs it.
GradientExtras ExtrasFor(const OptimizerOptions& options, bool has_second_moment);

// One iteration of Hessian-free optimization: Kingsbury, Sainath & Soltau 2012, Algorithm 1, with the preconditioning and sampling of
// Sainath et al. 2013. A pure function: `state` is left as it is, and on error nothing has happened. `options` are valid.
// core/README.md maps each line of the paper to the code.
template <typename Scalar>
absl::StatusOr<Iteration<Scalar>> Iterate(const OptimizerState<Scalar>& state, Objective<Scalar>& objective,
                                          const OptimizerOptions& options);

}  // namespace hfopt

#endif  // HFOPT_CORE_HESSIAN_FREE_H_
