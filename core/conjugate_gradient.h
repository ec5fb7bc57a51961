#ifndef HFOPT_CORE_CONJUGATE_GRADIENT_H_
#define HFOPT_CORE_CONJUGATE_GRADIENT_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/curvature_pairs.h"
#include "core/lbfgs_preconditioner.h"
#include "core/objective.h"
#include "core/optimizer_options.h"
#include "core/vector.h"

namespace hfopt {

// Why a solve ended.
enum class CgStop {
  kSmallProgress,              // Martens' rule
  kMaxIterations,
  kResidual,                   // |r| <= residual_tolerance |g|, after a step at least
  kNoise,                      // |r| under the noise of the gradient, after a step at least
  kNonPositiveCurvature,       // p'(G + lambda I)p <= 0: the model's product is wrong, or rounding has taken over
  kPreconditionerNotPositive,  // r'Mr <= 0
  kNonFinite,                  // a NaN or infinity in a product
  kZeroResidual,               // solved exactly
};

// "SMALL_PROGRESS", as in the proto enum without its prefix.
absl::string_view CgStopName(CgStop stop);

template <typename Scalar>
struct CgIterate {
  int iteration = 0;  // x after this many products, counted without the one for the warm start
  Vector<Scalar> x;
  double model_value = 0;  // q(x)
};

template <typename Scalar>
struct CgResult {
  // Iterates ceil(ratio^j), j = 0, 1, ..., and the last one, in ascending order. Never empty; when CG could not take a single
  // step it holds the starting point as iteration 0, or zero when that overflows.
  std::vector<CgIterate<Scalar>> kept;
  std::vector<double> model_values;  // phi_0 .. phi_N
  int iterations = 0;                // N
  int products = 0;                  // N, or N + 1 with a warm start
  CgStop stop = CgStop::kMaxIterations;
  double initial_residual = 0;  // |r_0|
  double final_residual = 0;    // |r_N|; NaN or infinite when the step after it overflowed
  PairList<Scalar> pairs;         // evenly spaced over the solve; empty unless L-BFGS is on
  int pairs_used = 0;             // by the preconditioner in the last iteration
  int pairs_skipped = 0;          // for lack of curvature

  const CgIterate<Scalar>& last() const { return kept.back(); }
};

// The linear system: minimise q(d) = g'd + d'(G + damping I)d / 2.
template <typename Scalar>
struct CgProblem {
  CurvatureProduct<Scalar>& G;
  double damping = 0;
  const Vector<Scalar>& gradient;      // g
  const Vector<Scalar>& start;         // d_0; empty: zero, and no product is spent on it. With a residual stop, zero too if q(d_0) > 0
  double gradient_noise = 0;           // for ConjugateGradientOptions::noise_factor
  const Vector<Scalar>& diagonal;      // D of the preconditioner, or empty
  // Pairs of the solve before, for the preconditioner. In flexible mode the pairs of this solve take their places as it runs.
  const PairList<Scalar>& pairs;
};

// Preconditioned conjugate gradient, flexible (Notay 2000) when the preconditioner changes during the solve. One product an iteration. The
// error is the product's own; numerical trouble is a stop reason, and what was reached before it is the result.
template <typename Scalar>
absl::StatusOr<CgResult<Scalar>> MinimizeQuadratic(const CgProblem<Scalar>& problem,
                                                   const ConjugateGradientOptions& options,
                                                   const PreconditionerOptions& preconditioner);

}  // namespace hfopt

#endif  // HFOPT_CORE_CONJUGATE_GRADIENT_H_
