#include "core/termination.h"

#include "absl/strings/str_cat.h"

namespace hfopt {

absl::string_view TerminationReasonName(TerminationReason reason) {
  switch (reason) {
    case TerminationReason::kConverged: return "CONVERGED";
    case TerminationReason::kHeldOutStalled: return "HELD_OUT_STALLED";
    case TerminationReason::kTargetReached: return "TARGET_REACHED";
    case TerminationReason::kIterationBudget: return "ITERATION_BUDGET";
    case TerminationReason::kProductBudget: return "PRODUCT_BUDGET";
    case TerminationReason::kExamplePassBudget: return "EXAMPLE_PASS_BUDGET";
    case TerminationReason::kTooManyRejections: return "TOO_MANY_REJECTIONS";
    case TerminationReason::kWallTimeBudget: return "WALL_TIME_BUDGET";
    case TerminationReason::kCancelled: return "CANCELLED";
  }
  return "UNKNOWN";
}

template <typename Scalar>
std::optional<Termination> CheckTermination(const OptimizerState<Scalar>& state, const DataLayout& layout,
                                            const StopOptions& options) {
  if (state.gradient_examples >= layout.training_examples && state.gradient_norm <= options.gradient_tolerance) {
    return Termination{TerminationReason::kConverged,
                       absl::StrCat("gradient norm ", state.gradient_norm, " <= ", options.gradient_tolerance)};
  }
  if (state.held_out_examples >= layout.held_out_examples && state.held_out_loss <= options.target_loss) {
    return Termination{TerminationReason::kTargetReached,
                       absl::StrCat("held-out loss ", state.held_out_loss, " <= ", options.target_loss)};
  }
  if (options.max_rejections > 0 && state.consecutive_rejections >= options.max_rejections) {
    return Termination{TerminationReason::kTooManyRejections,
                       absl::StrCat(state.consecutive_rejections, " steps in a row were rejected; lambda is ", state.damping)};
  }
  if (options.patience > 0 && state.stalled_iterations >= options.patience) {
    return Termination{TerminationReason::kHeldOutStalled,
                       absl::StrCat("held-out loss ", state.held_out_loss, " fell by less than ",
                                    100 * options.min_improvement, " % in each of ", state.stalled_iterations,
                                    " iterations")};
  }
  if (options.max_iterations > 0 && state.iteration >= options.max_iterations) {
    return Termination{TerminationReason::kIterationBudget, absl::StrCat(state.iteration, " iterations")};
  }
  if (options.max_products > 0 && state.cost.products >= options.max_products) {
    return Termination{TerminationReason::kProductBudget, absl::StrCat(state.cost.products, " Gauss-Newton products")};
  }
  const double passes = state.cost.ExamplePasses(layout.training_examples);
  if (options.max_example_passes > 0 && passes >= options.max_example_passes) {
    return Termination{TerminationReason::kExamplePassBudget, absl::StrCat(passes, " example-passes")};
  }
  return std::nullopt;
}

template std::optional<Termination> CheckTermination<float>(const OptimizerState<float>&, const DataLayout&,
                                                            const StopOptions&);
template std::optional<Termination> CheckTermination<double>(const OptimizerState<double>&, const DataLayout&,
                                                             const StopOptions&);

}  // namespace hfopt
