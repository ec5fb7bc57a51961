#include "core/derivative_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "core/status_macros.h"

namespace hfopt {
namespace {

// Directions of independent signs, +1 or -1: SplitMix64 (Steele, Lea & Flood 2014), the same on every platform.
class SignDirections {
 public:
  explicit SignDirections(uint64_t seed) : state_(seed) {}

  template <typename Scalar>
  Vector<Scalar> Next(int64_t n) {
    Vector<Scalar> v(n);
    for (int64_t i = 0; i < n; ++i) v[i] = (NextBits() >> 63) != 0 ? Scalar{1} : Scalar{-1};
    return v;
  }

 private:
  uint64_t NextBits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

// How far below zero the least curvature p'Gp / |p|^2 is that CG meets on Gx = v, relative to the largest |Gp| / |p|; 0 when none is.
// Random directions see little more than the trace. Those of CG find a single negative eigenvalue: p'Gp are the pivots of the
// LDL' factors of the Lanczos matrix.
template <typename Scalar>
absl::StatusOr<double> NegativeCurvature(CurvatureProduct<Scalar>& G, const Vector<Scalar>& v, double tolerance) {
  constexpr int kMaxProducts = 20;
  Vector<Scalar> r = v, p = v, Gp;
  double least = 0, most = 0, rr = Dot(r, r);
  for (int i = 0; i < kMaxProducts && rr > 0; ++i) {
    HFOPT_RETURN_IF_ERROR(G.Apply(p, Gp));
    const double pp = Dot(p, p), pGp = Dot(p, Gp);
    if (!std::isfinite(pGp)) return std::numeric_limits<double>::infinity();
    most = std::max(most, Norm(Gp) / std::sqrt(pp));
    least = std::min(least, pGp / pp);
    if (!(pGp > tolerance * most * pp)) break;  // negative, or a null space, where all is rounding
    Axpy(-rr / pGp, Gp, r);
    const double rr_old = std::exchange(rr, Dot(r, r));
    Xpay(r, rr / rr_old, p);
  }
  return most > 0 ? -least / most : 0;
}

double RelativeDifference(double a, double b, double scale) { return a == b ? 0 : std::abs(a - b) / scale; }

// |a - b| / |b|; infinite when NaN is involved, so that NaN never passes.
template <typename Scalar>
double RelativeDifference(const Vector<Scalar>& a, const Vector<Scalar>& b) {
  const Vector<Scalar> difference = a - b;
  const double error = Norm(difference) / std::max(Norm(b), std::numeric_limits<double>::min());
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

void Worsen(DerivativeCheckResult& result, double error) {
  if (!(error <= result.error)) result.error = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

// The smallest relative difference between u'g and central differences of the loss, over steps from large (truncation) to small
// (rounding): where the two errors balance cannot be known beforehand.
template <typename Scalar>
absl::StatusOr<double> GradientError(Objective<Scalar>& objective, const Vector<Scalar>& theta, const Sample& sample,
                                     const Vector<Scalar>& g, const Vector<Scalar>& u) {
  const double slope = Dot(u, g);
  // A direction nearly orthogonal to g has no slope to compare with; |g| is what a typical sign direction sees.
  const double scale = std::max(std::abs(slope), Norm(g));
  std::vector<Trial<Scalar>> trials;
  for (double h = 1e-1; h > 1e-7; h /= std::sqrt(10)) {
    trials.push_back({&u, h});
    trials.push_back({&u, -h});
  }
  HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> losses, (objective.Losses(theta, trials, sample)));
  double best = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < trials.size(); i += 2) {
    const double difference = (losses[i].loss - losses[i + 1].loss) / (2 * trials[i].step);
    const double error = RelativeDifference(difference, slope, scale);
    if (error < best) best = error;
  }
  return best;
}

Sample Half(const DataLayout& layout, const Sample& whole, bool second) {
  Sample half = whole;
  for (size_t s = 0; s < whole.windows.size(); ++s) {
    Window& w = half.windows[s];
    const int64_t first_count = w.count / 2;
    if (second) {
      const int64_t shard_size = layout.ShardSize(whole.data, static_cast<int>(s));
      w.begin = shard_size == 0 ? 0 : (w.begin + first_count) % shard_size;
      w.count -= first_count;
    } else {
      w.count = first_count;
    }
  }
  return half;
}

// The slope of the loss along the unit vector u by central differences; nothing where those of two steps do not agree. The steps change the loss
// by known parts of itself if `expected` is the slope, so that they fit parameters of every scale.
template <typename Scalar>
absl::StatusOr<std::optional<double>> MeasureSlope(Objective<Scalar>& objective, const Vector<Scalar>& theta, const Sample& sample, double loss,
                                                   const Vector<Scalar>& u, double expected) {
  constexpr double kAgreement = 0.02;
  const double smallest_part = sizeof(Scalar) == 4 ? 1e-3 : 1e-8;  // the differences have two digits left
  std::vector<Trial<Scalar>> trials;
  for (double part = 1e-1; part > smallest_part * 0.99; part *= sizeof(Scalar) == 4 ? std::sqrt(0.1) : 0.1) {
    const double step = part * std::abs(loss) / expected;
    trials.push_back({&u, step});
    trials.push_back({&u, -step});
  }
  HFOPT_ASSIGN_OR_RETURN(const std::vector<LossAnswer> losses, (objective.Losses(theta, trials, sample)));
  std::optional<double> slope;
  double best = kAgreement, coarser = std::numeric_limits<double>::quiet_NaN();
  for (size_t i = 0; i < trials.size(); i += 2) {
    const double finer = (losses[i].loss - losses[i + 1].loss) / (2 * trials[i].step);
    const double disagreement = std::abs(finer - coarser) / std::max(std::abs(finer), std::abs(coarser));
    if (disagreement < best) {
      best = disagreement;
      slope = finer;
    }
    coarser = finer;
  }
  return slope;
}

}  // namespace

template <typename Scalar>
absl::StatusOr<std::vector<DerivativeCheckResult>> CheckDerivatives(Objective<Scalar>& objective,
                                                                    const Vector<Scalar>& theta,
                                                                    const DerivativeCheckOptions& options) {
  const bool single = sizeof(Scalar) == 4;
  const int64_t n = theta.size();
  const DataLayout& layout = objective.layout();
  // Begins in the middle, so that the window wraps round wherever the sample is more than half of the data.
  const Sample sample = DrawSample(layout, DataSet::kTraining, options.examples, layout.training_examples / 2);
  SignDirections directions(options.seed);

  HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> gradient, objective.Gradient(theta, sample, {}));
  HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> gradient_again, objective.Gradient(theta, sample, {}));
  HFOPT_ASSIGN_OR_RETURN(auto G, objective.GaussNewtonAt(theta, sample));
  const Trial<Scalar> at_theta[2] = {};
  HFOPT_ASSIGN_OR_RETURN(const std::vector<LossAnswer> loss, (objective.Losses(theta, at_theta, sample)));

