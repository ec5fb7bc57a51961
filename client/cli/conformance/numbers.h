#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_NUMBERS_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_NUMBERS_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "client/cli/conformance/dialogue.h"

namespace hfopt::conformance {

// |a - b| over the larger of |a| and |b|; 0 where both are 0.
double RelativeDifference(double a, double b);
double RelativeDifference(const Vector& a, const Vector& b);

// A number together with how far off it may be.
struct Estimate {
  double value = 0;
  double error = 0;
};

// First and second derivative of f(t) = loss(theta + t d) at t = 0, from its values at t = 0, +-h, +-h / 2, +-h / 4,
// ... by Richardson's extrapolation (Ridders 1982). `candidates` are the entries of the extrapolation's table whose own
// error is near the least one: a single one may seem exact by chance.
struct LineDerivatives {
  Estimate slope, curvature;
  std::vector<Estimate> slopes, curvatures;  // candidates
};
// losses = {f(0), f(h), f(-h), f(h / 2), f(-h / 2), ...}; at least 5. `epsilon` is the relative rounding error of f,
// unless equal values show a larger one.
LineDerivatives Extrapolate(double h, const std::vector<double>& losses, double epsilon = 0x1p-52);

// The smallest and the largest eigenvalue of a symmetric operator that Lanczos' iteration with full reorthogonalization
// finds in `steps` steps from `start`, with their Ritz vectors: v'Av of unit vectors, so that a negative value is a
// proof. Larger `steps` find more.
struct Extremes {
  double smallest = 0, largest = 0;
  Vector smallest_vector, largest_vector;
};
absl::StatusOr<Extremes> LanczosExtremes(absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)> apply,
                                         const Vector& start, int steps);

// How far `start` is from the range of a symmetric operator A: the least |start - Ax| / |start|, which is the part of
// `start` in the null space of A. Lanczos' iteration finds it once the space of start, A start, A^2 start, ... is
// exhausted.
struct RangeDistance {
  double distance = 0;        // known where the space is exhausted
  int dimension = 0;          // of the space
  bool is_exhausted = false;  // in `steps` steps
  double scale = 0;           // the largest |Av| of a unit vector that was seen, or the given one
};
// What is below `tolerance` times the scale counts as rounding. Where A is a difference, its parts give the `scale`.
absl::StatusOr<RangeDistance> DistanceFromRange(absl::FunctionRef<absl::StatusOr<Vector>(const Vector&)> apply,
                                                const Vector& start, int steps, double tolerance, double scale = 0);

// The largest group of indices whose values agree: value[i] within tolerance[i] + tolerance[center] of a center's.
// Indices are skipped where use[i] is false.
std::vector<int> LargestCluster(const std::vector<double>& values, const std::vector<double>& tolerances,
                                const std::vector<bool>& use);

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_NUMBERS_H_
