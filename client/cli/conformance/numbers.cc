#include "client/cli/conformance/numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "Eigen/Eigenvalues"
#include "Eigen/QR"
#include "client/models/status_macros.h"

namespace hfopt::conformance {

double RelativeDifference(double a, double b) {
  if (a == b) return 0;
  const double difference = std::abs(a - b) / std::max(std::abs(a), std::abs(b));
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

double RelativeDifference(const Vector& a, const Vector& b) {
  const double size = std::max(a.norm(), b.norm());
  if (size == 0) return 0;
  const double difference = (a - b).norm() / size;
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

namespace {

// From approximations with steps h, h / 2, h / 4, ... whose errors are even powers of the step.
void Ridders(const std::vector<double>& approximations, const std::vector<double>& noise, Estimate& best,
             std::vector<Estimate>& candidates) {
  std::vector<std::vector<double>> table;
  std::vector<Estimate> entries;
  for (size_t i = 0; i < approximations.size(); ++i) {
    table.push_back({approximations[i]});
    double power = 4;
    for (size_t j = 1; j <= i; ++j, power *= 4) {
      const double value = (power * table[i][j - 1] - table[i - 1][j - 1]) / (power - 1);
      table[i].push_back(value);
      const double error =
          std::max({std::abs(value - table[i][j - 1]), std::abs(value - table[i - 1][j - 1]), noise[i]});
      if (std::isfinite(error)) entries.push_back({value, error});
    }
  }
  best = {0, std::numeric_limits<double>::infinity()};
  for (const Estimate& e : entries) {
    if (e.error < best.error) best = e;
  }
  constexpr double kNear = 10;
  candidates.clear();
  for (const Estimate& e : entries) {
    if (e.error <= kNear * best.error) candidates.push_back(e);
  }
}

}  // namespace

LineDerivatives Extrapolate(double h, const std::vector<double>& losses, double epsilon) {
  // Values that are equal at different points show the grain of a coarse arithmetic.
  bool is_grained = false;
  double grain = std::numeric_limits<double>::infinity();
  for (size_t i = 1; i < losses.size(); ++i) {
    const double change = std::abs(losses[i] - losses[0]);
    is_grained = is_grained || change == 0;
    if (change != 0) grain = std::min(grain, change);
  }
  if (std::isinf(grain)) return {.slopes = {{0, 0}}, .curvatures = {{0, 0}}};  // nothing changes at all
  const double rounding = std::max(4 * epsilon * std::abs(losses[0]), is_grained ? grain : 0);

  std::vector<double> slopes, curvatures, slope_noise, curvature_noise;
  double step = h;
  for (size_t i = 1; i + 1 < losses.size(); i += 2, step /= 2) {
    slopes.push_back((losses[i] - losses[i + 1]) / (2 * step));
    slope_noise.push_back(rounding / step);
    curvatures.push_back((losses[i] - 2 * losses[0] + losses[i + 1]) / (step * step));
    curvature_noise.push_back(rounding / (step * step));
  }
  LineDerivatives result;
  Ridders(slopes, slope_noise, result.slope, result.slopes);
  Ridders(curvatures, curvature_noise, result.curvature, result.curvatures);
  return result;
}

namespace {

// AV = VT + beta_m v_{m+1} e_m' for orthonormal V = (v_1 .. v_m) and a tridiagonal T.
struct Lanczos {
  Eigen::MatrixXd basis;            // V
  std::vector<double> alpha, beta;  // diagonal of T; beside it, and beta_m
  bool exhausted = false;           // beta_m is 0
};

// Lanczos' iteration with full reorthogonalization. A beta that is at most `rounding` times the largest |Av_k| is 0.
absl::StatusOr<Lanczos> Iterate(absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)> apply, const Vector& start,
                                int64_t steps, double rounding) {
  steps = std::min<int64_t>(steps, start.size());
  Lanczos lanczos;
  Eigen::MatrixXd& basis = lanczos.basis;
  basis.resize(start.size(), steps);
  Vector q = start.normalized();
  double scale = 0;
  for (int64_t k = 0; k < steps; ++k) {
    basis.col(k) = q;
    HFOPT_ASSIGN_OR_RETURN(Vector next, apply(q));
    lanczos.alpha.push_back(q.dot(next));
    scale = std::max(scale, next.norm());
    const auto known = basis.leftCols(k + 1);
    for (int pass = 0; pass < 2; ++pass) {
      const Vector overlap = known.transpose() * next;
      next -= known * overlap;
    }
    const double length = next.norm();
    lanczos.exhausted = k + 1 == start.size() || !(length > rounding * scale);
    lanczos.beta.push_back(lanczos.exhausted ? 0 : length);
    if (lanczos.exhausted) break;
    q = next / length;
  }
  basis.conservativeResize(Eigen::NoChange, lanczos.alpha.size());
  return lanczos;
}

}  // namespace

absl::StatusOr<Extremes> LanczosExtremes(absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)> apply,
                                         const Vector& start, int steps) {
  HFOPT_ASSIGN_OR_RETURN(const Lanczos lanczos, Iterate(apply, start, steps, 1e-12));
  const auto m = static_cast<int64_t>(lanczos.alpha.size());
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen;
  eigen.computeFromTridiagonal(Eigen::Map<const Vector>(lanczos.alpha.data(), m),
                               Eigen::Map<const Vector>(lanczos.beta.data(), m - 1));
  return Extremes{.smallest = eigen.eigenvalues()[0],
                  .largest = eigen.eigenvalues()[m - 1],
                  .smallest_vector = lanczos.basis * eigen.eigenvectors().col(0),
                  .largest_vector = lanczos.basis * eigen.eigenvectors().col(m - 1)};
}

absl::StatusOr<RangeDistance> DistanceFromRange(absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)> apply,
                                                const Vector& b, int64_t max_steps, double rounding) {
  HFOPT_ASSIGN_OR_RETURN(const Lanczos lanczos, Iterate(apply, b, max_steps, rounding));
  const auto m = static_cast<int64_t>(lanczos.alpha.size());
  // b - AVy = (v_1 .. v_{m+1}) (|b| e_1 - Ty), T with beta_m below its last row.
  Eigen::MatrixXd t = Eigen::MatrixXd::Zero(m + 1, m);
  for (int64_t k = 0; k < m; ++k) {
    t(k, k) = lanczos.alpha[k];
    t(k + 1, k) = lanczos.beta[k];
    if (k + 1 < m) t(k, k + 1) = lanczos.beta[k];
  }
  const Vector e1 = Vector::Unit(m + 1, 0);
  Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> least_squares;
  least_squares.setThreshold(rounding);
  least_squares.compute(t);
  const Vector y = least_squares.solve(e1);
  return RangeDistance{.residual = (e1 - t * y).norm(), .dimension = m, .exhausted = lanczos.exhausted};
}

std::vector<int> LargestCluster(const std::vector<double>& values, const std::vector<double>& tolerances,
                                const std::vector<bool>& use) {
  std::vector<int> largest;
  for (size_t center = 0; center < values.size(); ++center) {
    if (!use[center]) continue;
    std::vector<int> members;
    for (size_t i = 0; i < values.size(); ++i) {
      if (use[i] && std::abs(values[i] - values[center]) <= tolerances[i] + tolerances[center]) {
        members.push_back(static_cast<int>(i));
      }
    }
    if (members.size() > largest.size()) largest = std::move(members);
  }
  return largest;
}

}  // namespace hfopt::conformance
