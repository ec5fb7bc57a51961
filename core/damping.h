#ifndef HFOPT_CORE_DAMPING_H_
#define HFOPT_CORE_DAMPING_H_

#include "core/optimizer_options.h"

namespace hfopt {

// rho = actual / predicted, both being positive for a step that improves. NaN unless both are finite and predicted > 0.
double ReductionRatio(double actual, double predicted);

// lambda for the first solve: options.initial, or, where that is 0, half of `curvature` = g'Gg / |g|^2, which is damping in the measure of the
// loss; 1 where there is none.
double FirstDamping(double curvature, const DampingOptions& options);

// What keeps d_N short enough for q to be trusted: lambda, and the number of iterations at which CG is cut.
struct Restraint {
  double damping = 0;
  int cg_limit = 0;
};

// What is known of a solve when the next is to be restrained.
struct SolveOutcome {
  double rho = 0;
  bool accepted = false;
  bool cut = false;           // CG ended at its limit
  double damping_share = 0;  // lambda |d_N|^2 / d_N'(G + lambda I)d_N: what damping has of the curvature along d_N
};

// lambda for the next solve. NaN in rho counts as the worst outcome. A rejected step raises lambda as rho = 0 would, at least: with
// kContinuousByShare that is little where the share is near 1.
double NextDamping(double lambda, const SolveOutcome& outcome, const DampingOptions& options);

int FirstCgLimit(const ConjugateGradientOptions& options);

// NextDamping, and a limit that takes over where damping has no more to give: if lambda would fall, but already holds less than a tenth of
// the curvature along d_N, and the limit cut the solve, then the limit grows by 1.3 and lambda stays. When lambda rises the limit falls by
// as much. The limit stays within initial_max_iterations and max_iterations; without the former it is the latter.
Restraint NextRestraint(const Restraint& last, const SolveOutcome& outcome, const DampingOptions& damping,
                        const ConjugateGradientOptions& cg);

}  // namespace hfopt

#endif  // HFOPT_CORE_DAMPING_H_
