#ifndef HFOPT_TESTS_CONFORMANCE_DENSE_MODEL_H_
#define HFOPT_TESTS_CONFORMANCE_DENSE_MODEL_H_

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "client/cli/conformance/lab.h"
#include "client/cpp/model.h"

namespace hfopt::conformance {

// f(theta) for an example, and its Jacobian.
struct Outputs {
  Vector f;
  Eigen::MatrixXd J;
};
// Of an example, with its derivatives by f.
struct OutputLoss {
  double loss = 0;
  Vector e;
  Eigen::MatrixXd H;
};

// A model by its formulas, for one example at a time. Held-out examples have numbers from 900 on.
struct Formulas {
  int64_t num_parameters = 0;
  std::function<Outputs(const Vector& theta, int64_t example)> outputs;
  std::function<OutputLoss(const Vector& f, int64_t example)> loss;
  double l2 = 0;
  // In the place of J'HJ, without the regulariser; the right one where it is not set.
  std::function<Eigen::MatrixXd(const Vector& theta, int64_t example)> G = nullptr;
};

// Its gradients and products are summed in Scalar.
template <typename Scalar>
class DenseModel final : public client::Model<Scalar> {
 public:
  explicit DenseModel(Formulas formulas) : formulas_(std::move(formulas)) {}
  int64_t num_parameters() const override { return formulas_.num_parameters; }
  int64_t num_examples(client::DataSet data) const override { return data == client::DataSet::kTraining ? 40 : 11; }
  std::string signature() const override { return "formulas"; }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<Scalar>> InitialParameters(uint64_t seed) override {
    return client::Vector<Scalar>((0.4 * NormalVector(num_parameters(), seed)).template cast<Scalar>());
  }

  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<Scalar>& theta,
                                       const client::Examples& examples) override {
    const Vector at = theta.template cast<double>();
    client::LossSum sum;
    ForEach(examples, [&](int64_t i) {
      sum.loss += formulas_.loss(formulas_.outputs(at, i).f, i).loss + formulas_.l2 / 2 * at.squaredNorm();
      sum.weight += 1;
    });
    return sum;
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<Scalar>& theta,
                                           const client::Examples& examples,
                                           client::VectorRef<Scalar> gradient) override {
    const Vector at = theta.template cast<double>();
    gradient = static_cast<Scalar>(formulas_.l2 * examples.size()) * theta;
    ForEach(examples, [&](int64_t i) {
      const Outputs outputs = formulas_.outputs(at, i);
      gradient += (outputs.J.transpose() * formulas_.loss(outputs.f, i).e).template cast<Scalar>();
    });
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const client::ConstVectorRef<Scalar>& theta,
                                                                           const client::Examples& examples) override {
    const Vector at = theta.template cast<double>();
    Matrix G = Matrix::Identity(theta.size(), theta.size()) * static_cast<Scalar>(formulas_.l2 * examples.size());
    ForEach(examples, [&](int64_t i) {
      if (formulas_.G) {
        G += formulas_.G(at, i).template cast<Scalar>();
      } else {
        const Outputs outputs = formulas_.outputs(at, i);
        G += (outputs.J.transpose() * formulas_.loss(outputs.f, i).H * outputs.J).template cast<Scalar>();
      }
    });
    return std::make_unique<Curvature>(std::move(G), static_cast<double>(examples.size()));
  }

 private:
  using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

  class Curvature final : public client::Linearization<Scalar> {
   public:
    Curvature(Matrix G, double weight) : G_(std::move(G)), weight_(weight) {}
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<Scalar>& v,
                                    client::VectorRef<Scalar> product) override {
      product = G_ * v;
      return absl::OkStatus();
    }
    double weight() const override { return weight_; }

   private:
    const Matrix G_;
    const double weight_;
  };

  template <typename Function>
  void ForEach(const client::Examples& examples, Function f) const {
    const int64_t offset = examples.data == client::DataSet::kHeldOut ? 900 : 0;
    for (const client::IndexRange& range : examples.ranges) {
      for (int64_t i = range.begin; i < range.end; ++i) f(offset + i);
    }
  }

  const Formulas formulas_;
};

