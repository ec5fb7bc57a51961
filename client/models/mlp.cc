// Letters: L layers of weights; a_l the values of layer l = 0 .. L, with a_0 the inputs and a_L = z, later the
// predictions p; f the activation; d_l a derivative, either of layer l in a direction v (R-pass) or of the loss with
// respect to layer l's input.

#include "client/models/mlp.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/models/checks.h"
#include "client/models/layers.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

using client::DataSet;
using client::Examples;
using client::IndexRange;
using client::LossSum;
using client::ConstVectorRef;
using client::Vector;
using client::VectorRef;

// a <- f(a).
template <typename Scalar>
void Activate(Activation activation, Eigen::Map<Matrix<Scalar>>& a) {
  switch (activation) {
    case Activation::kSigmoid:
      a = a.array().logistic();
      break;
    case Activation::kTanh:
      a = a.array().tanh();
      break;
    case Activation::kRelu:
      a = a.cwiseMax(Scalar(0));  // keeps NaN, as std::max(a, 0) does
      break;
    case Activation::kLinear:
      break;
  }
}

// d <- f' d, with f' written in terms of the values a = f(.).
template <typename Scalar>
void MultiplyByDerivative(Activation activation, const Eigen::Map<Matrix<Scalar>>& a, Eigen::Map<Matrix<Scalar>>& d) {
  switch (activation) {
    case Activation::kSigmoid:
      d.array() *= a.array() * (Scalar(1) - a.array());
      break;
    case Activation::kTanh:
      d.array() *= Scalar(1) - a.array().square();
      break;
    case Activation::kRelu:
      d = (a.array() > Scalar(0)).select(d, Scalar(0));
      break;
    case Activation::kLinear:
      break;
  }
}

// z <- softmax(z), column by column. Adds -log p[label] and the examples whose label is not the only largest output.
// NaN spreads to the loss and counts as an error.
template <typename Scalar>
void Softmax(const std::vector<int32_t>& labels, Eigen::Map<Matrix<Scalar>>& z, LossSum& sum) {
  double loss = 0;
  int64_t errors = 0;
  for (int64_t j = 0; j < z.cols(); ++j) {
    z.col(j).array() -= z.col(j).maxCoeff();
    const Scalar label_output = z(labels[j], j);
    loss -= label_output;
    if (!(label_output == 0 && (z.col(j).array() == Scalar(0)).count() == 1)) ++errors;
  }
  z = z.array().exp();  // in one sweep: columns whose length is no multiple of the vector length would leave remainders
  for (int64_t j = 0; j < z.cols(); ++j) {
    const Scalar total = z.col(j).sum();
    loss += std::log(static_cast<double>(total));
    z.col(j) *= 1 / total;
  }
  sum.loss += loss;
  sum.metrics["errors"] += static_cast<double>(errors);
}

absl::string_view Name(MlpLoss loss) {
  switch (loss) {
    case MlpLoss::kSoftmaxCrossEntropy:
      return "softmax cross-entropy";
    case MlpLoss::kBernoulliCrossEntropy:
      return "Bernoulli cross-entropy";
    case MlpLoss::kSquaredError:
      return "squared error";
  }
  return "";
}

}  // namespace

absl::string_view Name(Activation activation) {
  switch (activation) {
    case Activation::kSigmoid:
      return "sigmoid";
    case Activation::kTanh:
      return "tanh";
    case Activation::kRelu:
      return "relu";
    case Activation::kLinear:
      return "linear";
  }
  return "";
}

