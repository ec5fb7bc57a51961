#ifndef HFOPT_SERVER_RUN_CHECKPOINT_DIRECTORY_H_
#define HFOPT_SERVER_RUN_CHECKPOINT_DIRECTORY_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/run/run_store.h"

namespace hfopt::server {

// The checkpoints of one run: checkpoint-<iteration>.safetensors and best.safetensors in a directory of their own. A
// file under one of these names was whole when it got the name. Stateless; whoever uses it sees to it that nobody else
// changes the directory meanwhile. The functions promise what those of RunStore do.
class CheckpointDirectory {
 public:
  explicit CheckpointDirectory(std::string path) : path_(std::move(path)) {}

  absl::Status Save(const CheckpointView& checkpoint, const SaveOptions& options);
  absl::StatusOr<LoadedCheckpoint> LoadLast() const;
  absl::StatusOr<LoadedCheckpoint> LoadBest() const;
  absl::StatusOr<LoadedCheckpoint> Load(uint64_t iteration) const;

  // Removes files whose writing was cut off.
  absl::Status RemoveUnfinished();

 private:
  absl::Status Write(const CheckpointView& checkpoint, bool best);
  void Prune(uint64_t last, int keep);
  // Ascending.
  absl::StatusOr<std::vector<uint64_t>> Iterations() const;
  std::string PathOf(uint64_t iteration) const;
  std::string BestPath() const;

  std::string path_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_CHECKPOINT_DIRECTORY_H_
