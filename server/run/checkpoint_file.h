#ifndef HFOPT_SERVER_RUN_CHECKPOINT_FILE_H_
#define HFOPT_SERVER_RUN_CHECKPOINT_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/convert/checkpoint.h"

// One checkpoint as a safetensors file; see hfopt/v1/checkpoint.proto.
namespace hfopt::server {

// Creates or overwrites `path` and returns once its content is on the disk. Not atomic: see CheckpointDirectory.
// INVALID_ARGUMENT when the tensors are not all of the element type and size that `meta` says.
absl::Status WriteCheckpointFile(const std::string& path, const CheckpointView& checkpoint);

// What was written, bit for bit. NOT_FOUND without a file; DATA_LOSS when the file is not whole (too short, or the
// checksum tells of a change anywhere in it); FAILED_PRECONDITION when it is whole, but of a later format; otherwise
// the error of the file system.
absl::StatusOr<Checkpoint> ReadCheckpointFile(const std::string& path);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_CHECKPOINT_FILE_H_