absl::Status MlpOptions::Validate() const {
  const auto error = [](auto... what) { return absl::InvalidArgumentError(absl::StrCat("mlp: ", what...)); };
  if (layers.size() < 2) return error("layers has ", layers.size(), " widths; give at least inputs and outputs");
  HFOPT_RETURN_IF_ERROR(CheckWidths("mlp", layers));
  if (activations.size() != layers.size() - 2) {
    return error("activations has ", activations.size(), " entries for ", layers.size() - 2, " hidden layers (",
                 absl::StrJoin(layers, "-"), "); give one for each");
  }
  if (!(l2 >= 0 && std::isfinite(l2))) return error("l2 is ", l2, "; allowed is 0 or a positive number");
  if (block_size < 1) return error("block_size is ", block_size, "; allowed is 1 or more");
  if (max_kept_bytes < 0) return error("max_kept_bytes is ", max_kept_bytes, "; allowed is 0 or more");
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<Mlp<Scalar>>> Mlp<Scalar>::Create(MlpOptions options,
                                                                 std::shared_ptr<const DataSource<Scalar>> data) {
  HFOPT_RETURN_IF_ERROR(options.Validate());
  const bool classifies = options.loss == MlpLoss::kSoftmaxCrossEntropy;
  const int64_t outputs = classifies ? data->num_classes() : data->target_size();
  if (options.layers.front() != data->input_size() || options.layers.back() != outputs) {
    return absl::InvalidArgumentError(absl::StrCat("mlp: layers are ", absl::StrJoin(options.layers, "-"),
                                                   ", but the data (", data->signature(), ") have ", data->input_size(),
                                                   " inputs and ", outputs, classifies ? " classes" : " target values",
                                                   "; give ", data->input_size(), "-...-", outputs));
  }
  return std::unique_ptr<Mlp>(new Mlp(std::move(options), std::move(data)));
}

template <typename Scalar>
Mlp<Scalar>::Mlp(MlpOptions options, std::shared_ptr<const DataSource<Scalar>> data)
    : options_(std::move(options)),
      data_(std::move(data)),
      inputs_(options_.layers.front(), options_.block_size),
      values_(MakeBuffers(options_.block_size)),
      derivatives_(MakeBuffers(options_.block_size)),
      targets_(options_.loss == MlpLoss::kSoftmaxCrossEntropy ? 0 : options_.layers.back(), options_.block_size),
      labels_(options_.block_size),
      column_sums_(options_.block_size) {}

template <typename Scalar>
int64_t Mlp<Scalar>::num_parameters() const {
  return NumParameters(options_.layers);
}

template <typename Scalar>
int64_t Mlp<Scalar>::num_examples(DataSet data) const {
  return data_->num_examples(data);
}

template <typename Scalar>
std::string Mlp<Scalar>::signature() const {
  const std::string activations =
      absl::StrJoin(options_.activations, ",", [](std::string* out, Activation a) { absl::StrAppend(out, Name(a)); });
  return absl::StrCat("mlp ", absl::StrJoin(options_.layers, "-"), " ", activations, ", ", Name(options_.loss), ", l2 ",
                      options_.l2, ", ", data_->signature());
}

// The passes over one block.

template <typename Scalar>
void Mlp<Scalar>::ReadInputs(const Examples& block, Block& a) const {
  int64_t column = 0;
  for (const IndexRange& r : block.ranges) {
    data_->Inputs(block.data, r.begin, a[0].middleCols(column, r.end - r.begin));
    column += r.end - r.begin;
  }
}

template <typename Scalar>
void Mlp<Scalar>::Forward(const ConstVectorRef& theta, Block& a) const {
  for (int l = 1; l <= num_layers(); ++l) {
    const auto layer = LayerOf(theta.data(), options_.layers, l);
    a[l].colwise() = layer.biases;
    a[l].noalias() += layer.weights * a[l - 1];
    if (l < num_layers()) Activate(options_.activations[l - 1], a[l]);
  }
}

template <typename Scalar>
void Mlp<Scalar>::Predict(const Examples& block, Eigen::Map<Matrix<Scalar>>& outputs, LossSum& sum) {
  const int64_t size = outputs.cols();
  sum.weight += static_cast<double>(size);
  int64_t column = 0;
  for (const IndexRange& r : block.ranges) {
    const int64_t length = r.end - r.begin;
    if (options_.loss == MlpLoss::kSoftmaxCrossEntropy) {
      data_->Labels(block.data, r.begin, absl::MakeSpan(labels_).subspan(column, length));
    } else {
      data_->Targets(block.data, r.begin, targets_.middleCols(column, length));
    }
    column += length;
  }
  if (options_.loss == MlpLoss::kSoftmaxCrossEntropy) return Softmax(labels_, outputs, sum);

  const Eigen::Map<const Matrix<Scalar>> t(targets_.data(), targets_.rows(), size);
  auto column_sums = column_sums_.head(size);
  const Eigen::ArrayWrapper<Eigen::Map<Matrix<Scalar>>> z(outputs);
  if (options_.loss == MlpLoss::kBernoulliCrossEntropy) {
    // -t log p - (1 - t) log(1 - p) = max(z, 0) - z t + log(1 + exp(-|z|)), which cannot overflow.
    column_sums = (z.max(Scalar(0)) - z * t.array() + (-z.abs()).exp().log1p()).matrix().colwise().sum();
    sum.loss += column_sums.template cast<double>().sum();
    outputs = z.logistic();
  }
  column_sums = (outputs - t).colwise().squaredNorm();
  const double squared_error = column_sums.template cast<double>().sum();
  if (options_.loss == MlpLoss::kSquaredError) sum.loss += squared_error / 2;
  sum.metrics["squared_error"] += squared_error;
}

template <typename Scalar>
void Mlp<Scalar>::LossGradient(const Block& a, Block& d) const {
  d.back() = a.back();
  if (options_.loss == MlpLoss::kSoftmaxCrossEntropy) {
    for (int64_t j = 0; j < d.back().cols(); ++j) d.back()(labels_[j], j) -= 1;
  } else {
    d.back() -= targets_.leftCols(d.back().cols());
  }
}

template <typename Scalar>
void Mlp<Scalar>::MultiplyByLossHessian(const Block& a, Block& d) const {
  const Eigen::Map<Matrix<Scalar>>& p = a.back();
  Eigen::Map<Matrix<Scalar>>& r = d.back();
  switch (options_.loss) {
    case MlpLoss::kSoftmaxCrossEntropy:
      for (int64_t j = 0; j < r.cols(); ++j) r.col(j).array() -= p.col(j).dot(r.col(j));
      r.array() *= p.array();
      break;
    case MlpLoss::kBernoulliCrossEntropy:
      r.array() *= p.array() * (Scalar(1) - p.array());
      break;
    case MlpLoss::kSquaredError:
      break;
  }
}

template <typename Scalar>
void Mlp<Scalar>::TangentForward(const ConstVectorRef& theta, const ConstVectorRef& v, const Block& a, Block& d) const {
  for (int l = 1; l <= num_layers(); ++l) {
    const auto direction = LayerOf(v.data(), options_.layers, l);
    d[l].colwise() = direction.biases;
    d[l].noalias() += direction.weights * a[l - 1];
    if (l > 1) d[l].noalias() += LayerOf(theta.data(), options_.layers, l).weights * d[l - 1];
    if (l < num_layers()) MultiplyByDerivative(options_.activations[l - 1], a[l], d[l]);
  }
}

template <typename Scalar>
template <typename Function>
void Mlp<Scalar>::Backward(const ConstVectorRef& theta, const Block& a, Block& d, Function accumulate) const {
  for (int l = num_layers(); l >= 1; --l) {
    accumulate(l, a[l - 1], d[l]);
    if (l == 1) return;
    d[l - 1].noalias() = LayerOf(theta.data(), options_.layers, l).weights.transpose() * d[l];
    MultiplyByDerivative(options_.activations[l - 2], a[l - 1], d[l - 1]);
  }
}

template <typename Scalar>
void Mlp<Scalar>::AddGradient(const ConstVectorRef& theta, const Block& a, Block& d, VectorRef gradient) const {
  Backward(theta, a, d, [&](int l, const auto& values, const auto& delta) {
    auto layer = LayerOf(gradient.data(), options_.layers, l);
    layer.weights.noalias() += delta * values.transpose();
    layer.biases += delta.rowwise().sum();
  });
}

// The answers: sums over blocks, and the regulariser.

template <typename Scalar>
absl::StatusOr<LossSum> Mlp<Scalar>::Loss(const ConstVectorRef& theta, const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum;
  ForEachBlock(examples, [&](const Examples& block, int64_t) {
    Block a = Columns(values_, 0, block.size());
    ReadInputs(block, a);
    Forward(theta, a);
    Predict(block, a.back(), sum);
  });
  sum.loss += sum.weight * options_.l2 / 2 * theta.template cast<double>().squaredNorm();
  return sum;
}

template <typename Scalar>
absl::StatusOr<LossSum> Mlp<Scalar>::Gradient(const ConstVectorRef& theta, const Examples& examples, VectorRef gradient) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum;
  HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(*this, "gradient", gradient.size()));
  gradient.setZero();
  ForEachBlock(examples, [&](const Examples& block, int64_t) {
    Block a = Columns(values_, 0, block.size());
    Block d = Columns(derivatives_, 0, block.size());
    ReadInputs(block, a);
    Forward(theta, a);
    Predict(block, a.back(), sum);
    LossGradient(a, d);
    AddGradient(theta, a, d, gradient);
  });
  sum.loss += sum.weight * options_.l2 / 2 * theta.template cast<double>().squaredNorm();
  gradient += static_cast<Scalar>(sum.weight * options_.l2) * theta;
  return sum;
}

