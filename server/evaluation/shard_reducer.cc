#include "server/evaluation/shard_reducer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

namespace hfopt::server {

void LossReducer::Add(const std::vector<double>& loss_sums, double weight) {
  for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += loss_sums[i];
  weight_ += weight;
}

void LossReducer::AddMetric(const std::string& name, const std::vector<double>& sums) {
  for (size_t i = 0; i < sums_.size(); ++i) metrics_[i][name] += sums[i];
}

std::vector<LossAnswer> LossReducer::Mean() const {
  std::vector<LossAnswer> answers(sums_.size());
  for (size_t i = 0; i < sums_.size(); ++i) {
    answers[i].loss = sums_[i] / weight_;
    answers[i].weight = weight_;
    for (const auto& [name, sum] : metrics_[i]) answers[i].metrics[name] = sum / weight_;
  }
  return answers;
}

template <typename Scalar>
bool VectorReducer<Scalar>::Add(const Eigen::Ref<const Vector<Scalar>>& shard_sum, double weight) {
  const bool first = std::exchange(empty_, false);
  if (first) mean_.resize(shard_sum.size());
  const Scalar* const x = shard_sum.data();
  Scalar* const y = mean_.data();
  std::atomic<bool> finite = true;
  ForParts(shard_sum.size(), [&](int64_t begin, int64_t end) {
    // A sum of products with zero is NaN exactly when some element is not finite. Each lane has a sum of its own, so that the loop can be
    // vectorised.
    constexpr int kLanes = 16;
    Scalar zeros[kLanes] = {};
    const auto add = [&](int64_t i, int lane) {
      const Scalar xi = x[i];
      y[i] = first ? xi : y[i] + xi;
      zeros[lane] += xi * Scalar{0};
    };
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    }
    for (; i < end; ++i) add(i, 0);
    if (!std::all_of(zeros, zeros + kLanes, [](Scalar zero) { return zero == 0; })) finite = false;
  });
  weight_ += weight;
  return finite;
}

template <typename Scalar>
void VectorReducer<Scalar>::Finish() {
  Scale(1 / weight_, mean_, mean_);
}

double GradientNoise(const std::vector<PartNorm>& parts, double gradient_norm) {
  if (parts.size() < 2) return 0;
  double total_weight = 0, weighted = 0;
  for (const PartNorm& part : parts) {
    total_weight += part.weight;
    weighted += part.squared_norm / part.weight;  // w_j |g_j|^2
  }
  const double variance = (weighted / total_weight - gradient_norm * gradient_norm) / (parts.size() - 1);
  return std::sqrt(std::max(variance, 0.0));
}

template class VectorReducer<float>;
template class VectorReducer<double>;

}  // namespace hfopt::server
