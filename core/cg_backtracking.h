#ifndef HFOPT_CORE_CG_BACKTRACKING_H_
#define HFOPT_CORE_CG_BACKTRACKING_H_

#include <vector>

#include "absl/status/statusor.h"
#include "core/conjugate_gradient.h"
#include "core/objective.h"

namespace hfopt {

struct BacktrackingResult {
  int index = 0;         // of the chosen iterate in `kept`
  LossAnswer chosen;     // at the chosen iterate
  double last_loss = 0;  // at the last iterate d_N
  LossAnswer start;      // at theta
  int losses_evaluated = 0;
};

// From d_N towards d_1 over the kept iterates while the loss on `sample` improves (Martens 2010, sec. 4.6). A non-finite loss is
// worse than any other. `start` is L(theta) when it is known, or null: then it is asked for in the first exchange.
template <typename Scalar>
absl::StatusOr<BacktrackingResult> BacktrackOverIterates(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                         const std::vector<CgIterate<Scalar>>& kept,
                                                         const Sample& sample, const LossAnswer* start);

}  // namespace hfopt

#endif  // HFOPT_CORE_CG_BACKTRACKING_H_