template <typename Scalar>
absl::Status Mlp<Scalar>::SecondMoment(const ConstVectorRef& theta, const Examples& examples, VectorRef second_moment) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum;
  Vector gradient = Vector::Zero(num_parameters());
  HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(*this, "second moment", second_moment.size()));
  second_moment.setZero();
  ForEachBlock(examples, [&](const Examples& block, int64_t) {
    Block a = Columns(values_, 0, block.size());
    Block d = Columns(derivatives_, 0, block.size());
    ReadInputs(block, a);
    Forward(theta, a);
    Predict(block, a.back(), sum);
    LossGradient(a, d);
    if (options_.l2 > 0) {
      AddGradient(theta, a, d, gradient);
    } else {
      Backward(theta, a, d, [](int, const auto&, const auto&) {});
    }
    // An example's weight gradient is d_l a_{l-1}', so its square is d_l^2 (a_{l-1}^2)'.
    for (int l = 1; l <= num_layers(); ++l) {
      a[l - 1] = a[l - 1].cwiseAbs2();
      d[l] = d[l].cwiseAbs2();
      auto layer = LayerOf(second_moment.data(), options_.layers, l);
      layer.weights.noalias() += d[l] * a[l - 1].transpose();
      layer.biases += d[l].rowwise().sum();
    }
  });
  if (options_.l2 > 0) {
    // sum (g_i + c theta)^2 = sum g_i^2 + c theta (2 sum g_i + weight c theta); not negative but for rounding.
    const Scalar c = static_cast<Scalar>(options_.l2), weight = static_cast<Scalar>(sum.weight);
    second_moment.array() += c * theta.array() * (2 * gradient.array() + weight * c * theta.array());
    second_moment = second_moment.cwiseMax(Scalar(0));
  }
  return absl::OkStatus();
}

