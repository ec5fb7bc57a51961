#ifndef HFOPT_TESTS_CLIENT_CPP_QUADRATIC_MODEL_H_
#define HFOPT_TESTS_CLIENT_CPP_QUADRATIC_MODEL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "client/cpp/model.h"
#include "proto/wire/shared_vector.h"

namespace hfopt::client {

// Example i costs (i + 1)/2 |theta|^2: small integers in, small integers out, so that tests compare without tolerance.
// Counts its calls, and runs `before` at the beginning of each, for tests that need a call to block or to fail.
template <typename Scalar>
class QuadraticModel : public Model<Scalar> {
 public:
  explicit QuadraticModel(int64_t n, int64_t training = 100, int64_t held_out = 10)
      : n_(n), training_(training), held_out_(held_out) {}

  // Sum of the examples' factors i + 1.
  static double Factor(const Examples& examples) {
    double sum = 0;
    for (const IndexRange& r : examples.ranges) {
      for (int64_t i = r.begin; i < r.end; ++i) sum += i + 1;
    }
    return sum;
  }

  int64_t num_parameters() const override { return n_; }
  int64_t num_examples(DataSet data) const override { return data == DataSet::kTraining ? training_ : held_out_; }
  std::string signature() const override { return "quadratic"; }

  absl::StatusOr<LossSum> Loss(const ConstVectorRef<Scalar>& theta, const Examples& examples) override {
    ++loss_calls;
    if (auto s = before(); !s.ok()) return s;
    const double loss = Factor(examples) * theta.squaredNorm() / 2;
    return LossSum{loss, static_cast<double>(examples.size()), {{"double_loss", 2 * loss}}};
  }

  absl::StatusOr<LossSum> Gradient(const ConstVectorRef<Scalar>& theta, const Examples& examples,
                                   VectorRef<Scalar> gradient) override {
    ++gradient_calls;
    if (auto s = before(); !s.ok()) return s;
    gradient = static_cast<Scalar>(Factor(examples)) * theta;
    return LossSum{Factor(examples) * theta.squaredNorm() / 2, static_cast<double>(examples.size()), {}};
  }

  absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> Linearize(const ConstVectorRef<Scalar>& theta,
                                                                   const Examples& examples) override {
    ++linearize_calls;
    if (auto s = before(); !s.ok()) return s;
    return std::make_unique<Curvature>(*this, theta, examples);
  }

  bool has_second_moment() const override { return true; }
  absl::Status SecondMoment(const ConstVectorRef<Scalar>& theta, const Examples& examples,
                            VectorRef<Scalar> second_moment) override {
    second_moment.setZero();
    for (const IndexRange& r : examples.ranges) {
      for (int64_t i = r.begin; i < r.end; ++i) second_moment += (Scalar(i + 1) * theta).cwiseAbs2();
    }
    return absl::OkStatus();
  }

  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector<Scalar>> InitialParameters(uint64_t seed) override {
    const Vector<Scalar> theta = Vector<Scalar>::Constant(n_, Scalar(seed));
    return theta;
  }

  std::function<absl::Status()> before = [] { return absl::OkStatus(); };
  std::atomic<int> loss_calls = 0, gradient_calls = 0, linearize_calls = 0, live_linearizations = 0;

 private:
  // Keeps a view of theta, as models may.
  class Curvature : public Linearization<Scalar> {
   public:
    Curvature(QuadraticModel& model, const ConstVectorRef<Scalar>& theta, const Examples& examples)
        : model_(model), theta_(theta.data(), theta.size()), examples_(examples) {
      ++model_.live_linearizations;
    }
    ~Curvature() override { --model_.live_linearizations; }
    absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) override {
      if (auto s = model_.before(); !s.ok()) return s;
      // G depends on theta, so that products at different points differ.
      product = static_cast<Scalar>(Factor(examples_)) * theta_[0] * v;
      return absl::OkStatus();
    }
    double weight() const override { return static_cast<double>(examples_.size()); }

   private:
    QuadraticModel& model_;
    const typename wire::SharedVector<Scalar>::ConstMap theta_;
    const Examples examples_;
  };

  const int64_t n_, training_, held_out_;
};

}  // namespace hfopt::client

#endif  // HFOPT_TESTS_CLIENT_CPP_QUADRATIC_MODEL_H_
