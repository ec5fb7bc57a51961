// Letters: u the network, u* the exact solution; the equation is D u = g with the operator
//     D = sum_k (d_k . grad)^2 + d_0 . grad,
// where k = 1 .. K. A quantity v inside the network comes in streams: its value v, its first derivatives v_k (along
// d_k), and v_D = D v. W, b are a layer's weights and biases; z = W a + b with the streams W a_k, W a_D; a = tanh z.
// With the slope s = 1 - a^2 of tanh and its own streams
//     s_k = -2 a a_k,   s_D = -2 (a a_D + sum a_k^2),
// the chain rule is
//     a_k = s z_k,      a_D = s z_D + sum s_k z_k,
// and its derivative in a direction of theta (a prime) is the product rule
//     a' = s z',        a'_k = s z'_k + s_k z',        a'_D = s z'_D + s_D z' + 2 sum s_k z'_k.

#include "client/models/pinn.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/shuffle.h"
#include "client/models/initialization.h"
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

constexpr double kPi = 3.14159265358979323846;
constexpr double kSpeed = 30;      // of the convection
constexpr int64_t kCells = 30;     // of the interior points' grid, a side
constexpr int64_t kSide = 40;      // points on a side of the Poisson problem's square
constexpr int64_t kInitial = 128;  // points at t = 0
constexpr int64_t kPairs = 64;     // times of the periodic condition
constexpr int64_t kErrorGrid = 101;

struct Equation {
  Eigen::Vector2d end;                      // the domain is (0, end[0]) x (0, end[1])
  std::vector<Eigen::Vector2d> directions;  // d_1 .. d_K
  Eigen::Vector2d drift;                    // d_0
  double value_weight = 1;                  // in the loss; that of the others is 1
};

const Equation& EquationOf(PinnProblem problem) {
  static const Equation* const poisson =
      new Equation{.end = {1, 1}, .directions = {{1, 0}, {0, 1}}, .drift = {0, 0}, .value_weight = 100};
  static const Equation* const convection = new Equation{.end = {2 * kPi, 1}, .directions = {}, .drift = {kSpeed, 1}};
  return problem == PinnProblem::kPoisson ? *poisson : *convection;
}

double Solution(PinnProblem problem, double x, double y) {
  switch (problem) {
    case PinnProblem::kPoisson:
      return std::sin(kPi * x) * std::sin(kPi * y) + 0.5 * std::sin(4 * kPi * x) * std::sin(3 * kPi * y);
    case PinnProblem::kConvection:
      return std::sin(x - kSpeed * y);
  }
  return 0;
}

// g = D u*.
double RightSide(PinnProblem problem, double x, double y) {
  switch (problem) {
    case PinnProblem::kPoisson:
      return -kPi * kPi *
             (2 * std::sin(kPi * x) * std::sin(kPi * y) + 12.5 * std::sin(4 * kPi * x) * std::sin(3 * kPi * y));
    case PinnProblem::kConvection:
      return 0;
  }
  return 0;
}

std::vector<PinnExample> MakeExamples(PinnProblem problem, uint64_t seed) {
  const Equation& equation = EquationOf(problem);
  client::SplitMix64 generator(seed);
  std::vector<PinnExample> examples;
  for (int64_t i = 0; i < kCells; ++i) {
    for (int64_t j = 0; j < kCells; ++j) {
      const double x = (i + Uniform(generator)) / kCells * equation.end[0];
      const double y = (j + Uniform(generator)) / kCells * equation.end[1];
      examples.push_back({PinnResidual::kInterior, x, y, RightSide(problem, x, y)});
    }
  }
  const auto add_value = [&](double x, double y) {
    examples.push_back({PinnResidual::kValue, x, y, Solution(problem, x, y)});
  };
  switch (problem) {
    case PinnProblem::kPoisson:
      for (int64_t i = 0; i < kSide; ++i) {
        const double along = (i + 0.5) / kSide;
        add_value(along, 0);
        add_value(along, 1);
        add_value(0, along);
        add_value(1, along);
      }
      break;
    case PinnProblem::kConvection:
      for (int64_t i = 0; i < kInitial; ++i) add_value((i + 0.5) / kInitial * equation.end[0], 0);
      for (int64_t i = 0; i < kPairs; ++i) examples.push_back({PinnResidual::kPeriodic, 0, (i + 0.5) / kPairs});
      break;
  }
  std::vector<PinnExample> shuffled;
  for (const int64_t i : client::ShuffledIndices(generator.Next(), static_cast<int64_t>(examples.size()))) {
    shuffled.push_back(examples[i]);
  }
  return shuffled;
}