template <typename Scalar>
class MlpLinearization final : public client::Linearization<Scalar> {
 public:
  using Model = Mlp<Scalar>;

  MlpLinearization(Model& mlp, const ConstVectorRef<Scalar>& theta, const Examples& examples)
      : mlp_(mlp), theta_(theta), examples_(examples) {
    const std::vector<int64_t>& layers = mlp.options_.layers;
    int64_t bytes = 0;  // of one example
    for (size_t l = 1; l < layers.size(); ++l) bytes += layers[l] * static_cast<int64_t>(sizeof(Scalar));
    kept_examples_ = std::min(examples.size(),
                              mlp.options_.max_kept_bytes / bytes / mlp.options_.block_size * mlp.options_.block_size);
    kept_values_ = mlp.MakeBuffers(kept_examples_);
    mlp.ForEachBlock(examples_, [&](const Examples& block, int64_t begin) {
      if (begin < kept_examples_) Evaluate(block, mlp_.Columns(kept_values_, begin, block.size()));
    });
  }

  absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) override {
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(mlp_, "direction", v.size()));
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(mlp_, "product", product.size()));
    product.setZero();
    mlp_.ForEachBlock(examples_, [&](const Examples& block, int64_t begin) {
      const bool kept = begin < kept_examples_;
      typename Model::Block a = mlp_.Columns(kept ? kept_values_ : mlp_.values_, kept ? begin : 0, block.size());
      typename Model::Block d = mlp_.Columns(mlp_.derivatives_, 0, block.size());
      if (kept) {
        mlp_.ReadInputs(block, a);
      } else {
        Evaluate(block, a);
      }
      mlp_.TangentForward(theta_, v, a, d);
      mlp_.MultiplyByLossHessian(a, d);
      mlp_.AddGradient(theta_, a, d, product);
    });
    product += static_cast<Scalar>(weight() * mlp_.options_.l2) * v;
    return absl::OkStatus();
  }

  double weight() const override { return static_cast<double>(examples_.size()); }

 private:
  // a <- inputs, values and predictions at theta. Inputs are not kept: to read them again is cheap.
  void Evaluate(const Examples& block, typename Model::Block a) {
    LossSum unused;
    mlp_.ReadInputs(block, a);
    mlp_.Forward(theta_, a);
    mlp_.Predict(block, a.back(), unused);
  }

  Model& mlp_;
  const Vector<Scalar> theta_;
  const Examples examples_;
  int64_t kept_examples_ = 0;  // whole blocks, or all
  typename Model::Buffers kept_values_;
};

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Mlp<Scalar>::Linearize(const ConstVectorRef& theta,
                                                                                      const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  return std::make_unique<MlpLinearization<Scalar>>(*this, theta, examples);
}

