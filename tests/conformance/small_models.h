#ifndef HFOPT_TESTS_CONFORMANCE_SMALL_MODELS_H_
#define HFOPT_TESTS_CONFORMANCE_SMALL_MODELS_H_

#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "client/cli/conformance/lab.h"
#include "client/models/mlp.h"

namespace hfopt::conformance {

// Random examples, held-out ones other than those for training, and not as many.
template <typename Scalar>
class RandomSource final : public models::DataSource<Scalar> {
 public:
  // `targets` 0: labels of `classes` classes.
  RandomSource(int64_t inputs, int64_t classes, int64_t targets, int64_t training = 61, int64_t held_out = 23)
      : inputs_(inputs), classes_(classes), targets_(targets), training_(training), held_out_(held_out) {}

  int64_t num_examples(client::DataSet data) const override {
    return data == client::DataSet::kTraining ? training_ : held_out_;
  }
  int64_t input_size() const override { return inputs_; }
  int64_t num_classes() const override { return classes_; }
  int64_t target_size() const override { return targets_; }
  std::string signature() const override { return "random"; }

  void Inputs(client::DataSet data, int64_t begin, Eigen::Ref<models::Matrix<Scalar>> inputs) const override {
    for (int64_t j = 0; j < inputs.cols(); ++j)
      inputs.col(j) = Numbers(data, begin + j, inputs_, 0).template cast<Scalar>();
  }
  void Labels(client::DataSet data, int64_t begin, absl::Span<int32_t> labels) const override {
    for (size_t j = 0; j < labels.size(); ++j) labels[j] = static_cast<int32_t>(Seed(data, begin + j) * 7 % classes_);
  }
  // In (0, 1), as the Bernoulli loss wants them.
  void Targets(client::DataSet data, int64_t begin, Eigen::Ref<models::Matrix<Scalar>> targets) const override {
    for (int64_t j = 0; j < targets.cols(); ++j) {
      targets.col(j) =
          (1 / (1 + (-Numbers(data, begin + j, targets_, 1'000'000).array()).exp())).matrix().template cast<Scalar>();
    }
  }

 private:
  static uint64_t Seed(client::DataSet data, int64_t example) {
    return example + (data == client::DataSet::kHeldOut ? 5000 : 0);
  }
  static Vector Numbers(client::DataSet data, int64_t example, int64_t size, uint64_t kind) {
    return NormalVector(size, Seed(data, example) + kind);
  }

  const int64_t inputs_, classes_, targets_, training_, held_out_;
};

template <typename Scalar>
std::unique_ptr<client::Model<Scalar>> MakeMlp(models::MlpOptions options, int64_t training = 61) {
  const int64_t inputs = options.layers.front(), outputs = options.layers.back();
  const bool labels = options.loss == models::MlpLoss::kSoftmaxCrossEntropy;
  return models::Mlp<Scalar>::Create(
             std::move(options),
             std::make_shared<RandomSource<Scalar>>(inputs, labels ? outputs : 0, labels ? 0 : outputs, training))
      .value();
}

// Slow enough for an evaluation that outlasts a lease: examples are made when they are asked for.
inline std::unique_ptr<client::Model<double>> MakeSlowClassifier() {
  return MakeMlp<double>({.layers = {40, 200, 10}, .activations = {models::Activation::kTanh}}, 6000);
}

// 92 parameters, softmax cross-entropy with a regulariser.
inline std::unique_ptr<client::Model<double>> MakeClassifier(double l2 = 0.02) {
  return MakeMlp<double>({.layers = {6, 8, 4}, .activations = {models::Activation::kTanh}, .l2 = l2});
}

// Example i has the loss |A_i theta - b_i|^2 / 2: least squares, linear in theta.
template <typename Scalar>
class LinearLeastSquares final : public client::Model<Scalar> {
 public:
  explicit LinearLeastSquares(int64_t n) : n_(n) {}
  int64_t num_parameters() const override { return n_; }
  int64_t num_examples(client::DataSet data) const override { return data == client::DataSet::kTraining ? 40 : 11; }
  std::string signature() const override { return "linear least squares"; }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<Scalar>& theta,
                                       const client::Examples& examples) override {
    client::LossSum sum;
    ForEach(examples, [&](const client::Vector<Scalar>& a, Scalar b) {
      const double r = a.dot(theta) - b;
      sum.loss += r * r / 2;
      sum.weight += 1;
    });
    return sum;
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<Scalar>& theta,
                                           const client::Examples& examples,
                                           client::VectorRef<Scalar> gradient) override {
    gradient.setZero();
    ForEach(examples, [&](const client::Vector<Scalar>& a, Scalar b) { gradient += (a.dot(theta) - b) * a; });
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const client::ConstVectorRef<Scalar>&,
                                                                           const client::Examples& examples) override {
    return std::make_unique<Curvature>(*this, examples);
  }

