#ifndef HFOPT_CLIENT_MODELS_INITIALIZATION_H_
#define HFOPT_CLIENT_MODELS_INITIALIZATION_H_

#include <cstdint>

#include "Eigen/Core"
#include "client/cpp/shuffle.h"

namespace hfopt::models {

// Equally distributed in [0, 1): the generator's upper 53 bits.
double Uniform(client::SplitMix64& generator);
// Mean 0, variance 1: the sum of 12 uniform numbers less 6 (Irwin-Hall), which is normal to well within the needs of
// starting values and, being additions alone, the same on every machine; a logarithm is not.
double Normal(client::SplitMix64& generator);

enum class Initialization {
  // 15 incoming connections a unit, standard normal, all others 0; biases 0 (Martens 2010, sec. 5). Where the unit is a
  // tanh: weights
  // times 0.25, biases 0.5 (Sutskever, Martens, Dahl & Hinton 2013, sec. 3.1).
  kSparse,
  // Uniform in +-sqrt(6 / (inputs + outputs)); biases 0 (Glorot & Bengio 2010, eq. 16).
  kGlorot,
};

// Fills a layer's `weights` (outputs x inputs) and `biases` (outputs).
void InitializeSparse(client::SplitMix64& generator, double scale, double bias, Eigen::MatrixXd& weights,
                      Eigen::VectorXd& biases);
void InitializeGlorot(client::SplitMix64& generator, Eigen::MatrixXd& weights, Eigen::VectorXd& biases);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_INITIALIZATION_H_
