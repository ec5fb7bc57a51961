#include "core/cg_backtracking.h"

#include <cmath>
#include <utility>

#include "core/status_macros.h"

namespace hfopt {

template <typename Scalar>
absl::StatusOr<BacktrackingResult> BacktrackOverIterates(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                         const std::vector<CgIterate<Scalar>>& kept,
                                                         const Sample& sample, const LossAnswer* start) {
  BacktrackingResult result{.index = static_cast<int>(kept.size()) - 1};
  // The last two iterates are needed in any case, so the first exchange asks for both, and for L(theta) if that is not known.
  std::vector<Trial<Scalar>> trials;
  for (int i = result.index; i >= 0 && i > result.index - 2; --i) trials.push_back({&kept[i].x});
  if (start == nullptr) trials.push_back({nullptr});
  HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> answers, (objective.Losses(theta, trials, sample)));
  result.losses_evaluated = static_cast<int>(trials.size());
  result.start = start == nullptr ? answers.back() : *start;
  result.chosen = answers[0];
  result.last_loss = answers[0].loss;

  LossAnswer next = result.index > 0 ? std::move(answers[1]) : LossAnswer{};
  const auto improves = [](double loss, double on) { return !std::isfinite(on) || (std::isfinite(loss) && loss < on); };
  while (result.index > 0 && improves(next.loss, result.chosen.loss)) {
    --result.index;
    result.chosen = std::move(next);
    if (result.index == 0) break;
    const Trial<Scalar> trial{&kept[result.index - 1].x};
    HFOPT_ASSIGN_OR_RETURN(answers, (objective.Losses(theta, {&trial, 1}, sample)));
    ++result.losses_evaluated;
    next = std::move(answers[0]);
  }
  return result;
}

template absl::StatusOr<BacktrackingResult> BacktrackOverIterates<float>(Objective<float>&, const Vector<float>&,
                                                                         const std::vector<CgIterate<float>>&,
                                                                         const Sample&, const LossAnswer*);
template absl::StatusOr<BacktrackingResult> BacktrackOverIterates<double>(Objective<double>&, const Vector<double>&,
                                                                          const std::vector<CgIterate<double>>&,
                                                                          const Sample&, const LossAnswer*);

}  // namespace hfopt
