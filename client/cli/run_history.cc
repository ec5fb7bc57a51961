#include "client/cli/run_history.h"

#include "client/models/status_macros.h"

namespace hfopt::cli {

absl::StatusOr<RunHistory> LoadHistory(client::RunClient& runs, const std::string& run_id) {
  RunHistory history;
  HFOPT_ASSIGN_OR_RETURN(history.run, runs.Get(run_id));
  const uint64_t last = history.run.last_iteration().iteration();
  if (last == 0) return history;
  const absl::Status watched = runs.Watch(run_id, 0, [&](const v1::WatchRunResponse& event) {
                                     if (event.has_iteration()) history.iterations.push_back(event.iteration());
                                     return history.iterations.size() < last;
                                   }).status();
  if (!watched.ok() && !absl::IsCancelled(watched)) return watched;
  return history;
}

}  // namespace hfopt::cli
