#ifndef HFOPT_SERVER_RUN_RUN_STORE_H_
#define HFOPT_SERVER_RUN_RUN_STORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hfopt/v1/run.pb.h"
#include "server/convert/checkpoint.h"

namespace hfopt::server {

// OK for 1 to 63 of [a-z0-9-], beginning with a letter; otherwise INVALID_ARGUMENT with the rule. Such a name is also a
// safe file name.
absl::Status CheckRunId(absl::string_view run_id);

// "an4" of "runs/an4"; INVALID_ARGUMENT unless it is a run's resource name.
absl::StatusOr<std::string> RunIdFromName(absl::string_view name);

struct StoredRun {
  v1::Run run;
  std::string request_id;  // of the CreateRun call that made it
};

struct SaveOptions {
  bool best = false;  // the lowest held-out loss up to here: kept as the best one, in place of the one before
  int keep = 3;       // checkpoints kept besides the best one; at least 1
};

struct LoadedCheckpoint {
  Checkpoint checkpoint;
  // What had to be passed over to find it, for the log: "checkpoint-8.safetensors: ...; took iteration 7 instead".
  // Usually empty.
  std::string warning;
};

// Where runs outlive the server: a catalogue of runs, their iteration reports and their checkpoints.
//
// Durability: a call that changes something and returned OK survives power loss; one that returned an error, or did not
// return, has happened wholly or not at all. Thread-safety: all functions may be called from several threads. They
// block on the disk; calls about different runs seldom wait for each other. Errors: INVALID_ARGUMENT for a run id or
// argument that breaks its rule; NOT_FOUND; DATA_LOSS for what cannot be read any more; otherwise the disk's own
// (RESOURCE_EXHAUSTED when it is full, PERMISSION_DENIED), naming file, bytes and remedy. What was stored before is
// untouched by an error.
class RunStore {
 public:
  virtual ~RunStore() = default;

  // Adds the run, or replaces what was stored under its name. FAILED_PRECONDITION when the run is new and there are
  // already checkpoints under its name (a catalogue was lost or moved away).
  virtual absl::Status PutRun(const v1::Run& run, absl::string_view request_id) = 0;
  // By run id.
  virtual absl::StatusOr<std::vector<StoredRun>> ListRuns() = 0;
  // With its reports and checkpoints.
  virtual absl::Status DeleteRun(absl::string_view run_id) = 0;

  // A second report of the same iteration takes the place of the first: an iteration that a crash cut off is done
  // again. NOT_FOUND unless the run was put.
  virtual absl::Status AppendReport(absl::string_view run_id, const v1::IterationReport& report) = 0;
  // Reports of iterations above `after_iteration`, ascending, at most `limit` (at least 1) of them. Empty for an
  // unknown run.
  virtual absl::StatusOr<std::vector<v1::IterationReport>> Reports(absl::string_view run_id, uint64_t after_iteration,
                                                                   int limit) = 0;

  // Makes this the last checkpoint of the run. Those of later iterations, left from before the run was set back, are
  // removed, and so are all but the `keep` latest.
  virtual absl::Status SaveCheckpoint(absl::string_view run_id, const CheckpointView& checkpoint,
                                      const SaveOptions& options) = 0;
  // The last checkpoint that is whole: damaged ones are passed over, with a warning. NOT_FOUND when the run has none,
  // DATA_LOSS naming the files when all are damaged, FAILED_PRECONDITION when the last one has a later format than this
  // server reads.
  virtual absl::StatusOr<LoadedCheckpoint> LoadLastCheckpoint(absl::string_view run_id) = 0;
  // NOT_FOUND before one was saved as the best.
  virtual absl::StatusOr<LoadedCheckpoint> LoadBestCheckpoint(absl::string_view run_id) = 0;
  // The one after this iteration; NOT_FOUND when it is not kept.
  virtual absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(absl::string_view run_id, uint64_t iteration) = 0;

  // Where the journal of a run that has been put may lie; it goes with the run.
  virtual std::string JournalPath(absl::string_view run_id) const = 0;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_RUN_STORE_H_
