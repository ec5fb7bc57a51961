#ifndef HFOPT_CLIENT_CLI_RUN_HISTORY_H_
#define HFOPT_CLIENT_CLI_RUN_HISTORY_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/run_client.h"
#include "hfopt/v1/run.pb.h"

namespace hfopt::cli {

// A run and the reports of its iterations 1 .. last_iteration.
struct RunHistory {
  v1::Run run;
  std::vector<v1::IterationReport> iterations;
};

// What a run has done until now, whatever its state. The errors of RunClient.
absl::StatusOr<RunHistory> LoadHistory(client::RunClient& runs, const std::string& run_id);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_RUN_HISTORY_H_