  // The limits are what correct models of both precisions stay well below, and mistakes of a factor or a missing term do not.
  DerivativeCheckResult loss_value{.name = "loss", .limit = single ? 1e-4 : 1e-9,
      .meaning = "loss answered with the gradient against the loss alone; they are computed from different data or formulas"};
  DerivativeCheckResult slope{.name = "gradient", .limit = single ? 2e-2 : 1e-5,
      .meaning = "u'g against central differences of the loss; the gradient is wrong, or a mean where a sum is due"};
  DerivativeCheckResult symmetry{.name = "symmetry", .limit = single ? 1e-3 : 1e-8,
      .meaning = "u'Gv against v'Gu; the product is not J'HJ (a transposed layer, a missing term)"};
  DerivativeCheckResult semidefinite{.name = "semidefinite", .limit = single ? 1e-4 : 1e-10,
      .meaning = "most negative p'Gp over the largest met; the product is the Hessian's, or has a wrong sign"};
  DerivativeCheckResult linearity{.name = "linearity", .limit = single ? 1e-3 : 1e-8,
      .meaning = "G(2u + v) against 2Gu + Gv; the product depends on earlier calls, or is a finite difference"};
  DerivativeCheckResult determinism{.name = "determinism", .limit = 0,
      .meaning = "1 when asking twice gives other bits; dropout, running averages, or sums in changing order"};
  DerivativeCheckResult consistency{.name = "samples", .limit = single ? 1e-3 : 1e-8,
      .meaning = "gradient and product of the sample against the sums over its halves; windows, weights, or means instead of sums"};