std::vector<int64_t> DefaultLayers(PinnProblem problem) {
  return problem == PinnProblem::kPoisson ? std::vector<int64_t>{2, 32, 32, 1} : std::vector<int64_t>{2, 50, 50, 50, 1};
}

absl::string_view MetricName(int kind) {
  constexpr absl::string_view kNames[] = {"interior_loss", "value_loss", "periodic_loss"};
  return kNames[kind];
}

// Columns begin .. begin + size - 1 of a matrix that is stored column after column, and its elements as one array,
// which vectorises whatever the number of rows.
template <typename M>
auto Columns(M& m, int64_t begin, int64_t size) {
  using Scalar = typename M::Scalar;
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<M>, const Matrix<Scalar>, Matrix<Scalar>>>;
  return Map(m.data() + begin * m.rows(), m.rows(), size);
}
template <typename M>
auto Elements(M& m, int64_t begin, int64_t size) {
  using Array = Eigen::Array<typename M::Scalar, Eigen::Dynamic, 1>;
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<M>, const Array, Array>>;
  return Map(m.data() + begin * m.rows(), m.rows() * size);
}

// The first layer's weights, whose products with its two inputs are no work for a general matrix product.
template <typename Scalar>
using TwoColumns = Eigen::Matrix<Scalar, Eigen::Dynamic, 2>;
template <typename LayerType>
auto FirstWeights(const LayerType& layer) {
  using Scalar = typename decltype(layer.weights)::Scalar;
  return Eigen::Map<const TwoColumns<Scalar>>(layer.weights.data(), layer.weights.rows(), 2);
}
// The last layer's only row of weights, as a column.
template <typename LayerType>
auto LastWeights(const LayerType& layer) {
  using Scalar = typename decltype(layer.weights)::Scalar;
  return Eigen::Map<const Vector<Scalar>>(layer.weights.data(), layer.weights.cols());
}

// a <- tanh a. Eigen 3.4 vectorises exp in double, but not tanh. The error is a rounding of 1, as it is when a is added
// up with other units' values.
template <typename Array>
void Tanh(Array&& a) {
  if constexpr (std::is_same_v<typename std::decay_t<Array>::Scalar, double>) {
    a = 1 - 2 / ((2 * a).exp() + 1);
  } else {
    a = a.tanh();
  }
}

}  // namespace

absl::string_view Name(PinnProblem problem) {
  switch (problem) {
    case PinnProblem::kPoisson:
      return "poisson";
    case PinnProblem::kConvection:
      return "convection";
  }
  return "";
}

absl::Status PinnOptions::Validate() const {
  const auto error = [](auto... what) { return absl::InvalidArgumentError(absl::StrCat("pinn: ", what...)); };
  if (!layers.empty()) {
    HFOPT_RETURN_IF_ERROR(CheckWidths("pinn", layers));
    if (layers.size() < 3 || layers.front() != 2 || layers.back() != 1) {
      return error("layers are ", absl::StrJoin(layers, "-"), "; give 2-...-1 with at least one hidden layer");
    }
  }
  if (block_size < 1) return error("block_size is ", block_size, "; allowed is 1 or more");
  return absl::OkStatus();
}