template <typename Scalar>
absl::StatusOr<client::Vector<Scalar>> Mlp<Scalar>::InitialParameters(uint64_t seed) {
  client::SplitMix64 generator(seed);
  return InitialLayers<Scalar>(options_.layers, [&](int l, Eigen::MatrixXd& weights, Eigen::VectorXd& biases) {
    const bool is_tanh = l < num_layers() && options_.activations[l - 1] == Activation::kTanh;
    switch (options_.initialization) {
      case Initialization::kSparse:
        InitializeSparse(generator, is_tanh ? 0.25 : 1, is_tanh ? 0.5 : 0, weights, biases);
        break;
      case Initialization::kGlorot:
        InitializeGlorot(generator, weights, biases);
        break;
    }
  });
}

template <typename Scalar>
absl::Status Mlp<Scalar>::Outputs(const ConstVectorRef& theta, const Matrix<Scalar>& inputs, Matrix<Scalar>& outputs) {
  HFOPT_RETURN_IF_ERROR(CheckSize(*this, "theta", theta.size()));
  if (inputs.rows() != options_.layers.front()) {
    return absl::InvalidArgumentError(
        absl::StrCat("mlp: an input has ", inputs.rows(), " values, the first layer ", options_.layers.front()));
  }
  outputs.resize(options_.layers.back(), inputs.cols());
  for (int64_t begin = 0; begin < inputs.cols(); begin += options_.block_size) {
    const int64_t size = std::min(options_.block_size, inputs.cols() - begin);
    Block a = Columns(values_, 0, size);
    a[0] = inputs.middleCols(begin, size);
    Forward(theta, a);
    outputs.middleCols(begin, size) = a.back();
  }
  return absl::OkStatus();
}

// Bookkeeping.

template <typename Scalar>
typename Mlp<Scalar>::Buffers Mlp<Scalar>::MakeBuffers(int64_t columns) const {
  Buffers buffers(options_.layers.size());
  for (int l = 1; l <= num_layers(); ++l) buffers[l].resize(options_.layers[l], columns);
  return buffers;
}

template <typename Scalar>
typename Mlp<Scalar>::Block Mlp<Scalar>::Columns(Buffers& buffers, int64_t begin, int64_t size) {
  Block block;
  block.reserve(buffers.size());
  block.emplace_back(inputs_.data(), inputs_.rows(), size);
  for (int l = 1; l <= num_layers(); ++l) {
    block.emplace_back(buffers[l].data() + begin * buffers[l].rows(), buffers[l].rows(), size);
  }
  return block;
}

template <typename Scalar>
template <typename Function>
void Mlp<Scalar>::ForEachBlock(const Examples& examples, Function f) const {
  const int64_t size = examples.size();
  for (int64_t begin = 0; begin < size; begin += options_.block_size) {
    f(examples.Part(begin, std::min(begin + options_.block_size, size)), begin);
  }
}

template class Mlp<float>;
template class Mlp<double>;

}  // namespace hfopt::models
