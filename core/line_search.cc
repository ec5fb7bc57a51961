#include "core/line_search.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/status_macros.h"

namespace hfopt {

bool IsSufficientDecrease(const LineSearchProblem& problem, double step, double loss) {
  return std::isfinite(loss) && loss < problem.start_loss && loss <= problem.start_loss + step * problem.slope;
}

template <typename Scalar>
absl::StatusOr<LineSearchResult> BacktrackAlongLine(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                    const Vector<Scalar>& direction, const Sample& sample,
                                                    const LineSearchProblem& problem) {
  LineSearchResult result;
  double step = 1;
  while (result.losses_evaluated < problem.max_tries) {
    std::vector<Trial<Scalar>> trials(std::min(problem.batch, problem.max_tries - result.losses_evaluated));
    for (Trial<Scalar>& trial : trials) trial = {&direction, step *= problem.shrink};
    HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> answers, (objective.Losses(theta, trials, sample)));
    result.losses_evaluated += static_cast<int>(trials.size());
    for (size_t i = 0; i < trials.size(); ++i) {
      if (IsSufficientDecrease(problem, trials[i].step, answers[i].loss)) {
        result.step = trials[i].step;
        result.answer = std::move(answers[i]);
        return result;
      }
    }
  }
  return result;
}

template absl::StatusOr<LineSearchResult> BacktrackAlongLine<float>(Objective<float>&, const Vector<float>&,
                                                                    const Vector<float>&, const Sample&,
                                                                    const LineSearchProblem&);
template absl::StatusOr<LineSearchResult> BacktrackAlongLine<double>(Objective<double>&, const Vector<double>&,
                                                                     const Vector<double>&, const Sample&,
                                                                     const LineSearchProblem&);

}  // namespace hfopt