// The points of some examples, ordered by what is made of them, and the columns that they take in the matrices of the
// hidden layers: first values, of the points of kValue, of the two points of each kPeriodic and of the interior points,
// then the other streams of the interior points. Residuals are in the order kValue, kPeriodic, kInterior; outputs are
// the values of the boundary points and the operator's of the interior.
template <typename Scalar>
struct Pinn<Scalar>::Block {
  int64_t values = 0;         // examples of kValue
  int64_t pairs = 0;          // of kPeriodic
  int64_t interior = 0;       // of kInterior
  int64_t directions = 0;     // K
  TwoColumns<Scalar> inputs;  // a row for each column of a hidden layer
  Vector right_sides;
  Vector loss_weights;             // c_i
  std::vector<int64_t> positions;  // of the residuals' examples in the list

  int64_t boundary() const { return values + 2 * pairs; }
  int64_t points() const { return boundary() + interior; }
  int64_t direction(int64_t k) const { return points() + k * interior; }  // first column; k = 0 .. K - 1
  int64_t operator_() const { return direction(directions); }
  int64_t columns() const { return operator_() + interior; }
  int64_t residuals() const { return values + pairs + interior; }
};

template <typename Scalar>
absl::StatusOr<std::unique_ptr<Pinn<Scalar>>> Pinn<Scalar>::Create(PinnOptions options) {
  HFOPT_RETURN_IF_ERROR(options.Validate());
  if (options.layers.empty()) options.layers = DefaultLayers(options.problem);
  return std::unique_ptr<Pinn>(new Pinn(std::move(options)));
}

template <typename Scalar>
Pinn<Scalar>::Pinn(PinnOptions options)
    : options_(std::move(options)), examples_(MakeExamples(options_.problem, options_.data_seed)) {
  for (const PinnExample& e : examples_) ++kind_sizes_[static_cast<int>(e.residual)];
  // A periodic example takes two columns, an interior one K + 2.
  const int64_t columns =
      options_.block_size * (static_cast<int64_t>(EquationOf(options_.problem).directions.size()) + 2);
  a_ = MakeLayers(columns);
  s_ = MakeLayers(columns);
  d_ = MakeLayers(columns);
  outputs_.resize(2 * options_.block_size);
  residuals_.resize(options_.block_size);
}

template <typename Scalar>
int64_t Pinn<Scalar>::num_parameters() const {
  return NumParameters(options_.layers);
}

template <typename Scalar>
std::string Pinn<Scalar>::signature() const {
  return absl::StrCat("pinn ", Name(options_.problem), " ", absl::StrJoin(options_.layers, "-"),
                      " tanh, points of seed ", options_.data_seed);
}

template <typename Scalar>
double Pinn<Scalar>::ExactSolution(double x, double y) const {
  return Solution(options_.problem, x, y);
}

template <typename Scalar>
double Pinn<Scalar>::loss_weight(PinnResidual residual) const {
  const double weight = residual == PinnResidual::kValue ? EquationOf(options_.problem).value_weight : 1;
  return weight * static_cast<double>(examples_.size()) / static_cast<double>(kind_sizes_[static_cast<int>(residual)]);
}

// The passes over one block.

template <typename Scalar>
void Pinn<Scalar>::Forward(const ConstVectorRef& theta, const Block& block, Layers& a, Layers& s) {
  for (int l = 1; l < num_layers(); ++l) {
    const auto layer = LayerOf(theta.data(), options_.layers, l);
    auto z = Columns(a[l], 0, block.columns());
    if (l == 1) {
      z.noalias() = FirstWeights(layer).lazyProduct(block.inputs.transpose());
    } else {
      z.noalias() = layer.weights * Columns(a[l - 1], 0, block.columns());
    }
    z.leftCols(block.points()).colwise() += layer.biases;

    Tanh(Elements(a[l], 0, block.points()));
    Elements(s[l], 0, block.points()) = 1 - Elements(a[l], 0, block.points()).square();
    const auto value = Elements(a[l], block.boundary(), block.interior);
    const auto slope = Elements(s[l], block.boundary(), block.interior);
    auto a_D = Elements(a[l], block.operator_(), block.interior);
    auto s_D = Elements(s[l], block.operator_(), block.interior);
    a_D *= slope;
    for (int64_t k = 0; k < block.directions; ++k) {
      auto a_k = Elements(a[l], block.direction(k), block.interior);
      auto s_k = Elements(s[l], block.direction(k), block.interior);
      s_k = -2 * value * slope * a_k;
      a_D += s_k * a_k;
      a_k *= slope;
    }
    s_D = -2 * value * a_D;
    for (int64_t k = 0; k < block.directions; ++k) {
      s_D -= 2 * Elements(a[l], block.direction(k), block.interior).square();
    }
  }
  const auto last = LayerOf(theta.data(), options_.layers, num_layers());
  const Matrix<Scalar>& inputs = a[num_layers() - 1];
  auto boundary = outputs_.head(block.boundary());
  boundary.setConstant(last.biases[0]);
  boundary.noalias() += Columns(inputs, 0, block.boundary()).transpose() * LastWeights(last);
  outputs_.segment(block.boundary(), block.interior).noalias() =
      Columns(inputs, block.operator_(), block.interior).transpose() * LastWeights(last);
}

