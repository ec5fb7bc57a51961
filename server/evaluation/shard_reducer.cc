#include "server/evaluation/shard_reducer.h"

#include <algorithm>
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
void VectorReducer<Scalar>::Add(Vector<Scalar> shard_sum, double weight) {
  if (sum_.size() == 0) {
    sum_ = std::move(shard_sum);
  } else {
    sum_ += shard_sum;
  }
  weight_ += weight;
}

template <typename Scalar>
Vector<Scalar> VectorReducer<Scalar>::Mean() && {
  sum_ *= static_cast<Scalar>(1 / weight_);
  return std::move(sum_);
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
