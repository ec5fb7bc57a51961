// Letters: A(m) u = b is the discrete equation, R takes a field's values at the receivers, l is the adjoint. In
// direction v A changes by dA, hence u by -A^-1 dA u, and y' R times that is -l' dA u with A l = R' y.

#include "client/models/diffusion.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/shuffle.h"
#include "client/models/checks.h"
#include "client/models/initialization.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

using client::Examples;
using client::IndexRange;
using client::LossSum;
using client::ConstVectorRef;
using client::Vector;
using client::VectorRef;

constexpr double kPi = 3.14159265358979323846;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// The cell with point i of the sequence R2 of low discrepancy (Roberts 2018, "The unreasonable effectiveness of
// quasirandom sequences"): multiples of the powers of 1 / 1.3247, the root of x^3 = x + 1, modulo 1.
int64_t SpreadOut(int64_t i, int64_t grid) {
  const auto coordinate = [&](double step) {
    const double at = 0.5 + static_cast<double>(i) * step;
    return std::min(grid - 1, static_cast<int64_t>((at - std::floor(at)) * static_cast<double>(grid)));
  };
  return coordinate(0.7548776662466927) + grid * coordinate(0.5698402909980532);
}

// A few cosines, falling off with their frequency, and three inclusions.
Eigen::VectorXd TrueField(client::SplitMix64& generator, int64_t grid) {
  constexpr int kFrequencies = 4;
  constexpr double kEdge = 0.02;  // of an inclusion: two cells at grid 96
  double amplitude[kFrequencies][kFrequencies];
  for (int i = 0; i < kFrequencies; ++i) {
    for (int j = 0; j < kFrequencies; ++j) amplitude[i][j] = 0.5 * Normal(generator) / (1 + i * i + j * j);
  }
  struct Inclusion {
    double x, y, radius, contrast;
  } inclusions[3];
  double sign = 1;
  for (Inclusion& c : inclusions) {
    c.x = 0.2 + 0.6 * Uniform(generator);
    c.y = 0.2 + 0.6 * Uniform(generator);
    c.radius = 0.08 + 0.08 * Uniform(generator);
    c.contrast = sign * (1 + 0.5 * Uniform(generator));
    sign = -sign;
  }

  Eigen::VectorXd m = Eigen::VectorXd::Zero(grid * grid);
  for (int64_t cell = 0; cell < m.size(); ++cell) {
    const double x = (static_cast<double>(cell % grid) + 0.5) / static_cast<double>(grid);
    const double y = (static_cast<double>(cell / grid) + 0.5) / static_cast<double>(grid);
    for (int i = 0; i < kFrequencies; ++i) {
      for (int j = 0; j < kFrequencies; ++j) m(cell) += amplitude[i][j] * std::cos(i * kPi * x) * std::cos(j * kPi * y);
    }
    for (const Inclusion& c : inclusions) {
      m(cell) += c.contrast / (1 + std::exp((std::hypot(x - c.x, y - c.y) - c.radius) / kEdge));
    }
  }
  return m;
}

// D m: the differences between neighbours. |D m|^2 is the integral of |grad m|^2.

double SquaredDifferences(const Eigen::VectorXd& m, int64_t grid) {
  const Eigen::Map<const Eigen::MatrixXd> at(m.data(), grid, grid);
  return (at.bottomRows(grid - 1) - at.topRows(grid - 1)).squaredNorm() +
         (at.rightCols(grid - 1) - at.leftCols(grid - 1)).squaredNorm();
}

// sum += scale D'D m.
void AddDifferences(const Eigen::VectorXd& m, int64_t grid, double scale, Eigen::VectorXd& sum) {
  const Eigen::Map<const Eigen::MatrixXd> at(m.data(), grid, grid);
  Eigen::Map<Eigen::MatrixXd> to(sum.data(), grid, grid);
  const Eigen::MatrixXd x = scale * (at.bottomRows(grid - 1) - at.topRows(grid - 1));
  const Eigen::MatrixXd y = scale * (at.rightCols(grid - 1) - at.leftCols(grid - 1));
  to.bottomRows(grid - 1) += x;
  to.topRows(grid - 1) -= x;
  to.rightCols(grid - 1) += y;
  to.leftCols(grid - 1) -= y;
}

}  // namespace

