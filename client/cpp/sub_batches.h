#ifndef HFOPT_CLIENT_CPP_SUB_BATCHES_H_
#define HFOPT_CLIENT_CPP_SUB_BATCHES_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/model.h"

namespace hfopt::client {

// floor(part * count / parts), without overflow: where part `part` begins when `count` things are cut into `parts` runs
// of nearly equal length. 0 <= part <= parts, 1 <= parts < 2^32.
int64_t PartBegin(int64_t count, int64_t part, int64_t parts);

// One run of a gradient's examples, cut for measuring the gradient's noise.
struct SubBatch {
  double squared_norm = 0;  // |sum of its gradients|^2, accumulated in double
  double weight = 0;
};

// The gradient sum over `examples`, cut into `parts` runs whose gradients are added up in their order; sub_batches gets
// one entry for each (zeros for an empty run). With parts = 0 the model is asked once, and sub_batches is empty. The
// gradient has n elements and is overwritten. Everyone who computes gradients for a run has to go through here: the
// number of parts decides the rounding.
template <typename Scalar>
absl::StatusOr<LossSum> GradientBySubBatches(Model<Scalar>& model, const std::type_identity_t<ConstVectorRef<Scalar>>& theta,
                                             const Examples& examples, int parts,
                                             std::type_identity_t<VectorRef<Scalar>> gradient,
                                             std::vector<SubBatch>& sub_batches);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_SUB_BATCHES_H_
