#ifndef HFOPT_CORE_LINE_SEARCH_H_
#define HFOPT_CORE_LINE_SEARCH_H_

#include "absl/status/statusor.h"
#include "core/objective.h"

namespace hfopt {

struct LineSearchProblem {
  double start_loss = 0;  // L(theta)
  double slope = 0;       // c min(g'd, 0): what a unit step must gain, at least
  double shrink = 0.8;
  int max_tries = 60;
  int batch = 4;  // losses asked for in one exchange
};

struct LineSearchResult {
  double step = 0;    // alpha; 0: no step was accepted
  LossAnswer answer;  // at theta + alpha d
  int losses_evaluated = 0;
};

// Armijo backtracking: the first alpha in shrink, shrink^2, ... for which L(theta + alpha d) < L(theta) and <= L(theta) + alpha slope.
// The unit step has been tried by the caller. The answer does not depend on `batch`.
template <typename Scalar>
absl::StatusOr<LineSearchResult> BacktrackAlongLine(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                    const Vector<Scalar>& direction, const Sample& sample,
                                                    const LineSearchProblem& problem);

// What is not finite is not accepted.
bool IsSufficientDecrease(const LineSearchProblem& problem, double step, double loss);

}  // namespace hfopt

#endif  // HFOPT_CORE_LINE_SEARCH_H_