 private:
  class Curvature final : public client::Linearization<Scalar> {
   public:
    Curvature(LinearLeastSquares& model, client::Examples examples) : model_(model), examples_(std::move(examples)) {}
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<Scalar>& v,
                                    client::VectorRef<Scalar> product) override {
      product.setZero();
      model_.ForEach(examples_, [&](const client::Vector<Scalar>& a, Scalar) { product += a.dot(v) * a; });
      return absl::OkStatus();
    }
    double weight() const override { return static_cast<double>(examples_.size()); }

   private:
    LinearLeastSquares& model_;
    const client::Examples examples_;
  };

  template <typename Function>
  void ForEach(const client::Examples& examples, Function f) const {
    for (const client::IndexRange& range : examples.ranges) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        const Vector numbers = NormalVector(n_ + 1, i + (examples.data == client::DataSet::kHeldOut ? 900 : 0));
        f(numbers.head(n_).template cast<Scalar>(), static_cast<Scalar>(numbers[n_]));
      }
    }
  }

  const int64_t n_;
};

// Example i is an observation of exp(-theta_0^2 t) cos(theta_1 t) + theta_2 theta_3 sin(t) at t = i / 10, by least
// squares: linear in theta_2 and in theta_3, but not in both, and in too few parameters to be noticed. J by hand.
template <typename Scalar>
class DecayCurve final : public client::Model<Scalar> {
 public:
  int64_t num_parameters() const override { return 4; }
  int64_t num_examples(client::DataSet data) const override { return data == client::DataSet::kTraining ? 50 : 20; }
  std::string signature() const override { return "decay"; }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<Scalar>& theta,
                                       const client::Examples& examples) override {
    client::LossSum sum;
    ForEach(theta, examples, [&](double r, const Vector&) {
      sum.loss += r * r / 2;
      sum.weight += 1;
    });
    return sum;
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<Scalar>& theta,
                                           const client::Examples& examples,
                                           client::VectorRef<Scalar> gradient) override {
    Vector g = Vector::Zero(4);
    ForEach(theta, examples, [&](double r, const Vector& j) { g += r * j; });
    gradient = g.cast<Scalar>();
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const client::ConstVectorRef<Scalar>& theta,
                                                                           const client::Examples& examples) override {
    Eigen::MatrixXd g = Eigen::MatrixXd::Zero(4, 4);
    ForEach(theta, examples, [&](double, const Vector& j) { g += j * j.transpose(); });
    return std::make_unique<Curvature>(g, static_cast<double>(examples.size()));
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<Scalar>> InitialParameters(uint64_t) override {
    client::Vector<Scalar> theta(4);
    theta << 0.7, 1.3, 0.5, -0.4;
    return theta;
  }

 private:
  class Curvature final : public client::Linearization<Scalar> {
   public:
    Curvature(const Eigen::MatrixXd& g, double weight) : g_(g), weight_(weight) {}
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<Scalar>& v,
                                    client::VectorRef<Scalar> product) override {
      const Vector x = v.template cast<double>();
      const Vector y = g_ * x;
      product = y.cast<Scalar>();
      return absl::OkStatus();
    }
    double weight() const override { return weight_; }

   private:
    const Eigen::MatrixXd g_;
    const double weight_;
  };

  template <typename Function>
  void ForEach(const client::ConstVectorRef<Scalar>& theta, const client::Examples& examples, Function f) const {
    const Vector p = theta.template cast<double>();
    Vector jacobian(4);
    for (const client::IndexRange& range : examples.ranges) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        const double t = 0.1 * i + (examples.data == client::DataSet::kHeldOut ? 0.05 : 0);
        const double decay = std::exp(-p[0] * p[0] * t), c = std::cos(p[1] * t), s = std::sin(p[1] * t);
        const double observed = std::exp(-0.5 * t) * std::cos(1.2 * t) - 0.3 * std::sin(t);
        jacobian << -2 * p[0] * t * decay * c, -t * decay * s, p[3] * std::sin(t), p[2] * std::sin(t);
        f(decay * c + p[2] * p[3] * std::sin(t) - observed, jacobian);
      }
    }
  }
};

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_SMALL_MODELS_H_
