#ifndef HFOPT_CLIENT_MODELS_DIFFUSION_H_
#define HFOPT_CLIENT_MODELS_DIFFUSION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/model.h"
#include "client/models/diffusion_operator.h"

namespace hfopt::models {

struct DiffusionOptions {
  int64_t grid = 96;       // cells along a side: grid^2 parameters
  int64_t sources = 64;    // the examples
  int64_t receivers = 64;  // measurements of each source's field
  double noise = 0.01;     // sigma, the noise's standard deviation, over the root mean square of all exact measurements
  double beta = 1e-3;      // of the regulariser beta / 2 |grad m|^2
  uint64_t seed = 1;       // of the true field and the noise

  // INVALID_ARGUMENT naming the field, its value and what is allowed.
  absl::Status Validate() const;
};

// An inverse problem: the log-conductivity m of a square plate, from measurements of the fields u_s that each of
// several point sources of strength 1 excites in turn,
//     -div(exp(m) grad u_s) = delta(x - x_s), u_s = 0 on the boundary    (DiffusionOperator)
// theta is m, a value for each cell, row by row. Example s is source s with the loss
//     1 / (2 receivers) sum over receivers of ((u_s(x_r) - d_rs) / sigma)^2 + beta / 2 |grad m|^2
// so that its mean over all sources is about 1/2 + beta / 2 |grad m|^2 at the truth. |grad m|^2 is the integral over
// the square; in two dimensions the sum of (m_a - m_b)^2 over the faces between cells, without a factor of the cells'
// width.
//
// Sources and receivers lie where a sequence of low discrepancy puts them, so every window of the examples covers the
// square. The truth is smooth with three inclusions, soft-edged discs more or less conductive than the rest. Its
// measurements d are computed on the same grid. The held-out data are the training data: nothing is to be generalised
// to, and the question whether a step is good is one about the objective itself.
//
// Gradients by the adjoint method; exact Gauss-Newton products by one incremental and one adjoint solve a source. All
// in double, theta and results rounded to Scalar. The factor and the fields u_s at the last theta are kept for the next
// call at the same theta, and a linearization shares them: 2 MB and, for 64 sources, 4.7 MB at grid 96. Answers do not
// depend on what is kept. Where A(theta) has no factor in double, because conductivities are not finite and positive or
// too far apart, the loss is infinite, and gradients and products are NaN.
//
// Deterministic for one binary and machine (exp and cos are the C library's); single-threaded, not thread-safe.
template <typename Scalar>
class DiffusionInversion final : public client::Model<Scalar> {
 public:
  using Vector = client::Vector<Scalar>;
  using ConstVectorRef = client::ConstVectorRef<Scalar>;
  using VectorRef = client::VectorRef<Scalar>;

  // INVALID_ARGUMENT when the options are invalid.
  static absl::StatusOr<std::unique_ptr<DiffusionInversion>> Create(const DiffusionOptions& options);

  int64_t num_parameters() const override { return operator_.num_cells(); }
  int64_t num_examples(client::DataSet) const override { return options_.sources; }
  std::string signature() const override;

  // All that take theta: INVALID_ARGUMENT when it has not n elements, OUT_OF_RANGE when an example is not in the data.
  absl::StatusOr<client::LossSum> Loss(const ConstVectorRef& theta, const client::Examples& examples) override;
  absl::StatusOr<client::LossSum> Gradient(const ConstVectorRef& theta, const client::Examples& examples,
                                           VectorRef gradient) override;
  // The linearization must not outlive the model.
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const ConstVectorRef& theta,
                                                                           const client::Examples& examples) override;

  // Zeros, whatever the seed: unit conductivity.
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector> InitialParameters(uint64_t seed) override;

  // |m - truth| / |truth|, for judging a result: the losses know nothing of it.
  absl::StatusOr<double> RelativeError(const ConstVectorRef& theta) const;
  // The fields at the receivers (receivers x sources).
  absl::StatusOr<Eigen::MatrixXd> Outputs(const ConstVectorRef& theta);

  const Eigen::VectorXd& truth() const { return truth_; }
  const Eigen::MatrixXd& measurements() const { return measurements_; }  // d, receivers x sources
  double sigma() const { return sigma_; }
  // The cells in which sources and receivers lie.
  const std::vector<int64_t>& sources() const { return sources_; }
  const std::vector<int64_t>& receivers() const { return receivers_; }

 private:
  template <typename>
  friend class DiffusionLinearization;

  // Sources are solved for kLanes at a time, source s in row s % kLanes of group s / kLanes. Of the last group some
  // rows may be without a source, and zero.
  static constexpr int kLanes = DiffusionOperator::kLanes;
  using Fields = DiffusionOperator::Fields;
  using Lanes = Eigen::Array<double, kLanes, 1>;

  // What is known at one theta.
  struct Point {
    Vector theta;
    std::optional<DiffusionOperator::Factor> factor;
    std::vector<Fields> states;  // u of each group; empty until it is asked for
  };

  explicit DiffusionInversion(const DiffusionOptions& options);

  int64_t num_groups() const { return (options_.sources + kLanes - 1) / kLanes; }
  // The last point if it is this one.
  std::shared_ptr<Point> At(const ConstVectorRef& theta);
  // u of a group. The point has a factor.
  const Fields& State(Point& point, int64_t group) const;
  // Values at the receivers, a column for each.
  Fields Observe(const Fields& fields) const;
  // (u - d) / sigma at the receivers.
  Fields Residuals(const Fields& state, int64_t group) const;
  // f(group, how often each of its sources is among the examples) for the groups that occur.
  template <typename Function>
  void ForEachGroup(const client::Examples& examples, Function f) const;
  // Adds the sum over the group's sources of y' (du/dm at the receivers) as a derivative with respect to -conductances.
  void AddAdjoint(const DiffusionOperator::Factor& factor, const Fields& state, const Fields& y, Eigen::ArrayXd& faces);
  // The gradient or product whose part from the measurements is -faces and whose regulariser is taken at m.
  Vector Assemble(const DiffusionOperator::Factor& factor, const Eigen::ArrayXd& faces, double weight,
                  const Vector& m) const;

  const DiffusionOptions options_;
  DiffusionOperator operator_;
  std::vector<int64_t> sources_, receivers_;
  Eigen::VectorXd truth_;
  Eigen::MatrixXd measurements_;
  double sigma_ = 1;
  std::shared_ptr<Point> point_;  // the last
  Fields incremental_, adjoint_;  // buffers
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_DIFFUSION_H_
