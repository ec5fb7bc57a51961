#include "client/cli/conformance/numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "Eigen/Eigenvalues"
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

using Operator = absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)>;

// A in the space of start, A start, A^2 start, ...: tridiagonal in an orthonormal basis whose first vector is along
// `start`.
struct Krylov {
  Eigen::MatrixXd basis;
  Vector diagonal, off_diagonal;
  double scale = 0;           // the largest |Av| of the basis
  bool is_exhausted = false;  // A leads out of the space no longer: beyond it is `tolerance` of `scale` at most
};

absl::StatusOr<Krylov> Lanczos(Operator apply, const Vector& start, int steps, double tolerance, double scale) {
  const int64_t n = start.size();
  steps = static_cast<int>(std::min<int64_t>(steps, n));
  Krylov result{.basis = Eigen::MatrixXd(n, steps), .scale = scale};
  std::vector<double> alpha, beta;
  Vector q = start.normalized();
  for (int k = 0; k < steps; ++k) {
    result.basis.col(k) = q;
    HFOPT_ASSIGN_OR_RETURN(Vector next, apply(q));
    alpha.push_back(q.dot(next));
    result.scale = std::max(result.scale, next.norm());
    const auto known = result.basis.leftCols(k + 1);
    for (int pass = 0; pass < 2; ++pass) {
      const Vector overlap = known.transpose() * next;
      next -= known * overlap;
    }
    const double length = next.norm();
    result.is_exhausted = length <= tolerance * result.scale || k + 1 == n;
    if (!(length > tolerance * result.scale) || k + 1 == steps) break;
    beta.push_back(length);
    q = next / length;
  }
  const int m = static_cast<int>(alpha.size());
  result.basis.conservativeResize(Eigen::NoChange, m);
  result.diagonal = Eigen::Map<const Vector>(alpha.data(), m);
  result.off_diagonal = Eigen::Map<const Vector>(beta.data(), m - 1);
  return result;
}

Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> RitzPairs(const Krylov& space) {
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen;
  eigen.computeFromTridiagonal(space.diagonal, space.off_diagonal);
  return eigen;
}

}  // namespace

absl::StatusOr<Extremes> LanczosExtremes(Operator apply, const Vector& start, int steps) {
  HFOPT_ASSIGN_OR_RETURN(const Krylov space, Lanczos(apply, start, steps, 1e-12, 0));
  const auto eigen = RitzPairs(space);
  const int64_t last = space.diagonal.size() - 1;
  return Extremes{.smallest = eigen.eigenvalues()[0],
                  .largest = eigen.eigenvalues()[last],
                  .smallest_vector = space.basis * eigen.eigenvectors().col(0),
                  .largest_vector = space.basis * eigen.eigenvectors().col(last)};
}

absl::StatusOr<RangeDistance> DistanceFromRange(Operator apply, const Vector& start, int steps, double tolerance,
                                                double scale) {
  HFOPT_ASSIGN_OR_RETURN(const Krylov space, Lanczos(apply, start, steps, tolerance, scale));
  RangeDistance result{
      .dimension = static_cast<int>(space.diagonal.size()), .is_exhausted = space.is_exhausted, .scale = space.scale};
  if (!space.is_exhausted) return result;
  // A maps the space into itself, so that what is nearest to `start` lies in it.
  const auto eigen = RitzPairs(space);
  for (int i = 0; i < result.dimension; ++i) {
    if (std::abs(eigen.eigenvalues()[i]) <= tolerance * space.scale) {
      result.distance = std::hypot(result.distance, eigen.eigenvectors()(0, i));
    }
  }
  return result;
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
