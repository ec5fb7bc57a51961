#include "server/convert/checkpoint.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/wire/vector_codec.h"
#include "server/convert/report.h"

namespace hfopt::server {
namespace {

constexpr char kTheta[] = "theta";
constexpr char kWarmStart[] = "warm_start";
std::string DirectionName(int pair) { return absl::StrCat("pairs.", pair, ".direction"); }
std::string ProductName(int pair) { return absl::StrCat("pairs.", pair, ".product"); }

// Moves a tensor out.
template <typename Scalar>
absl::StatusOr<Vector<Scalar>> Take(Checkpoint& checkpoint, const std::string& name) {
  const auto found = checkpoint.tensors.find(name);
  Vector<Scalar>* vector = found == checkpoint.tensors.end() ? nullptr : std::get_if<Vector<Scalar>>(&found->second);
  if (vector == nullptr) {
    return absl::DataLossError(absl::StrCat("checkpoint of iteration ", checkpoint.meta.iteration(), " has no tensor '",
                                            name, "' of ", wire::ElementTypeName(wire::ElementTypeOf<Scalar>())));
  }
  return std::move(*vector);
}

// Counts are uint in proto and int in core.
template <typename Count, typename Value>
absl::Status ReadCount(const char* name, Count count, Value& value) {
  if (count > static_cast<uint64_t>(std::numeric_limits<Value>::max())) {
    return absl::DataLossError(absl::StrCat("checkpoint: ", name, " is ", count, ", beyond what a state holds (",
                                            std::numeric_limits<Value>::max(), ")"));
  }
  value = static_cast<Value>(count);
  return absl::OkStatus();
}

}  // namespace

template <typename Scalar>
CheckpointView ViewCheckpoint(const OptimizerState<Scalar>& state) {
  CheckpointView view;
  v1::Checkpoint& meta = view.meta;
  meta.set_format_version(1);
  meta.set_element_type(wire::ElementTypeOf<Scalar>());
  meta.set_num_parameters(state.theta.size());
  meta.set_num_pairs(state.pairs.size());
  meta.set_iteration(state.iteration);
  meta.set_damping(state.damping);
  meta.set_cg_limit(state.cg_limit);
  meta.set_held_out_loss(state.held_out_loss);
  meta.set_held_out_examples(state.held_out_examples);
  meta.mutable_held_out_metrics()->insert(state.held_out_metrics.begin(), state.held_out_metrics.end());
  meta.set_gradient_norm(state.gradient_norm);
  meta.set_gradient_examples(state.gradient_examples);
  meta.set_next_gradient_size(state.next_gradient_size);
  meta.set_gradient_cursor(state.gradient_cursor);
  meta.set_curvature_cursor(state.curvature_cursor);
  meta.set_consecutive_rejections(state.consecutive_rejections);
  meta.set_stalled_iterations(state.stalled_iterations);
  *meta.mutable_cost() = CostToProto(state.cost, /*training_examples=*/0);

  view.tensors.push_back(wire::View(kTheta, state.theta));
  if (state.warm_start.size() > 0) view.tensors.push_back(wire::View(kWarmStart, state.warm_start));
  for (size_t i = 0; i < state.pairs.size(); ++i) {
    view.tensors.push_back(wire::View(DirectionName(i), state.pairs[i]->p));
    view.tensors.push_back(wire::View(ProductName(i), state.pairs[i]->Gp));
  }
  return view;
}

template <typename Scalar>
absl::StatusOr<OptimizerState<Scalar>> StateFromCheckpoint(Checkpoint checkpoint) {
  const v1::Checkpoint& meta = checkpoint.meta;
  if (meta.element_type() != wire::ElementTypeOf<Scalar>()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "checkpoint of iteration ", meta.iteration(), " holds ", wire::ElementTypeName(meta.element_type()),
        ", the run computes in ", wire::ElementTypeName(wire::ElementTypeOf<Scalar>())));
  }
  OptimizerState<Scalar> state;
  HFOPT_RETURN_IF_ERROR(ReadCount("iteration", meta.iteration(), state.iteration));
  state.damping = meta.damping();
  HFOPT_RETURN_IF_ERROR(ReadCount("cg_limit", meta.cg_limit(), state.cg_limit));
  state.held_out_loss = meta.held_out_loss();
  HFOPT_RETURN_IF_ERROR(ReadCount("held_out_examples", meta.held_out_examples(), state.held_out_examples));
  state.held_out_metrics = {meta.held_out_metrics().begin(), meta.held_out_metrics().end()};
  state.gradient_norm = meta.gradient_norm();
  HFOPT_RETURN_IF_ERROR(ReadCount("gradient_examples", meta.gradient_examples(), state.gradient_examples));
  HFOPT_RETURN_IF_ERROR(ReadCount("next_gradient_size", meta.next_gradient_size(), state.next_gradient_size));
  HFOPT_RETURN_IF_ERROR(ReadCount("gradient_cursor", meta.gradient_cursor(), state.gradient_cursor));
  HFOPT_RETURN_IF_ERROR(ReadCount("curvature_cursor", meta.curvature_cursor(), state.curvature_cursor));
  HFOPT_RETURN_IF_ERROR(
      ReadCount("consecutive_rejections", meta.consecutive_rejections(), state.consecutive_rejections));
  HFOPT_RETURN_IF_ERROR(ReadCount("stalled_iterations", meta.stalled_iterations(), state.stalled_iterations));
  absl::StatusOr<Cost> cost = CostFromProto(meta.cost());
  if (!cost.ok()) return absl::DataLossError(absl::StrCat("checkpoint: ", cost.status().message()));
  state.cost = *cost;

  HFOPT_ASSIGN_OR_RETURN(state.theta, Take<Scalar>(checkpoint, kTheta));
  if (checkpoint.tensors.contains(kWarmStart)) {
    HFOPT_ASSIGN_OR_RETURN(state.warm_start, Take<Scalar>(checkpoint, kWarmStart));
  }
  for (uint32_t i = 0; i < meta.num_pairs(); ++i) {
    CurvaturePair<Scalar> pair;
    HFOPT_ASSIGN_OR_RETURN(pair.p, Take<Scalar>(checkpoint, DirectionName(i)));
    HFOPT_ASSIGN_OR_RETURN(pair.Gp, Take<Scalar>(checkpoint, ProductName(i)));
    state.pairs.push_back(std::make_shared<const CurvaturePair<Scalar>>(std::move(pair)));
  }
  return state;
}

template CheckpointView ViewCheckpoint<float>(const OptimizerState<float>&);
template CheckpointView ViewCheckpoint<double>(const OptimizerState<double>&);
template absl::StatusOr<OptimizerState<float>> StateFromCheckpoint<float>(Checkpoint);
template absl::StatusOr<OptimizerState<double>> StateFromCheckpoint<double>(Checkpoint);

}  // namespace hfopt::server
