#include "core/curvature_pairs.h"

#include <algorithm>

namespace hfopt {

EvenlySpacedIterations::Decision EvenlySpacedIterations::Offer(int64_t k) {
  if (k < memory_) return {.keep = true};
  if (k % stride_ != 0) return {};
  const int64_t l = k / stride_ - memory_ / 2 + 1;  // 1 .. m/2, because k walks through one cycle after the other
  const Decision decision{.keep = true, .replaces = (2 * l - 1) * (stride_ / 2)};
  if (l == memory_ / 2) stride_ *= 2;
  return decision;
}

template <typename Scalar>
bool EvenlySpacedPairs<Scalar>::Offer(int64_t k, const Vector<Scalar>& p, const Vector<Scalar>& Gp) {
  const EvenlySpacedIterations::Decision decision = spacing_.Offer(k);
  if (!decision.keep) return false;
  if (decision.replaces >= 0) {
    const auto drop = std::find(iterations_.begin(), iterations_.end(), decision.replaces);
    pairs_.erase(pairs_.begin() + (drop - iterations_.begin()));
    iterations_.erase(drop);
  }
  iterations_.push_back(k);
  pairs_.push_back(std::make_shared<const CurvaturePair<Scalar>>(CurvaturePair<Scalar>{p, Gp}));
  return true;
}

template class EvenlySpacedPairs<float>;
template class EvenlySpacedPairs<double>;

}  // namespace hfopt