  Worsen(loss_value, RelativeDifference(gradient.loss, loss[0].loss, std::max(std::abs(loss[0].loss), 1e-300)));
  Worsen(determinism, gradient.gradient == gradient_again.gradient && gradient.loss == gradient_again.loss ? 0 : 1);
  Worsen(determinism, loss[0].loss == loss[1].loss ? 0 : 1);
  for (int probe = 0; probe < options.probes; ++probe) {
    const Vector<Scalar> u = directions.Next<Scalar>(n), v = directions.Next<Scalar>(n);
    HFOPT_ASSIGN_OR_RETURN(const double error, GradientError(objective, theta, sample, gradient.gradient, u));
    Worsen(slope, error);

    Vector<Scalar> Gu, Gv, Gw, Gu_again;
    const Vector<Scalar> w = 2 * u + v;
    HFOPT_RETURN_IF_ERROR(G->Apply(u, Gu));
    HFOPT_RETURN_IF_ERROR(G->Apply(v, Gv));
    HFOPT_RETURN_IF_ERROR(G->Apply(w, Gw));
    HFOPT_RETURN_IF_ERROR(G->Apply(u, Gu_again));
    // For independent signs u, u'Gv is typically |Gv|, and |u||Gv| is far larger.
    const double typical = std::max({Norm(Gu), Norm(Gv), std::numeric_limits<double>::min()});
    Worsen(symmetry, RelativeDifference(Dot(u, Gv), Dot(v, Gu), typical));
    const Vector<Scalar> combined = 2 * Gu + Gv;
    Worsen(linearity, RelativeDifference(Gw, combined));
    Worsen(determinism, Gu == Gu_again ? 0 : 1);
  }

  const Vector<Scalar> v = directions.Next<Scalar>(n);
  HFOPT_ASSIGN_OR_RETURN(const double negative_curvature, NegativeCurvature(*G, v, semidefinite.limit));
  Worsen(semidefinite, negative_curvature);

  const Sample halves[] = {Half(layout, sample, false), Half(layout, sample, true)};
  Vector<Scalar> sum = Vector<Scalar>::Zero(n), product_sum = sum, product;
  double weight = 0;
  for (const Sample& half : halves) {
    if (half.size() == 0) continue;
    HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> part, objective.Gradient(theta, half, {}));
    HFOPT_ASSIGN_OR_RETURN(auto part_G, objective.GaussNewtonAt(theta, half));
    HFOPT_RETURN_IF_ERROR(part_G->Apply(v, product));
    Axpy(part.weight, part.gradient, sum);
    Axpy(part.weight, product, product_sum);
    weight += part.weight;
  }
  sum /= static_cast<Scalar>(weight);
  product_sum /= static_cast<Scalar>(weight);
  HFOPT_RETURN_IF_ERROR(G->Apply(v, product));
  Worsen(consistency, RelativeDifference(sum, gradient.gradient));
  Worsen(consistency, RelativeDifference(product_sum, product));
  Worsen(consistency, RelativeDifference(weight, gradient.weight, gradient.weight));

  std::vector<DerivativeCheckResult> results = {loss_value, slope,       symmetry,   semidefinite,
                                                linearity,  determinism, consistency};
  for (DerivativeCheckResult& result : results) result.passed = result.error <= result.limit;
  return results;
}

