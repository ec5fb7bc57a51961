#ifndef HFOPT_CLIENT_CPP_WINDOWS_H_
#define HFOPT_CLIENT_CPP_WINDOWS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "client/cpp/model.h"
#include "hfopt/v1/evaluation.pb.h"

namespace hfopt::client {

// The examples of a slice, by the sampling rule of hfopt/v1/evaluation.proto: the window wraps round inside its shard
// of the data set, which has `training_examples` or `held_out_examples` examples. INVALID_ARGUMENT when the slice does
// not fit into them.
absl::StatusOr<Examples> ExamplesOf(const v1::Slice& slice, int64_t training_examples, int64_t held_out_examples);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_WINDOWS_H_
