#ifndef HFOPT_SERVER_RUN_RUN_MANAGER_H_
#define HFOPT_SERVER_RUN_RUN_MANAGER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "hfopt/v1/run_service.pb.h"
#include "server/run/run.h"

namespace hfopt::server {

// The runs of a server. Thread-safe.
class RunManager {
 public:
  // Recovers the stored runs; those that were running go on. One that cannot be recovered is left alone: it keeps its id, and calls that
  // name it are told why.
  static absl::StatusOr<std::unique_ptr<RunManager>> Open(RunEnvironment environment);

  absl::StatusOr<std::shared_ptr<Run>> Create(const v1::CreateRunRequest& request);
  // `name` is "runs/{id}". NOT_FOUND; FAILED_PRECONDITION, with the reason, when it could not be recovered.
  absl::StatusOr<std::shared_ptr<Run>> Find(absl::string_view name) const;
  // Of those that could be recovered. In the order of their names, those after `after_id`; at most `limit`.
  std::vector<std::shared_ptr<Run>> List(const std::string& after_id, size_t limit) const;
  absl::Status Delete(absl::string_view name);

  RunStore& store() const { return *environment_.store; }

  // Stops all runs, which go on when the server starts again, and sends their workers away.
  void Shutdown();

 private:
  explicit RunManager(RunEnvironment environment) : environment_(std::move(environment)) {}

  const RunEnvironment environment_;
  absl::Mutex creating_ ABSL_ACQUIRED_BEFORE(mu_);  // held while something is stored or deleted whose id nothing has in runs_
  mutable absl::Mutex mu_;                          // never held while the disk is waited for: workers' sessions ask for runs
  std::map<std::string, std::shared_ptr<Run>> runs_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, absl::Status> unrecovered_ ABSL_GUARDED_BY(mu_);  // what to say of them
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_RUN_MANAGER_H_
