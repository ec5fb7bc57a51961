// Letters: B = G + lambda I, b = -g, x iterate, r = b - Bx residual, M preconditioner, z = Mr, p direction,
// phi = q(x) = x'Bx/2 - b'x = -x'(r + b)/2, which needs no product of its own.

#include "core/conjugate_gradient.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/status_macros.h"

namespace hfopt {
namespace {

// Martens 2010, sec. 4.4, applied to phi_0 .. phi_i. Three public implementations drop the factor k and stop far too late.
bool ProgressIsSmall(const std::vector<double>& phi, double tolerance) {
  const int i = static_cast<int>(phi.size()) - 1;
  const int k = std::max(10, i / 10);
  return tolerance > 0 && i > k && phi[i] < 0 && (phi[i] - phi[i - k]) / phi[i] < k * tolerance;
}

// The directions that a new one is made conjugate to, newest last. One direction's buffers serve for ever.
template <typename Scalar>
class ConjugateDirections {
 public:
  struct Direction {
    Vector<Scalar> p, Gp;
    double pBp = 0;
  };

  explicit ConjugateDirections(int depth) : ring_(depth) {}

  Direction& newest() { return ring_[(count_ - 1) % ring_.size()]; }

  // p = z + beta p_old, for a fixed preconditioner.
  Direction& Continue(const Vector<Scalar>& z, double beta) {
    if (count_ == 0) return Next() = {.p = z};
    Xpay(z, beta, newest().p);
    return newest();
  }

  // p = z - sum_k (z'Bp_k / p_k'Bp_k) p_k over the last directions (Notay 2000, eq. 2.1). With one direction the coefficient equals
  // z'(r - r_old) / (z_old'r_old), the Polak-Ribiere form.
  Direction& Orthogonalize(const Vector<Scalar>& z, double damping) {
    const size_t known = std::min(count_, ring_.size());
    std::vector<double> coefficients(known);
    for (size_t k = 0; k < known; ++k) {
      const Direction& d = ring_[k];
      coefficients[k] = -(Dot(z, d.Gp) + damping * Dot(z, d.p)) / d.pBp;
    }
    const size_t slot = count_ % ring_.size();
    Direction& next = Next();
    if (slot < known) {
      Xpay(z, coefficients[slot], next.p);
    } else {
      next.p = z;
    }
    for (size_t k = 0; k < known; ++k) {
      if (k != slot) Axpy(coefficients[k], ring_[k].p, next.p);
    }
    return next;
  }

 private:
  Direction& Next() { return ring_[count_++ % ring_.size()]; }

