#ifndef HFOPT_CLIENT_MODELS_MLP_H_
#define HFOPT_CLIENT_MODELS_MLP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/model.h"
#include "client/models/data_source.h"
#include "client/models/initialization.h"

namespace hfopt::models {

enum class Activation { kSigmoid, kTanh, kRelu, kLinear };

// The last layer is linear. A loss takes its outputs z, and the example's label or target values t; p is the prediction
// and H the Hessian with respect to z. A metric is summed beside the loss.
enum class MlpLoss {
  // -log p[label], p = softmax(z), H = diag(p) - pp'. Metric "errors": examples whose label is not the only largest p.
  kSoftmaxCrossEntropy,
  // -sum t log p + (1 - t) log(1 - p), p = sigmoid(z), H = diag(p (1 - p)). Metric "squared_error": |p - t|^2.
  kBernoulliCrossEntropy,
  // |p - t|^2 / 2, p = z, H = I. Metric "squared_error": |p - t|^2.
  kSquaredError,
};

struct MlpOptions {
  std::vector<int64_t> layers;          // widths from the inputs to the outputs, for example {440, 256, 256, 102}
  std::vector<Activation> activations;  // one for each hidden layer
  MlpLoss loss = MlpLoss::kSoftmaxCrossEntropy;
  double l2 = 0;  // adds l2 / 2 * |theta|^2 to the mean loss, biases included
  Initialization initialization = Initialization::kGlorot;
  // Examples in one matrix product; memory grows with it. Measured on 440-256-256-102 (hfopt_mlp_bench): 512 is fastest
  // in all, 128 and 1024 lose 5 %, 2048 13 %.
  int64_t block_size = 512;
  // A linearization keeps activations up to this size, (sum of the widths after the input) * sizeof(Scalar) an example,
  // and computes those of further examples anew for each product, which makes it dearer by about a third. The answer is
  // the same.
  int64_t max_kept_bytes = int64_t{2} << 30;

  // INVALID_ARGUMENT naming the field, its value and what is allowed.
  absl::Status Validate() const;
};

absl::string_view Name(Activation activation);  // "sigmoid", "tanh", "relu", "linear"

// A multilayer perceptron. theta holds, layer by layer, W column after column, then b. Exact gradients, Gauss-Newton
// products (Schraudolph 2002: forward R-pass, loss Hessian, backward pass) and second moments, by matrix products over
// blocks of examples in Scalar; losses and metrics are summed in double. Memory does not grow with the sample, but for
// what Linearize keeps. Deterministic for one binary and machine; single-threaded, and not thread-safe, because the
// buffers of a block are shared.
template <typename Scalar>
class Mlp final : public client::Model<Scalar> {
 public:
  using Vector = client::Vector<Scalar>;
  using ConstVectorRef = client::ConstVectorRef<Scalar>;
  using VectorRef = client::VectorRef<Scalar>;

  // INVALID_ARGUMENT when the options are invalid or do not fit the data's input, class or target size.
  static absl::StatusOr<std::unique_ptr<Mlp>> Create(MlpOptions options,
                                                     std::shared_ptr<const DataSource<Scalar>> data);

  int64_t num_parameters() const override;
  int64_t num_examples(client::DataSet data) const override;
  std::string signature() const override;

  // All that take theta: INVALID_ARGUMENT when it has not n elements, OUT_OF_RANGE when an example is not in the data.
  absl::StatusOr<client::LossSum> Loss(const ConstVectorRef& theta, const client::Examples& examples) override;
  absl::StatusOr<client::LossSum> Gradient(const ConstVectorRef& theta, const client::Examples& examples,
                                           VectorRef gradient) override;
  // The linearization has its own copy of theta and must not outlive the Mlp.
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const ConstVectorRef& theta,
                                                                           const client::Examples& examples) override;
  // The regulariser is part of each example's gradient: sum of (grad loss_i + l2 theta)^2.
  bool has_second_moment() const override { return true; }
  absl::Status SecondMoment(const ConstVectorRef& theta, const client::Examples& examples, VectorRef second_moment) override;

  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector> InitialParameters(uint64_t seed) override;

  // outputs = the last layer's values z (outputs x examples, resized) for a block of inputs (inputs x examples).
  absl::Status Outputs(const ConstVectorRef& theta, const Matrix<Scalar>& inputs, Matrix<Scalar>& outputs);

 private:
  template <typename>
  friend class MlpLinearization;

  // The values of layers 0 (inputs) to L (outputs) for the examples of one block: columns of larger buffers.
  using Block = std::vector<Eigen::Map<Matrix<Scalar>>>;
  // The buffers of layers 1 to L; the first is empty.
  using Buffers = std::vector<Matrix<Scalar>>;

  Mlp(MlpOptions options, std::shared_ptr<const DataSource<Scalar>> data);

  int num_layers() const { return static_cast<int>(options_.layers.size()) - 1; }  // L
  Buffers MakeBuffers(int64_t columns) const;
  // Columns begin .. begin + size - 1 of the buffers; layer 0 is the shared input buffer.
  Block Columns(Buffers& buffers, int64_t begin, int64_t size);
  // f(examples of the block, position of its first), block by block.
  template <typename Function>
  void ForEachBlock(const client::Examples& examples, Function f) const;

  // a: layer 0 <- the block's inputs.
  void ReadInputs(const client::Examples& block, Block& a) const;
  // a: layers 1 .. L <- their values at theta, from layer 0.
  void Forward(const ConstVectorRef& theta, Block& a) const;
  // outputs: z <- predictions p. Adds the block's loss and metric to `sum`; its labels or targets stay in their buffer.
  void Predict(const client::Examples& block, Eigen::Map<Matrix<Scalar>>& outputs, client::LossSum& sum);
  // d: layer L <- dloss/dz = p - t, for the block that Predict saw last.
  void LossGradient(const Block& a, Block& d) const;
  // d: layer L <- H times itself.
  void MultiplyByLossHessian(const Block& a, Block& d) const;
  // d: layers 1 .. L <- derivatives of their values in direction v (Pearlmutter's R operator).
  void TangentForward(const ConstVectorRef& theta, const ConstVectorRef& v, const Block& a, Block& d) const;
  // d: layers L - 1 .. 1 <- derivatives with respect to their inputs, from L. Calls accumulate(l, a[l - 1], d[l]).
  template <typename Function>
  void Backward(const ConstVectorRef& theta, const Block& a, Block& d, Function accumulate) const;
  // Backward that adds the parameters' derivatives to `gradient`.
  void AddGradient(const ConstVectorRef& theta, const Block& a, Block& d, VectorRef gradient) const;

  const MlpOptions options_;
  const std::shared_ptr<const DataSource<Scalar>> data_;

  // Buffers of one block, for all calls.
  Matrix<Scalar> inputs_;
  Buffers values_;
  Buffers derivatives_;
  Matrix<Scalar> targets_;
  std::vector<int32_t> labels_;
  Eigen::Matrix<Scalar, 1, Eigen::Dynamic> column_sums_;
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_MLP_H_