template <typename Scalar>
void Pinn<Scalar>::TangentForward(const ConstVectorRef& theta, const ConstVectorRef& v, const Block& block, const Layers& a,
                                  const Layers& s) {
  for (int l = 1; l < num_layers(); ++l) {
    const auto direction = LayerOf(v.data(), options_.layers, l);
    auto z = Columns(d_[l], 0, block.columns());
    if (l == 1) {
      z.noalias() = FirstWeights(direction).lazyProduct(block.inputs.transpose());
    } else {
      z.noalias() = direction.weights * Columns(a[l - 1], 0, block.columns());
      z.noalias() += LayerOf(theta.data(), options_.layers, l).weights * Columns(d_[l - 1], 0, block.columns());
    }
    z.leftCols(block.points()).colwise() += direction.biases;

    const auto slope = Elements(s[l], block.boundary(), block.interior);
    const auto d = Elements(d_[l], block.boundary(), block.interior);
    auto d_D = Elements(d_[l], block.operator_(), block.interior);
    d_D = slope * d_D + Elements(s[l], block.operator_(), block.interior) * d;
    for (int64_t k = 0; k < block.directions; ++k) {
      const auto s_k = Elements(s[l], block.direction(k), block.interior);
      auto d_k = Elements(d_[l], block.direction(k), block.interior);
      d_D += 2 * s_k * d_k;
      if (l < num_layers() - 1) d_k = slope * d_k + s_k * d;
    }
    // The outputs need of the last hidden layer the boundary's values and the operator's stream alone.
    const int64_t needed = l < num_layers() - 1 ? block.points() : block.boundary();
    Elements(d_[l], 0, needed) *= Elements(s[l], 0, needed);
  }
  const auto last = LayerOf(theta.data(), options_.layers, num_layers());
  const auto direction = LayerOf(v.data(), options_.layers, num_layers());
  const Matrix<Scalar>&inputs = a[num_layers() - 1], &tangents = d_[num_layers() - 1];
  auto boundary = outputs_.head(block.boundary());
  boundary.setConstant(direction.biases[0]);
  boundary.noalias() += Columns(inputs, 0, block.boundary()).transpose() * LastWeights(direction);
  boundary.noalias() += Columns(tangents, 0, block.boundary()).transpose() * LastWeights(last);
  auto interior = outputs_.segment(block.boundary(), block.interior);
  interior.noalias() = Columns(inputs, block.operator_(), block.interior).transpose() * LastWeights(direction);
  interior.noalias() += Columns(tangents, block.operator_(), block.interior).transpose() * LastWeights(last);
}