absl::Status DiffusionOptions::Validate() const {
  const auto error = [](auto... what) { return absl::InvalidArgumentError(absl::StrCat("inverse: ", what...)); };
  if (grid < 2 || grid > 1024) return error("grid is ", grid, "; allowed is 2 to 1024");
  if (sources < 1 || sources > 65536) return error("sources is ", sources, "; allowed is 1 to 65536");
  if (receivers < 1 || receivers > 65536) return error("receivers is ", receivers, "; allowed is 1 to 65536");
  if (!(noise > 0 && std::isfinite(noise))) return error("noise is ", noise, "; allowed is a positive number");
  if (!(beta >= 0 && std::isfinite(beta))) return error("beta is ", beta, "; allowed is 0 or a positive number");
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<DiffusionInversion<Scalar>>> DiffusionInversion<Scalar>::Create(
    const DiffusionOptions& options) {
  HFOPT_RETURN_IF_ERROR(options.Validate());
  return std::unique_ptr<DiffusionInversion>(new DiffusionInversion(options));
}

template <typename Scalar>
DiffusionInversion<Scalar>::DiffusionInversion(const DiffusionOptions& options)
    : options_(options), operator_(options.grid) {
  for (int64_t s = 0; s < options.sources; ++s) sources_.push_back(SpreadOut(s, options.grid));
  for (int64_t r = 0; r < options.receivers; ++r) receivers_.push_back(SpreadOut(-1 - r, options.grid));

  client::SplitMix64 generator(options.seed);
  truth_ = TrueField(generator, options.grid);
  Point point{.factor = operator_.Factorize(truth_), .states = std::vector<Fields>(num_groups())};
  measurements_.resize(options.receivers, num_groups() * kLanes);
  for (int64_t g = 0; g < num_groups(); ++g) {
    measurements_.middleCols(g * kLanes, kLanes) = Observe(State(point, g)).transpose();
    point.states[g] = Fields();
  }
  measurements_.conservativeResize(Eigen::NoChange, options.sources);
  sigma_ = options.noise * measurements_.norm() / std::sqrt(static_cast<double>(measurements_.size()));
  for (double& d : measurements_.reshaped()) d += sigma_ * Normal(generator);
}

template <typename Scalar>
std::string DiffusionInversion<Scalar>::signature() const {
  return absl::StrCat("inverse diffusion, grid ", options_.grid, ", ", options_.sources, " sources, ",
                      options_.receivers, " receivers, noise ", options_.noise, ", beta ", options_.beta, ", seed ",
                      options_.seed);
}

// The answers.

template <typename Scalar>
absl::StatusOr<LossSum> DiffusionInversion<Scalar>::Loss(const ConstVectorRef& theta, const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  LossSum sum{.weight = static_cast<double>(examples.size())};
  if (sum.weight == 0) return sum;
  const std::shared_ptr<Point> point = At(theta);
  if (!point->factor) {
    sum.loss = std::numeric_limits<double>::infinity();
    return sum;
  }
  ForEachGroup(examples, [&](int64_t group, const Lanes& counts) {
    const Lanes squares = Residuals(State(*point, group), group).square().rowwise().sum();
    // Row by row, because a row that was not asked for may be infinite.
    for (int lane = 0; lane < kLanes; ++lane) {
      if (counts(lane) > 0) sum.loss += counts(lane) * squares(lane) / (2 * static_cast<double>(options_.receivers));
    }
  });
  sum.loss += sum.weight * options_.beta / 2 * SquaredDifferences(theta.template cast<double>(), options_.grid);
  return sum;
}

template <typename Scalar>
absl::StatusOr<LossSum> DiffusionInversion<Scalar>::Gradient(const ConstVectorRef& theta, const Examples& examples,
                                                             VectorRef gradient) {
  HFOPT_ASSIGN_OR_RETURN(const LossSum sum, Loss(theta, examples));
  HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(*this, "gradient", gradient.size()));
  gradient.setZero();
  if (sum.weight == 0) return sum;
  const std::shared_ptr<Point> point = At(theta);
  if (!point->factor) {
    gradient.setConstant(static_cast<Scalar>(kNaN));
    return sum;
  }
  Eigen::ArrayXd faces = Eigen::ArrayXd::Zero(point->factor->conductance.size());
  ForEachGroup(examples, [&](int64_t group, const Lanes& counts) {
    const Fields& u = State(*point, group);
    const Lanes scale = counts / (sigma_ * static_cast<double>(options_.receivers));
    AddAdjoint(*point->factor, u, Residuals(u, group).colwise() * scale, faces);
  });
  gradient = Assemble(*point->factor, faces, sum.weight, theta);
  return sum;
}