template <typename Scalar>
absl::StatusOr<std::vector<DerivativeCheckResult>> SpotCheckDerivatives(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                                                                        const Sample& sample) {
  DerivativeCheckResult slope{.name = "gradient", .limit = 0.1,
      .meaning = "|g| against central differences of the loss along g; the gradient has a wrong sign or factor, or is a mean where a sum is due"};
  DerivativeCheckResult semidefinite{.name = "semidefinite", .limit = 1e-3,
      .meaning = "-g'Gg over |g||Gg|; the product has a wrong sign, or is the Hessian's"};
  DerivativeCheckResult consistency{.name = "samples", .limit = 0.01,
      .meaning = "loss, weight and product of the sample against the sums over its halves; means in the place of sums, or wrong windows"};
  const auto worsen = [](DerivativeCheckResult& result, double error, double scale) {
    if (scale > 0) Worsen(result, error / scale);
  };

  HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> gradient, objective.Gradient(theta, sample, {}));
  const double norm = Norm(gradient.gradient);
  if (norm > 0 && gradient.loss != 0 && std::isfinite(gradient.loss)) {
    const Vector<Scalar> u = gradient.gradient / static_cast<Scalar>(norm);
    HFOPT_ASSIGN_OR_RETURN(const std::optional<double> measured, MeasureSlope(objective, theta, sample, gradient.loss, u, norm));
    if (measured.has_value()) worsen(slope, std::abs(norm - *measured), norm);

    HFOPT_ASSIGN_OR_RETURN(auto G, objective.GaussNewtonAt(theta, sample));
    Vector<Scalar> product;
    HFOPT_RETURN_IF_ERROR(G->Apply(u, product));
    worsen(semidefinite, -Dot(u, product), Norm(product));

    if (std::all_of(sample.windows.begin(), sample.windows.end(), [](const Window& window) { return window.count != 1; })) {
      const Trial<Scalar> at_theta;
      Vector<Scalar> rest = static_cast<Scalar>(gradient.weight) * product, half_product;
      double largest = Norm(rest), loss = 0, weight = 0;
      for (const bool second : {false, true}) {
        const Sample half = Half(objective.layout(), sample, second);
        HFOPT_ASSIGN_OR_RETURN(const std::vector<LossAnswer> answer, (objective.Losses(theta, {&at_theta, 1}, half)));
        loss += answer[0].loss * answer[0].weight;
        weight += answer[0].weight;
        HFOPT_ASSIGN_OR_RETURN(auto half_G, objective.GaussNewtonAt(theta, half));
        HFOPT_RETURN_IF_ERROR(half_G->Apply(u, half_product));
        Axpy(-answer[0].weight, half_product, rest);
        largest = std::max(largest, answer[0].weight * Norm(half_product));
      }
      worsen(consistency, Norm(rest), largest);
      worsen(consistency, std::abs(weight - gradient.weight), gradient.weight);
      worsen(consistency, std::abs(loss - gradient.loss * gradient.weight), std::max(std::abs(loss), std::abs(gradient.loss * gradient.weight)));
    }
  }

  std::vector<DerivativeCheckResult> results = {slope, semidefinite, consistency};
  for (DerivativeCheckResult& result : results) result.passed = result.error <= result.limit;
  return results;
}

template absl::StatusOr<std::vector<DerivativeCheckResult>> SpotCheckDerivatives<float>(Objective<float>&, const Vector<float>&, const Sample&);
template absl::StatusOr<std::vector<DerivativeCheckResult>> SpotCheckDerivatives<double>(Objective<double>&, const Vector<double>&, const Sample&);
template absl::StatusOr<std::vector<DerivativeCheckResult>> CheckDerivatives<float>(Objective<float>&,
                                                                                    const Vector<float>&,
                                                                                    const DerivativeCheckOptions&);
template absl::StatusOr<std::vector<DerivativeCheckResult>> CheckDerivatives<double>(Objective<double>&,
                                                                                     const Vector<double>&,
                                                                                     const DerivativeCheckOptions&);

}  // namespace hfopt