template <typename Scalar>
void Pinn<Scalar>::Backward(const ConstVectorRef& theta, const Block& block, const Layers& a, const Layers& s,
                            VectorRef gradient) {
  const auto boundary = outputs_.head(block.boundary());
  const auto interior = outputs_.segment(block.boundary(), block.interior);
  const int top = num_layers() - 1;
  {
    auto layer = LayerOf(gradient.data(), options_.layers, num_layers());
    Eigen::Map<Vector> weights(layer.weights.data(), layer.weights.cols());
    weights.noalias() += Columns(a[top], 0, block.boundary()) * boundary;
    weights.noalias() += Columns(a[top], block.operator_(), block.interior) * interior;
    layer.biases[0] += boundary.sum();
    const auto last = LayerOf(theta.data(), options_.layers, num_layers());
    Columns(d_[top], 0, block.boundary()).noalias() = LastWeights(last) * boundary.transpose();
    Columns(d_[top], block.operator_(), block.interior).noalias() = LastWeights(last) * interior.transpose();
  }
  for (int l = top; l >= 1; --l) {
    // d_ <- the transpose of the product rule; of the last hidden layer's streams, those that the outputs do not need
    // are 0.
    const auto slope = Elements(s[l], block.boundary(), block.interior);
    auto d = Elements(d_[l], block.boundary(), block.interior);
    auto d_D = Elements(d_[l], block.operator_(), block.interior);
    const auto s_D = Elements(s[l], block.operator_(), block.interior);
    if (l == top) {
      d = s_D * d_D;
    } else {
      d = slope * d + s_D * d_D;
    }
    for (int64_t k = 0; k < block.directions; ++k) {
      const auto s_k = Elements(s[l], block.direction(k), block.interior);
      auto d_k = Elements(d_[l], block.direction(k), block.interior);
      if (l == top) {
        d_k = 2 * s_k * d_D;
      } else {
        d += s_k * d_k;
        d_k = slope * d_k + 2 * s_k * d_D;
      }
    }
    d_D *= slope;
    Elements(d_[l], 0, block.boundary()) *= Elements(s[l], 0, block.boundary());

    auto layer = LayerOf(gradient.data(), options_.layers, l);
    const auto z = Columns(d_[l], 0, block.columns());
    layer.biases += z.leftCols(block.points()).rowwise().sum();
    if (l == 1) {
      layer.weights.col(0).noalias() += z * block.inputs.col(0);
      layer.weights.col(1).noalias() += z * block.inputs.col(1);
    } else {
      layer.weights.noalias() += z * Columns(a[l - 1], 0, block.columns()).transpose();
      Columns(d_[l - 1], 0, block.columns()).noalias() =
          LayerOf(theta.data(), options_.layers, l).weights.transpose() * z;
    }
  }
}

template <typename Scalar>
void Pinn<Scalar>::Reduce(const Block& block) {
  residuals_.head(block.values) = outputs_.head(block.values);
  residuals_.segment(block.values, block.pairs) =
      outputs_.segment(block.values, block.pairs) - outputs_.segment(block.values + block.pairs, block.pairs);
  residuals_.segment(block.values + block.pairs, block.interior) = outputs_.segment(block.boundary(), block.interior);
}

template <typename Scalar>
void Pinn<Scalar>::WeightAndSpread(const Block& block) {
  residuals_.head(block.residuals()).array() *= 2 * block.loss_weights.array();
  outputs_.head(block.values + block.pairs) = residuals_.head(block.values + block.pairs);
  outputs_.segment(block.values + block.pairs, block.pairs) = -residuals_.segment(block.values, block.pairs);
  outputs_.segment(block.boundary(), block.interior) = residuals_.segment(block.values + block.pairs, block.interior);
}

template <typename Scalar>
void Pinn<Scalar>::ComputeResiduals(const Block& block, LossSum& sum) {
  Reduce(block);
  residuals_.head(block.residuals()) -= block.right_sides;
  sum.weight += static_cast<double>(block.residuals());
  const auto add = [&](PinnResidual kind, int64_t begin, int64_t size) {
    if (kind_sizes_[static_cast<int>(kind)] == 0) return;
    const double loss = loss_weight(kind) * residuals_.segment(begin, size).template cast<double>().squaredNorm();
    sum.loss += loss;
    sum.metrics[std::string(MetricName(static_cast<int>(kind)))] += loss;
  };
  add(PinnResidual::kValue, 0, block.values);
  add(PinnResidual::kPeriodic, block.values, block.pairs);
  add(PinnResidual::kInterior, block.values + block.pairs, block.interior);
}