template <typename Scalar>
class DiffusionLinearization final : public client::Linearization<Scalar> {
 public:
  using Model = DiffusionInversion<Scalar>;
  using Fields = typename Model::Fields;
  using Lanes = typename Model::Lanes;

  DiffusionLinearization(Model& model, std::shared_ptr<typename Model::Point> point, const Examples& examples)
      : model_(model), point_(std::move(point)), examples_(examples) {
    if (!point_->factor) return;
    model_.ForEachGroup(examples_, [&](int64_t group, const Lanes&) { model_.State(*point_, group); });
  }

  absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) override {
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(model_, "direction", v.size()));
    HFOPT_RETURN_IF_ERROR(CheckSize<Scalar>(model_, "product", product.size()));
    product.setZero();
    if (weight() == 0) return absl::OkStatus();
    if (!point_->factor) {
      product.setConstant(static_cast<Scalar>(kNaN));
      return absl::OkStatus();
    }
    const DiffusionOperator::Factor& factor = *point_->factor;
    const double receivers = static_cast<double>(model_.options_.receivers);
    const Eigen::ArrayXd change = model_.operator_.ConductanceChange(factor, v.template cast<double>());
    Eigen::ArrayXd faces = Eigen::ArrayXd::Zero(change.size());
    model_.ForEachGroup(examples_, [&](int64_t group, const Lanes& counts) {
      const Fields& u = model_.State(*point_, group);
      Fields& w = model_.incremental_;  // A^-1 dA u, the negative of u's change
      model_.operator_.Multiply(change, u, w);
      model_.operator_.Solve(factor, w);
      const Lanes scale = -counts / (model_.sigma_ * model_.sigma_ * receivers);
      model_.AddAdjoint(factor, u, model_.Observe(w).colwise() * scale, faces);
    });
    product = model_.Assemble(factor, faces, weight(), v);
    return absl::OkStatus();
  }

  double weight() const override { return static_cast<double>(examples_.size()); }

 private:
  Model& model_;
  const std::shared_ptr<typename Model::Point> point_;
  const Examples examples_;
};

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> DiffusionInversion<Scalar>::Linearize(
    const ConstVectorRef& theta, const Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckArguments<Scalar>(*this, theta.size(), examples));
  return std::make_unique<DiffusionLinearization<Scalar>>(*this, At(theta), examples);
}

template <typename Scalar>
absl::StatusOr<client::Vector<Scalar>> DiffusionInversion<Scalar>::InitialParameters(uint64_t) {
  return Vector(Vector::Zero(num_parameters()));
}

template <typename Scalar>
absl::StatusOr<double> DiffusionInversion<Scalar>::RelativeError(const ConstVectorRef& theta) const {
  HFOPT_RETURN_IF_ERROR(CheckSize(*this, "theta", theta.size()));
  return (theta.template cast<double>() - truth_).norm() / truth_.norm();
}

