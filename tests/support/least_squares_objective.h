#ifndef HFOPT_TESTS_SUPPORT_LEAST_SQUARES_OBJECTIVE_H_
#define HFOPT_TESTS_SUPPORT_LEAST_SQUARES_OBJECTIVE_H_

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/objective.h"
#include "core/sample.h"
#include "core/vector.h"

namespace hfopt::support {

// One residual for each example, and its gradient with respect to theta.
struct Residual {
  double value = 0;
  Eigen::VectorXd gradient;
};
using ResidualFunction = std::function<Residual(const Eigen::VectorXd& theta, int64_t example)>;

// L(theta) = mean of r_i(theta)^2 / 2, g = mean of r_i J_i, G = mean of J_i J_i', over the examples of a sample, in
// shard order. Training and held-out example i have the same residual. Computed in double, answered in Scalar.
template <typename Scalar>
class LeastSquaresObjective : public Objective<Scalar> {
 public:
  LeastSquaresObjective(int64_t num_parameters, DataLayout layout, ResidualFunction residual)
      : n_(num_parameters), layout_(layout), residual_(std::move(residual)) {}

  int64_t num_parameters() const override { return n_; }
  const DataLayout& layout() const override { return layout_; }
  bool has_second_moment() const override { return true; }

  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample& sample) override {
    std::vector<LossAnswer> answers;
    for (const Trial<Scalar>& trial : trials) {
      Vector<Scalar> point = theta;
      if (trial.direction != nullptr) Axpy(trial.step, *trial.direction, point);
      double sum = 0;
      for (const Residual& r : Residuals(point, sample)) sum += r.value * r.value / 2;
      const double weight = static_cast<double>(sample.size());
      answers.push_back({.loss = sum / weight, .weight = weight, .metrics = {{"half_square", sum / weight}}});
    }
    return answers;
  }

  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override {
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(n_), squares = Eigen::VectorXd::Zero(n_);
    double loss = 0;
    for (const Residual& r : Residuals(theta, sample)) {
      const Eigen::VectorXd gradient = r.value * r.gradient;
      sum += gradient;
      squares += gradient.cwiseAbs2();
      loss += r.value * r.value / 2;
    }
    const double size = static_cast<double>(sample.size());
    GradientAnswer<Scalar> answer{.loss = loss / size, .weight = size, .gradient = (sum / size).cast<Scalar>()};
    // The variance of a mean is that of one term over their number.
    if (extras.sub_batches > 0) answer.noise = std::sqrt((squares / size - (sum / size).cwiseAbs2()).sum() / size);
    if (extras.second_moment) answer.second_moment = (squares / size).cast<Scalar>();
    return answer;
  }

  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                          const Sample& sample) override {
    return std::make_unique<Product>(Residuals(theta, sample));
  }

 private:
  class Product : public CurvatureProduct<Scalar> {
   public:
    explicit Product(std::vector<Residual> residuals) : residuals_(std::move(residuals)) {}
    absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
      const Eigen::VectorXd vd = v.template cast<double>();
      Eigen::VectorXd sum = Eigen::VectorXd::Zero(v.size());
      for (const Residual& r : residuals_) sum += r.gradient.dot(vd) * r.gradient;
      product = (sum / static_cast<double>(residuals_.size())).cast<Scalar>();
      return absl::OkStatus();
    }

   private:
    std::vector<Residual> residuals_;
  };

  std::vector<Residual> Residuals(const Vector<Scalar>& theta, const Sample& sample) const {
    const Eigen::VectorXd point = theta.template cast<double>();
    std::vector<Residual> residuals;
    for (int s = 0; s < layout_.shards; ++s) {
      const Window& window = sample.windows[s];
      for (int64_t j = 0; j < window.count; ++j) {
        residuals.push_back(residual_(
            point, layout_.ShardBegin(sample.data, s) + (window.begin + j) % layout_.ShardSize(sample.data, s)));
      }
    }
    return residuals;
  }

  int64_t n_;
  DataLayout layout_;
  ResidualFunction residual_;
};

// r_i = A_i theta - y_i: the loss is quadratic and G its Hessian.
inline ResidualFunction LinearResiduals(Eigen::MatrixXd A, Eigen::VectorXd y) {
  return [A = std::move(A), y = std::move(y)](const Eigen::VectorXd& theta, int64_t i) {
    return Residual{A.row(i).dot(theta) - y[i], A.row(i).transpose()};
  };
}

// r_i = A_i theta + (C_i theta)^2 / 2 - y_i: smooth and curved, with the Hessian J'J + sum r_i C_i'C_i.
inline ResidualFunction CurvedResiduals(Eigen::MatrixXd A, Eigen::MatrixXd C, Eigen::VectorXd y) {
  return [A = std::move(A), C = std::move(C), y = std::move(y)](const Eigen::VectorXd& theta, int64_t i) {
    const double c = C.row(i).dot(theta);
    return Residual{A.row(i).dot(theta) + c * c / 2 - y[i], A.row(i).transpose() + c * C.row(i).transpose()};
  };
}

// Rosenbrock's chain as 2 (n - 1) residuals, 10 (x_{i+1} - x_i^2) and 1 - x_i. The minimum is 0 at (1, ..., 1).
inline ResidualFunction RosenbrockResiduals(int64_t n) {
  return [n](const Eigen::VectorXd& x, int64_t example) {
    const int64_t i = example / 2;
    Residual r{0, Eigen::VectorXd::Zero(n)};
    if (example % 2 == 0) {
      r.value = 10 * (x[i + 1] - x[i] * x[i]);
      r.gradient[i + 1] = 10;
      r.gradient[i] = -20 * x[i];
    } else {
      r.value = 1 - x[i];
      r.gradient[i] = -1;
    }
    return r;
  };
}

// a exp(-b t) + c at t = i / 100 against the curve with (a, b, c) = (2, 1, 0.5): the minimum is 0 there.
inline ResidualFunction ExponentialResiduals() {
  return [](const Eigen::VectorXd& p, int64_t i) {
    const double t = 0.01 * static_cast<double>(i);
    const double e = std::exp(-p[1] * t);
    return Residual{p[0] * e + p[2] - (2 * std::exp(-t) + 0.5), Eigen::Vector3d(e, -t * p[0] * e, 1)};
  };
}

}  // namespace hfopt::support

#endif  // HFOPT_TESTS_SUPPORT_LEAST_SQUARES_OBJECTIVE_H_