// --- Losses.

inline Vector RandomTargets(int64_t size, int64_t example) { return 2 * NormalVector(size, 7000 + example); }

inline OutputLoss SquaredError(const Vector& f, int64_t example) {
  const Vector e = f - RandomTargets(f.size(), example);
  return {e.squaredNorm() / 2, e, Eigen::MatrixXd::Identity(f.size(), f.size())};
}

// Linear where an error is above 1: H is singular there, and e outside its range.
inline OutputLoss Huber(const Vector& f, int64_t example) {
  const Vector r = f - RandomTargets(f.size(), example);
  OutputLoss result{0, r.cwiseMax(-1.).cwiseMin(1.), Eigen::MatrixXd::Zero(f.size(), f.size())};
  for (int64_t k = 0; k < f.size(); ++k) {
    const bool is_quadratic = std::abs(r[k]) < 1;
    result.loss += is_quadratic ? r[k] * r[k] / 2 : std::abs(r[k]) - 0.5;
    result.H(k, k) = is_quadratic;
  }
  return result;
}

inline OutputLoss Softmax(const Vector& f, int64_t example) {
  const double largest = f.maxCoeff();
  const Vector p = (f.array() - largest).exp() / (f.array() - largest).exp().sum();
  const int64_t label = example * 7 % f.size();
  OutputLoss result{-std::log(p[label]), p, Eigen::MatrixXd(p.asDiagonal()) - p * p.transpose()};
  result.e[label] -= 1;
  return result;
}

// --- Outputs.

// A network of one hidden layer, h = tanh(W x + c), f = V h + d, with theta = (W, c, V, d). `slope` is the derivative
// of tanh in J, as a function of h.
struct Network {
  int64_t inputs = 6, hidden = 8, outputs = 4;
  std::function<double(double h)> slope = [](double h) { return 1 - h * h; };

  int64_t first_layer() const { return hidden * (inputs + 1); }
  int64_t num_parameters() const { return first_layer() + outputs * (hidden + 1); }
  Outputs operator()(const Vector& theta, int64_t example) const {
    const Vector x = NormalVector(inputs, example);
    const double* at = theta.data();
    const Eigen::Map<const Eigen::MatrixXd> W(at, hidden, inputs), V(at + first_layer(), outputs, hidden);
    const Eigen::Map<const Vector> c(at + hidden * inputs, hidden), d(V.data() + outputs * hidden, outputs);
    const Vector h = (W * x + c).array().tanh();
    const Eigen::MatrixXd B = V * h.unaryExpr(slope).asDiagonal();  // df / d(W x + c)
    Eigen::MatrixXd J(outputs, num_parameters());
    for (int64_t i = 0; i < inputs; ++i) J.middleCols(i * hidden, hidden) = x[i] * B;
    J.middleCols(inputs * hidden, hidden) = B;
    const Eigen::MatrixXd I = Eigen::MatrixXd::Identity(outputs, outputs);
    for (int64_t i = 0; i < hidden; ++i) J.middleCols(first_layer() + i * outputs, outputs) = h[i] * I;
    J.rightCols(outputs) = I;
    return {V * h + d, std::move(J)};
  }
};

// Two networks side by side: G is block-diagonal.
inline Outputs TwoParts(const Network& part, const Vector& theta, int64_t example) {
  const int64_t n = part.num_parameters(), outputs = part.outputs;
  const Outputs first = part(theta.head(n), example), second = part(theta.tail(n), example + 500);
  Outputs result{Vector(2 * outputs), Eigen::MatrixXd::Zero(2 * outputs, 2 * n)};
  result.f << first.f, second.f;
  result.J.topLeftCorner(outputs, n) = first.J;
  result.J.bottomRightCorner(outputs, n) = second.J;
  return result;
}

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_DENSE_MODEL_H_
