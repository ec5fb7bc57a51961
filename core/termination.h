#ifndef HFOPT_CORE_TERMINATION_H_
#define HFOPT_CORE_TERMINATION_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "core/optimizer_options.h"
#include "core/optimizer_state.h"
#include "core/sample.h"

namespace hfopt {

// How optimization ended; what could not be done is a Status instead. The last two are for the caller, who has a clock and users.
enum class TerminationReason {
  kConverged,
  kHeldOutStalled,
  kTargetReached,
  kIterationBudget,
  kProductBudget,
  kExamplePassBudget,
  kTooManyRejections,
  kWallTimeBudget,
  kCancelled,
};

// "CONVERGED", as in the proto enum without its prefix.
absl::string_view TerminationReasonName(TerminationReason reason);

struct Termination {
  TerminationReason reason = TerminationReason::kConverged;
  std::string detail;  // one sentence with the numbers
};

// Whether a run in this state is to end. Budgets are checked between iterations, so the last one may go over.
template <typename Scalar>
std::optional<Termination> CheckTermination(const OptimizerState<Scalar>& state, const DataLayout& layout,
                                            const StopOptions& options);

}  // namespace hfopt

#endif  // HFOPT_CORE_TERMINATION_H_