  std::vector<Direction> ring_;
  size_t count_ = 0;
};

// The pairs of the running solve after as many of the newest old ones as still find a place.
template <typename Scalar>
PairList<Scalar> FillUp(const PairList<Scalar>& old_pairs, const PairList<Scalar>& new_pairs, int memory) {
  const size_t room = memory - new_pairs.size();
  PairList<Scalar> pairs(old_pairs.end() - std::min(room, old_pairs.size()), old_pairs.end());
  pairs.insert(pairs.end(), new_pairs.begin(), new_pairs.end());
  return pairs;
}

}  // namespace

absl::string_view CgStopName(CgStop stop) {
  switch (stop) {
    case CgStop::kSmallProgress: return "SMALL_PROGRESS";
    case CgStop::kMaxIterations: return "MAX_ITERATIONS";
    case CgStop::kResidual: return "RESIDUAL";
    case CgStop::kNoise: return "NOISE";
    case CgStop::kNonPositiveCurvature: return "NON_POSITIVE_CURVATURE";
    case CgStop::kPreconditionerNotPositive: return "PRECONDITIONER_NOT_POSITIVE";
    case CgStop::kNonFinite: return "NON_FINITE";
    case CgStop::kZeroResidual: return "ZERO_RESIDUAL";
  }
  return "UNKNOWN";
}

template <typename Scalar>
absl::StatusOr<CgResult<Scalar>> MinimizeQuadratic(const CgProblem<Scalar>& problem,
                                                   const ConjugateGradientOptions& options,
                                                   const PreconditionerOptions& preconditioner) {
  const Vector<Scalar>& g = problem.gradient;
  const double lambda = problem.damping;
  const double gradient_norm = Norm(g);
  CgResult<Scalar> result;

  const bool lbfgs = preconditioner.lbfgs != LbfgsMode::kNone;
  const bool flexible = preconditioner.lbfgs == LbfgsMode::kFlexible;
  LbfgsPreconditioner<Scalar> M(lambda, preconditioner.min_pair_curvature, problem.diagonal);
  if (lbfgs) M.SetPairs(problem.pairs);
  EvenlySpacedPairs<Scalar> new_pairs(preconditioner.memory);
  ConjugateDirections<Scalar> directions(flexible ? options.orthogonalization_depth : 1);

  // x = d_0, r = b - Bx.
  Vector<Scalar> x = problem.start;
  Vector<Scalar> r = -g;
  if (x.size() == 0) {
    x.setZero(g.size());
  } else {
    Vector<Scalar> Gx;
    HFOPT_RETURN_IF_ERROR(problem.G.Apply(x, Gx));
    ++result.products;
    Axpy(-1, Gx, r);
    Axpy(-lambda, x, r);
  }
  double phi = -(Dot(x, r) - Dot(x, g)) / 2;
  // From a start worse than none a residual stop would end the solve with q above zero, and a d_N far too long would outlive solve after
  // solve while lambda pays for it.
  if (phi > 0 && options.residual_tolerance > 0) {
    x.setZero();
    r = -g;
    phi = 0;
  }
  double rr = Dot(r, r);
  result.model_values.push_back(phi);
  result.initial_residual = std::sqrt(rr);

  // An overflow in x need not show in r.
  const auto is_finite = [&] { return std::isfinite(rr) && std::isfinite(result.model_values.back()); };
  const auto keep = [&](int i) { result.kept.push_back({i, x, result.model_values[i]}); };
  double next_kept = 1;  // ratio^j
  double rz_old = 0;
  Vector<Scalar> z_buffer;
  int i = 0;
  while (true) {
    // Why x_i is the last iterate, if it is.
    if (!is_finite()) { result.stop = CgStop::kNonFinite; break; }
    if (rr == 0) { result.stop = CgStop::kZeroResidual; break; }
    // Not before the first step: an iteration of HF without one would count as rejected.
    if (i > 0 && std::sqrt(rr) <= options.residual_tolerance * gradient_norm) { result.stop = CgStop::kResidual; break; }
    if (i > 0 && std::sqrt(rr) <= options.noise_factor * problem.gradient_noise) { result.stop = CgStop::kNoise; break; }
    if (ProgressIsSmall(result.model_values, options.progress_tolerance)) { result.stop = CgStop::kSmallProgress; break; }
    if (i == options.max_iterations) { result.stop = CgStop::kMaxIterations; break; }

    // The next direction.
    if (!M.is_identity()) M.Apply(r, z_buffer);
    const Vector<Scalar>& z = M.is_identity() ? r : z_buffer;
    const double rz = M.is_identity() ? rr : Dot(r, z);
    if (!(rz > 0)) { result.stop = CgStop::kPreconditionerNotPositive; break; }
    auto& d = flexible ? directions.Orthogonalize(z, lambda) : directions.Continue(z, rz / rz_old);
    rz_old = rz;

    // The step: the minimum of q along p.
    const double pp = Dot(d.p, d.p);
    if (!std::isfinite(pp)) { result.stop = CgStop::kNonFinite; break; }
    HFOPT_RETURN_IF_ERROR(problem.G.Apply(d.p, d.Gp));
    ++result.products;
    d.pBp = Dot(d.p, d.Gp) + lambda * pp;
    if (!std::isfinite(d.pBp)) { result.stop = CgStop::kNonFinite; break; }
    if (!(d.pBp > 0)) { result.stop = CgStop::kNonPositiveCurvature; break; }
    // r'p = r'z, but for what truncation and rounding leave of the old directions in r.
    const double rp = flexible ? Dot(r, d.p) : rz;
    const CgStepSums sums = CgStep(rp / d.pBp, lambda, d.p, d.Gp, g, x, r);
    rr = sums.rr;
    ++i;
    result.model_values.push_back(-sums.xr / 2);
    if (i == std::ceil(next_kept) && is_finite()) keep(i);
    while (std::ceil(next_kept) <= i) next_kept *= options.kept_iterate_ratio;
    if (lbfgs && new_pairs.Offer(i - 1, d.p, d.Gp) && flexible) {
      M.SetPairs(FillUp(problem.pairs, new_pairs.pairs(), preconditioner.memory));
    }
  }
  // Overflow in the last step spoils x: the result ends with the last kept iterate.
  if (is_finite() && (result.kept.empty() || result.kept.back().iteration != i)) keep(i);
  if (result.kept.empty()) {
    x.setZero(g.size());
    result.kept.push_back({0, std::move(x), 0});
    result.model_values = {0};
    rr = gradient_norm * gradient_norm;
  }
  result.iterations = result.kept.back().iteration;
  result.model_values.resize(result.iterations + 1);
  result.final_residual = std::sqrt(rr);
  result.pairs = new_pairs.pairs();
  result.pairs_used = M.num_pairs();
  result.pairs_skipped = M.num_skipped();
  return result;
}

#define HFOPT_INSTANTIATE(Scalar)                                                                    \
  template absl::StatusOr<CgResult<Scalar>> MinimizeQuadratic<Scalar>(                               \
      const CgProblem<Scalar>&, const ConjugateGradientOptions&, const PreconditionerOptions&);
HFOPT_INSTANTIATE(float)
HFOPT_INSTANTIATE(double)
#undef HFOPT_INSTANTIATE

}  // namespace hfopt
