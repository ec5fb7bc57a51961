#include "client/cli/conformance/line.h"

#include <algorithm>
#include <random>

#include "client/models/status_macros.h"

namespace hfopt::conformance {

std::vector<Block> Blocks(int64_t n) {
  constexpr int64_t kParts = 8;
  std::vector<Block> blocks = {{0, n}};
  const int64_t parts = std::min(kParts, n);
  for (int64_t p = 0; p < parts; ++p) blocks.push_back({p * n / parts, (p + 1) * n / parts - p * n / parts});
  // The ends, where off-by-one mistakes are.
  const int64_t end = std::min<int64_t>(4, n);
  blocks.push_back({0, end});
  blocks.push_back({n - end, end});
  return blocks;
}

Vector RandomSigns(int64_t n, const Block& block, uint64_t seed) {
  std::mt19937_64 bits(seed * 0x9E3779B97F4A7C15 + block.begin);
  Vector v = Vector::Zero(n);
  for (int64_t i = 0; i < block.size; ++i) v[block.begin + i] = bits() >> 63 ? 1 : -1;
  return v;
}

absl::StatusOr<LineDerivatives> DerivativesAlong(Lab& lab, Dialogue& session, const Vector& theta, const Vector& d,
                                                 const Window& window, double reach, int levels) {
  // From steps that are large against rounding to steps that are small against what a loss is made of (kinks included).
  if (!lab.float64()) levels = std::min(levels, 9);
  const double first = (lab.float64() ? 1 : 8) * reach * std::max(lab.step(), 1e-3) / d.cwiseAbs().maxCoeff();
  double step = first;
  std::vector<Point> points = {theta};
  for (int i = 0; i < levels; ++i, step /= 2) {
    points.push_back(Point(theta, {{step, d}}));
    points.push_back(Point(theta, {{-step, d}}));
  }
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer answer, session.Losses(points, window));
  // A loss of float32 arithmetic is summed in something better, usually.
  return Extrapolate(first, {answer.loss_sums().begin(), answer.loss_sums().end()}, lab.limit(0x1p-52, 0x1p-26));
}

}  // namespace hfopt::conformance
