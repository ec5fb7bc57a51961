#include "client/models/initialization.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace hfopt::models {

double Uniform(client::SplitMix64& generator) { return static_cast<double>(generator.Next() >> 11) * 0x1p-53; }

double Normal(client::SplitMix64& generator) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += Uniform(generator);
  return sum;
}

void InitializeSparse(client::SplitMix64& generator, double scale, double bias, Eigen::MatrixXd& weights,
                      Eigen::VectorXd& biases) {
  constexpr int64_t kConnections = 15;
  const int64_t inputs = weights.cols();
  std::vector<int64_t> order(inputs);
  std::iota(order.begin(), order.end(), 0);
  weights.setZero();
  biases.setConstant(bias);
  for (int64_t unit = 0; unit < weights.rows(); ++unit) {
    for (int64_t c = 0; c < std::min(kConnections, inputs); ++c) {
      std::swap(order[c], order[c + generator.Below(inputs - c)]);
      weights(unit, order[c]) = scale * Normal(generator);
    }
  }
}

void InitializeGlorot(client::SplitMix64& generator, Eigen::MatrixXd& weights, Eigen::VectorXd& biases) {
  const double bound = std::sqrt(6.0 / static_cast<double>(weights.rows() + weights.cols()));
  for (double& w : weights.reshaped()) w = bound * (2 * Uniform(generator) - 1);
  biases.setZero();
}

}  // namespace hfopt::models
