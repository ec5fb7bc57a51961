#ifndef HFOPT_SERVER_EVALUATION_SHARD_REDUCER_H_
#define HFOPT_SERVER_EVALUATION_SHARD_REDUCER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/objective.h"
#include "core/vector.h"

namespace hfopt::server {

// Sums over shards, added in the order of the calls, which is the order of the shards whoever computed them and whenever the answer
// came: this is where bit-identical results come from. Objectives that run in one process use the same code.

struct PartNorm {
  double squared_norm = 0;  // of the gradient sum over the part
  double weight = 0;
};

// Mean losses at several points.
class LossReducer {
 public:
  explicit LossReducer(size_t points) : sums_(points), metrics_(points) {}

  void Add(const std::vector<double>& loss_sums, double weight);
  // sums.size() == number of points.
  void AddMetric(const std::string& name, const std::vector<double>& sums);

  std::vector<LossAnswer> Mean() const;

 private:
  std::vector<double> sums_;
  std::vector<std::map<std::string, double>> metrics_;
  double weight_ = 0;
};

// The mean of a vector, made in memory of its user's.
template <typename Scalar>
class VectorReducer {
 public:
  // `mean` is resized and overwritten, and must outlive this.
  explicit VectorReducer(Vector<Scalar>& mean) : mean_(mean) {}

  // One pass over both vectors. False when an element of shard_sum is not finite: the mean is of no use then.
  [[nodiscard]] bool Add(const Eigen::Ref<const Vector<Scalar>>& shard_sum, double weight);
  double weight() const { return weight_; }

  // After the last Add: divides the sum by the weight.
  void Finish();

 private:
  Vector<Scalar>& mean_;
  bool empty_ = true;
  double weight_ = 0;
};

// Standard deviation of a mean gradient g, as a norm, from the gradient sums over B parts of its sample: with weights w_j of total W,
//     noise^2 = (sum_j w_j/W |g_j|^2 - |g|^2) / (B - 1),   g_j the mean over part j,
// the usual estimate of the variance of a mean, summed over all elements. 0 for fewer than two parts.
double GradientNoise(const std::vector<PartNorm>& parts, double gradient_norm);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_SHARD_REDUCER_H_
