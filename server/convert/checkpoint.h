#ifndef HFOPT_SERVER_CONVERT_CHECKPOINT_H_
#define HFOPT_SERVER_CONVERT_CHECKPOINT_H_

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "core/optimizer_state.h"
#include "core/vector.h"
#include "hfopt/v1/checkpoint.pb.h"
#include "proto/wire/safetensors.h"

namespace hfopt::server {

// A checkpoint to be saved. The tensors look at memory that they do not own.
struct CheckpointView {
  v1::Checkpoint meta;
  std::vector<wire::TensorView> tensors;
};

// A checkpoint that was read: the tensors by name, all of meta.element_type() and meta.num_parameters() elements.
struct Checkpoint {
  v1::Checkpoint meta;
  std::map<std::string, std::variant<Vector<float>, Vector<double>>> tensors;
};

// Looks at the vectors of `state`, which must outlive the view and stay as it is. Of `meta` the caller still fills in
// what core does not know: seconds, best_held_out_loss, best_iteration. A state with nothing but theta makes a
// checkpoint of initial parameters.
template <typename Scalar>
CheckpointView ViewCheckpoint(const OptimizerState<Scalar>& state);

// The state that was viewed, bit for bit. The vectors are moved, not copied. FAILED_PRECONDITION when the checkpoint
// has another element type; DATA_LOSS when it lacks a tensor or a number is outside what a state can hold.
template <typename Scalar>
absl::StatusOr<OptimizerState<Scalar>> StateFromCheckpoint(Checkpoint checkpoint);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_CONVERT_CHECKPOINT_H_
