#ifndef HFOPT_TESTS_SUPPORT_DENSE_PROBLEM_H_
#define HFOPT_TESTS_SUPPORT_DENSE_PROBLEM_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "Eigen/Dense"
#include "absl/status/status.h"
#include "core/objective.h"
#include "core/vector.h"

namespace hfopt::support {

// Numbers in [-1, 1), the same on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  double Number() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }
  Eigen::VectorXd Vector(int n) { return Matrix(n, 1); }
  Eigen::MatrixXd Matrix(int rows, int columns) {
    Eigen::MatrixXd a(rows, columns);
    for (double& x : a.reshaped()) x = Number();
    return a;
  }
  Eigen::MatrixXd Orthogonal(int n) { return Eigen::HouseholderQR<Eigen::MatrixXd>(Matrix(n, n)).householderQ(); }
  Eigen::MatrixXd Symmetric(const Eigen::VectorXd& eigenvalues) {
    const Eigen::MatrixXd Q = Orthogonal(static_cast<int>(eigenvalues.size()));
    const Eigen::MatrixXd a = Q * eigenvalues.asDiagonal() * Q.transpose();
    return (a + a.transpose()) / 2;
  }
  // Eigenvalues from 1 / condition to 1, evenly spaced in the logarithm.
  Eigen::MatrixXd Spd(int n, double condition) {
    return Symmetric(Eigen::ArrayXd::LinSpaced(n, -std::log(condition), 0).exp());
  }

 private:
  std::mt19937_64 engine_;
};

// G v for a matrix at hand. Remembers what it was asked, and fails on request.
template <typename Scalar>
class DenseProduct : public CurvatureProduct<Scalar> {
 public:
  explicit DenseProduct(Eigen::MatrixXd G) : G_(std::move(G)) {}

  absl::Status Apply(const hfopt::Vector<Scalar>& v, hfopt::Vector<Scalar>& product) override {
    const int call = static_cast<int>(asked.size());
    asked.push_back(v.template cast<double>());
    if (call == fails_at) return absl::UnavailableError("scripted failure");
    product = (G_ * asked.back()).template cast<Scalar>();
    if (call == nan_at) product[product.size() / 2] = std::numeric_limits<Scalar>::quiet_NaN();
    return absl::OkStatus();
  }

  int fails_at = -1;  // call, counted from 0
  int nan_at = -1;
  std::vector<Eigen::VectorXd> asked;

 private:
  Eigen::MatrixXd G_;
};

}  // namespace hfopt::support

#endif  // HFOPT_TESTS_SUPPORT_DENSE_PROBLEM_H_
