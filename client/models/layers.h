#ifndef HFOPT_CLIENT_MODELS_LAYERS_H_
#define HFOPT_CLIENT_MODELS_LAYERS_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/cpp/model.h"
#include "client/models/data_source.h"

namespace hfopt::models {

// Networks whose parameters are, layer by layer, weights W (outputs x inputs, column after column) and biases b.
// `layers` are the widths from the inputs to the outputs.

int64_t NumParameters(const std::vector<int64_t>& layers);  // n = sum of outputs * (inputs + 1)

// Weights and biases of a layer inside a parameter vector.
template <typename Matrix, typename Column>
struct Layer {
  Eigen::Map<Matrix> weights;
  Eigen::Map<Column> biases;
};

// Layer l = 1 .. L; const where Scalar is.
template <typename Scalar>
auto LayerOf(Scalar* parameters, const std::vector<int64_t>& layers, int l) {
  using Value = std::remove_const_t<Scalar>;
  constexpr bool kConst = std::is_const_v<Scalar>;
  using M = std::conditional_t<kConst, const Matrix<Value>, Matrix<Value>>;
  using C = std::conditional_t<kConst, const client::Vector<Value>, client::Vector<Value>>;
  for (int k = 1; k < l; ++k) parameters += layers[k] * (layers[k - 1] + 1);
  const int64_t outputs = layers[l], inputs = layers[l - 1];
  return Layer<M, C>{{parameters, outputs, inputs}, {parameters + outputs * inputs, outputs}};
}

// The parameters of layers 1 .. L, each set by initialize(l, weights, biases) in double, in this order.
template <typename Scalar, typename Initialize>
client::Vector<Scalar> InitialLayers(const std::vector<int64_t>& layers, Initialize initialize) {
  client::Vector<Scalar> theta(NumParameters(layers));
  for (int l = 1; l < static_cast<int>(layers.size()); ++l) {
    Eigen::MatrixXd weights(layers[l], layers[l - 1]);
    Eigen::VectorXd biases(layers[l]);
    initialize(l, weights, biases);
    auto layer = LayerOf(theta.data(), layers, l);
    layer.weights = weights.template cast<Scalar>();
    layer.biases = biases.template cast<Scalar>();
  }
  return theta;
}

// INVALID_ARGUMENT naming the width that is not allowed.
absl::Status CheckWidths(absl::string_view model, const std::vector<int64_t>& layers);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_LAYERS_H_
