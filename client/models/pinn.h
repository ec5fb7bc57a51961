#ifndef HFOPT_CLIENT_MODELS_PINN_H_
#define HFOPT_CLIENT_MODELS_PINN_H_

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

namespace hfopt::models {

// A linear differential equation whose solution u* is known, and the loss of a function u that is to satisfy it. The
// points: a grid of 30 x 30 cells over the domain with one point in each, equally distributed in its cell, and on the
// boundary the middles of equal intervals.
enum class PinnProblem {
  // -(u_xx + u_yy) = f on (0, 1)^2, u = u* on the boundary; u* = sin(pi x) sin(pi y) + sin(4 pi x) sin(3 pi y) / 2.
  // Loss: mean (u_xx + u_yy + f)^2 over 900 points + 100 mean (u - u*)^2 over 40 points of each side.
  kPoisson,
  // u_t + 30 u_x = 0 for 0 < x < 2 pi, 0 < t < 1, u(x, 0) = sin x, u(0, t) = u(2 pi, t); u* = sin(x - 30 t).
  // Networks of low loss can be far from u* (Krishnapriyan et al. 2021): judge them by RelativeError.
  // Loss: mean (u_t + 30 u_x)^2 over 900 points + mean (u - u*)^2 over 128 points at t = 0
  // + mean (u(0, t) - u(2 pi, t))^2 over 64 t.
  kConvection,
};

absl::string_view Name(PinnProblem problem);  // "poisson", "convection"

struct PinnOptions {
  PinnProblem problem = PinnProblem::kPoisson;
  // Widths from the two coordinates to the value, at least one of them hidden. Empty: 2-32-32-1 for kPoisson,
  // 2-50-50-50-1 for kConvection.
  std::vector<int64_t> layers;
  uint64_t data_seed = 1;  // of the points and of the examples' order
  // Examples in one matrix product; memory grows with it. Measured (hfopt_pinn_bench): 32 to 256 are equally fast
  // within 6 %, 512 loses 10 %, all in one 20 to 40 %.
  int64_t block_size = 128;

  // INVALID_ARGUMENT naming the field, its value and what is allowed.
  absl::Status Validate() const;
};

enum class PinnResidual {
  kInterior,  // of the equation at (x, y)
  kValue,     // u(x, y) - right_side
  kPeriodic,  // u(x, y) - u(x + width of the domain, y)
};

// r = what `residual` says, at (x, y); y is the time of kConvection.
struct PinnExample {
  PinnResidual residual = PinnResidual::kInterior;
  double x = 0;
  double y = 0;
  double right_side = 0;
};

// A physics-informed network (Raissi, Perdikaris & Karniadakis 2019): a multilayer perceptron u(x, y) with tanh units
// and a linear output, from the plain coordinates. theta holds, layer by layer, W column after column, then b. Example
// i is a residual r_i with loss c_i r_i^2; c_i = (N / number of its kind) * the kind's weight, so that the mean over
// all examples is the problem's loss. The metrics "interior_loss", "value_loss", "periodic_loss" are the parts of the
// loss sum.
//
// Derivatives with respect to the coordinates are exact: an interior point carries, beside its values, their first
// derivatives along each axis that the equation differentiates twice, and the values of the differential operator,
// through all layers; other points carry values alone. So are gradients and Gauss-Newton products (forward tangent, 2
// c_i, backward). Residuals are summed in double.
//
// The held-out data are the training data: there is no noise, hence nothing to overfit but the choice of points, and
// the optimizer has to accept a step by the loss that it minimises. How good u is between the points, RelativeError
// tells.
//
// Deterministic for one binary and machine; single-threaded, and not thread-safe, because the buffers of a block are
// shared.
template <typename Scalar>
class Pinn final : public client::Model<Scalar> {
 public:
  using Vector = client::Vector<Scalar>;
  using ConstVectorRef = client::ConstVectorRef<Scalar>;
  using VectorRef = client::VectorRef<Scalar>;

  static absl::StatusOr<std::unique_ptr<Pinn>> Create(PinnOptions options);

  int64_t num_parameters() const override;
  int64_t num_examples(client::DataSet) const override { return static_cast<int64_t>(examples_.size()); }
  std::string signature() const override;

  // All that take theta: INVALID_ARGUMENT when it has not n elements, OUT_OF_RANGE when an example is not in the data.
  absl::StatusOr<client::LossSum> Loss(const ConstVectorRef& theta, const client::Examples& examples) override;
  absl::StatusOr<client::LossSum> Gradient(const ConstVectorRef& theta, const client::Examples& examples,
                                           VectorRef gradient) override;
  // Keeps 2 * (sum of the hidden widths) numbers for each column of a point: one for its value and, inside, one for
  // each derivative. Must not outlive the Pinn.
  absl::StatusOr<std::unique_ptr<client::Linearization<Scalar>>> Linearize(const ConstVectorRef& theta,
                                                                           const client::Examples& examples) override;

  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector> InitialParameters(uint64_t seed) override;  // Initialization::kGlorot

  // residuals(j) = r of the j-th of the examples; resized.
  absl::Status Residuals(const ConstVectorRef& theta, const client::Examples& examples, Vector& residuals);
  // values(j) = u at (points(0, j), points(1, j)); resized.
  absl::Status Values(const ConstVectorRef& theta, const Matrix<Scalar>& points, Vector& values);
  // |u - u*| / |u*|, 2-norms over a grid of 101 x 101 points, the domain's edges included.
  absl::StatusOr<double> RelativeError(const ConstVectorRef& theta);

  double ExactSolution(double x, double y) const;
  const std::vector<PinnExample>& examples() const { return examples_; }  // in their fixed, shuffled order
  double loss_weight(PinnResidual residual) const;                        // c_i of such examples

 private:
  template <typename>
  friend class PinnLinearization;
  struct Block;
  // A matrix for each hidden layer, its columns as Block says; the first entry is unused.
  using Layers = std::vector<Matrix<Scalar>>;

  explicit Pinn(PinnOptions options);

  int num_layers() const { return static_cast<int>(options_.layers.size()) - 1; }  // L
  Layers MakeLayers(int64_t columns) const;
  Block MakeBlock(const client::Examples& examples) const;
  // f(block, position of its first example), block by block.
  template <typename Function>
  void ForEachBlock(const client::Examples& examples, Function f) const;

  // a <- streams of the hidden layers at theta, s <- streams of the slopes, outputs_ <- the output layer's.
  void Forward(const ConstVectorRef& theta, const Block& block, Layers& a, Layers& s);
  // d_, outputs_ <- the derivatives in direction v of what Forward computes.
  void TangentForward(const ConstVectorRef& theta, const ConstVectorRef& v, const Block& block, const Layers& a, const Layers& s);
  // The transpose of TangentForward: adds to `gradient` from the outputs_; overwrites d_.
  void Backward(const ConstVectorRef& theta, const Block& block, const Layers& a, const Layers& s, VectorRef gradient);
  // residuals_ <- from outputs_, without right sides.
  void Reduce(const Block& block);
  // outputs_ <- the transpose of Reduce, from 2 c_i residuals_.
  void WeightAndSpread(const Block& block);
  // Reduce, less the right sides; adds losses to `sum`.
  void ComputeResiduals(const Block& block, client::LossSum& sum);

  const PinnOptions options_;
  const std::vector<PinnExample> examples_;
  int64_t kind_sizes_[3] = {};

  // Buffers of one block, for all calls.
  Layers a_, s_, d_;
  Vector outputs_, residuals_;
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_PINN_H_
