#ifndef HFOPT_CORE_DERIVATIVE_CHECK_H_
#define HFOPT_CORE_DERIVATIVE_CHECK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/objective.h"

namespace hfopt {

struct DerivativeCheckOptions {
  int probes = 3;      // random directions for each check
  uint64_t seed = 1;
  int64_t examples = 256;  // of the training sample; all when there are fewer
};

struct DerivativeCheckResult {
  std::string name;    // "gradient", "symmetry", ...
  bool passed = false;
  double error = 0;    // relative; the worst over the probes
  double limit = 0;
  std::string meaning;  // what is compared, and what a failure usually means
};

// Checks an objective against itself at theta: the gradient against central differences of the loss; the Gauss-Newton product for
// symmetry (u'Gv = v'Gu), positive semidefiniteness and linearity; every answer for determinism (asked twice, equal bits); samples for
// consistency (two halves make the whole). A Status only when an evaluation cannot be had.
template <typename Scalar>
absl::StatusOr<std::vector<DerivativeCheckResult>> CheckDerivatives(Objective<Scalar>& objective,
                                                                    const Vector<Scalar>& theta,
                                                                    const DerivativeCheckOptions& options);

// The same at little cost, for answers of a run that is under way: one gradient, two dozen losses, and three products along it, of `sample`, which
// has a few examples. Finds what is wrong by a sign or a factor ("gradient", "semidefinite"), and means that were answered in the place of sums
// ("samples"), not what is wrong in a few parameters. In doubt an answer passes: where the losses say too little, or not the same at different steps.
template <typename Scalar>
absl::StatusOr<std::vector<DerivativeCheckResult>> SpotCheckDerivatives(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                                        const Sample& sample);

}  // namespace hfopt

#endif  // HFOPT_CORE_DERIVATIVE_CHECK_H_