template <typename Scalar>
absl::StatusOr<Eigen::MatrixXd> DiffusionInversion<Scalar>::Outputs(const ConstVectorRef& theta) {
  HFOPT_RETURN_IF_ERROR(CheckSize(*this, "theta", theta.size()));
  const std::shared_ptr<Point> point = At(theta);
  Eigen::MatrixXd outputs = Eigen::MatrixXd::Constant(options_.receivers, options_.sources, kNaN);
  if (!point->factor) return outputs;
  for (int64_t s = 0; s < options_.sources; ++s) {
    const Fields& u = State(*point, s / kLanes);
    for (int64_t r = 0; r < options_.receivers; ++r) {
      outputs(r, s) = u(s % kLanes, operator_.Column(receivers_[r]));
    }
  }
  return outputs;
}

// Their parts.

template <typename Scalar>
std::shared_ptr<typename DiffusionInversion<Scalar>::Point> DiffusionInversion<Scalar>::At(const ConstVectorRef& theta) {
  if (!point_ || point_->theta != theta) {
    point_.reset();
    // The factor is of the copy: theta's memory may change when nobody waits for this call any more.
    auto point = std::make_shared<Point>(Point{.theta = theta, .states = std::vector<Fields>(num_groups())});
    point->factor = operator_.Factorize(point->theta.template cast<double>());
    point_ = std::move(point);
  }
  return point_;
}

template <typename Scalar>
const typename DiffusionInversion<Scalar>::Fields& DiffusionInversion<Scalar>::State(Point& point,
                                                                                     int64_t group) const {
  Fields& u = point.states[group];
  if (u.cols() == 0) {
    u.setZero(kLanes, operator_.num_cells());
    for (int64_t s = group * kLanes; s < std::min((group + 1) * kLanes, options_.sources); ++s) {
      u(s % kLanes, operator_.Column(sources_[s])) = 1;
    }
    operator_.Solve(*point.factor, u);
  }
  return u;
}

template <typename Scalar>
typename DiffusionInversion<Scalar>::Fields DiffusionInversion<Scalar>::Observe(const Fields& fields) const {
  Fields values(kLanes, options_.receivers);
  for (int64_t r = 0; r < options_.receivers; ++r) values.col(r) = fields.col(operator_.Column(receivers_[r]));
  return values;
}

template <typename Scalar>
typename DiffusionInversion<Scalar>::Fields DiffusionInversion<Scalar>::Residuals(const Fields& state,
                                                                                  int64_t group) const {
  Fields e = Observe(state);
  const int64_t begin = group * kLanes, size = std::min<int64_t>(kLanes, options_.sources - begin);
  e.topRows(size) -= measurements_.middleCols(begin, size).transpose().array();
  return e / sigma_;
}

template <typename Scalar>
template <typename Function>
void DiffusionInversion<Scalar>::ForEachGroup(const Examples& examples, Function f) const {
  Fields counts = Fields::Zero(kLanes, num_groups());
  for (const IndexRange& r : examples.ranges) {
    for (int64_t s = r.begin; s < r.end; ++s) counts(s % kLanes, s / kLanes) += 1;
  }
  for (int64_t group = 0; group < num_groups(); ++group) {
    if ((counts.col(group) > 0).any()) f(group, Lanes(counts.col(group)));
  }
}

template <typename Scalar>
void DiffusionInversion<Scalar>::AddAdjoint(const DiffusionOperator::Factor& factor, const Fields& state,
                                            const Fields& y, Eigen::ArrayXd& faces) {
  Fields& l = adjoint_;
  l.setZero(kLanes, operator_.num_cells());
  for (int64_t r = 0; r < options_.receivers; ++r) l.col(operator_.Column(receivers_[r])) += y.col(r);
  operator_.Solve(factor, l);
  operator_.AddFaceProducts(l, state, faces);
}

template <typename Scalar>
client::Vector<Scalar> DiffusionInversion<Scalar>::Assemble(const DiffusionOperator::Factor& factor,
                                                            const Eigen::ArrayXd& faces, double weight,
                                                            const Vector& m) const {
  Eigen::VectorXd sum = -operator_.TransposedConductanceChange(factor, faces);
  AddDifferences(m.template cast<double>(), options_.grid, weight * options_.beta, sum);
  return sum.template cast<Scalar>();
}

template class DiffusionInversion<float>;
template class DiffusionInversion<double>;

}  // namespace hfopt::models