// The answers: sums over blocks.

template <typename Scalar>
absl::StatusOr<LossSum> Pinn<Scalar>::Loss(const ConstVectorRef& theta, const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum;
  ForEachBlock(examples, [&](const Block& block, int64_t) {
    Forward(theta, block, a_, s_);
    ComputeResiduals(block, sum);
  });
  return sum;
}

template <typename Scalar>
absl::StatusOr<LossSum> Pinn<Scalar>::Gradient(const ConstVectorRef& theta, const Examples& examples, VectorRef gradient) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum;
  HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(*this, "gradient", gradient.size()));
  gradient.setZero();
  ForEachBlock(examples, [&](const Block& block, int64_t) {
    Forward(theta, block, a_, s_);
    ComputeResiduals(block, sum);
    WeightAndSpread(block);
    Backward(theta, block, a_, s_, gradient);
  });
  return sum;
}

template <typename Scalar>
class PinnLinearization final : public client::Linearization<Scalar> {
 public:
  using Model = Pinn<Scalar>;

  PinnLinearization(Model& pinn, const ConstVectorRef<Scalar>& theta, const Examples& examples)
      : pinn_(pinn), theta_(theta), weight_(static_cast<double>(examples.size())) {
    pinn.ForEachBlock(examples, [&](const typename Model::Block& block, int64_t) {
      kept_.push_back({block, pinn.MakeLayers(block.columns()), pinn.MakeLayers(block.columns())});
      pinn.Forward(theta_, block, kept_.back().a, kept_.back().s);
    });
  }

  absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) override {
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(pinn_, "direction", v.size()));
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(pinn_, "product", product.size()));
    product.setZero();
    for (const Kept& kept : kept_) {
      pinn_.TangentForward(theta_, v, kept.block, kept.a, kept.s);
      pinn_.Reduce(kept.block);
      pinn_.WeightAndSpread(kept.block);
      pinn_.Backward(theta_, kept.block, kept.a, kept.s, product);
    }
    return absl::OkStatus();
  }

  double weight() const override { return weight_; }

 private:
  struct Kept {
    typename Model::Block block;
    typename Model::Layers a, s;
  };

  Model& pinn_;
  const Vector<Scalar> theta_;
  const double weight_;
  std::vector<Kept> kept_;
};

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Pinn<Scalar>::Linearize(const ConstVectorRef& theta,
                                                                                       const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  return std::make_unique<PinnLinearization<Scalar>>(*this, theta, examples);
}

template <typename Scalar>
absl::StatusOr<client::Vector<Scalar>> Pinn<Scalar>::InitialParameters(uint64_t seed) {
  client::SplitMix64 generator(seed);
  return InitialLayers<Scalar>(options_.layers, [&](int, Eigen::MatrixXd& weights, Eigen::VectorXd& biases) {
    InitializeGlorot(generator, weights, biases);
  });
}

template <typename Scalar>
absl::Status Pinn<Scalar>::Residuals(const ConstVectorRef& theta, const Examples& examples, Vector& residuals) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum unused;
  residuals.resize(examples.size());
  ForEachBlock(examples, [&](const Block& block, int64_t begin) {
    Forward(theta, block, a_, s_);
    ComputeResiduals(block, unused);
    for (int64_t i = 0; i < block.residuals(); ++i) residuals(begin + block.positions[i]) = residuals_(i);
  });
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Pinn<Scalar>::Values(const ConstVectorRef& theta, const Matrix<Scalar>& points, Vector& values) {
  HFOPT_RETURN_IF_ERROR(CheckSize(*this, "theta", theta.size()));
  if (points.rows() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("pinn: a point has ", points.rows(), " coordinates; give 2"));
  }
  values.resize(points.cols());
  for (int64_t begin = 0; begin < points.cols(); begin += options_.block_size) {
    Block block;
    block.values = std::min(options_.block_size, points.cols() - begin);
    block.inputs = points.middleCols(begin, block.values).transpose();
    Forward(theta, block, a_, s_);
    values.segment(begin, block.values) = outputs_.head(block.values);
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<double> Pinn<Scalar>::RelativeError(const ConstVectorRef& theta) {
  const Eigen::Vector2d end = EquationOf(options_.problem).end;
  Matrix<Scalar> points(2, kErrorGrid * kErrorGrid);
  Eigen::VectorXd exact(points.cols());
  for (int64_t i = 0; i < exact.size(); ++i) {
    const double x = static_cast<double>(i / kErrorGrid) / (kErrorGrid - 1) * end[0];
    const double y = static_cast<double>(i % kErrorGrid) / (kErrorGrid - 1) * end[1];
    points.col(i) << static_cast<Scalar>(x), static_cast<Scalar>(y);
    exact(i) = ExactSolution(x, y);
  }
  Vector values;
  HFOPT_RETURN_IF_ERROR(Values(theta, points, values));
  return (values.template cast<double>() - exact).norm() / exact.norm();
}

// Bookkeeping.

template <typename Scalar>
typename Pinn<Scalar>::Layers Pinn<Scalar>::MakeLayers(int64_t columns) const {
  Layers layers(num_layers());
  for (int l = 1; l < num_layers(); ++l) layers[l].resize(options_.layers[l], columns);
  return layers;
}

template <typename Scalar>
typename Pinn<Scalar>::Block Pinn<Scalar>::MakeBlock(const Examples& examples) const {
  std::vector<const PinnExample*> list;
  for (const IndexRange& r : examples.ranges) {
    for (int64_t i = r.begin; i < r.end; ++i) list.push_back(&examples_[i]);
  }
  Block block;
  for (const PinnResidual kind : {PinnResidual::kValue, PinnResidual::kPeriodic, PinnResidual::kInterior}) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i]->residual == kind) block.positions.push_back(static_cast<int64_t>(i));
    }
  }
  const auto count = [&](PinnResidual kind) {
    return std::count_if(list.begin(), list.end(), [&](const PinnExample* e) { return e->residual == kind; });
  };
  const Equation& equation = EquationOf(options_.problem);
  block.values = count(PinnResidual::kValue);
  block.pairs = count(PinnResidual::kPeriodic);
  block.interior = count(PinnResidual::kInterior);
  block.directions = static_cast<int64_t>(equation.directions.size());
  block.inputs.resize(block.columns(), 2);
  block.right_sides.resize(block.residuals());
  block.loss_weights.resize(block.residuals());
  for (int64_t i = 0; i < block.residuals(); ++i) {
    const PinnExample& e = *list[block.positions[i]];
    block.right_sides(i) = static_cast<Scalar>(e.right_side);
    block.loss_weights(i) = static_cast<Scalar>(loss_weight(e.residual));
    const int64_t row = e.residual == PinnResidual::kInterior ? i + block.pairs : i;
    block.inputs.row(row) = Eigen::RowVector2d(e.x, e.y).cast<Scalar>();
    if (e.residual == PinnResidual::kPeriodic) {
      block.inputs.row(row + block.pairs) = Eigen::RowVector2d(e.x + equation.end[0], e.y).cast<Scalar>();
    }
  }
  for (int64_t k = 0; k < block.directions; ++k) {
    block.inputs.middleRows(block.direction(k), block.interior).rowwise() =
        equation.directions[k].transpose().cast<Scalar>();
  }
  block.inputs.bottomRows(block.interior).rowwise() = equation.drift.transpose().cast<Scalar>();
  return block;
}

template <typename Scalar>
template <typename Function>
void Pinn<Scalar>::ForEachBlock(const Examples& examples, Function f) const {
  const int64_t size = examples.size();
  for (int64_t begin = 0; begin < size; begin += options_.block_size) {
    f(MakeBlock(examples.Part(begin, std::min(begin + options_.block_size, size))), begin);
  }
}

template class Pinn<float>;
template class Pinn<double>;

}  // namespace hfopt::models
