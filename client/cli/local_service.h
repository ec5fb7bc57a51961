#ifndef HFOPT_CLIENT_CLI_LOCAL_SERVICE_H_
#define HFOPT_CLIENT_CLI_LOCAL_SERVICE_H_

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/supervised_process.h"

namespace hfopt::cli {

// An hfopt-server and workers of it, as processes of this machine. Files in `directory`: server/ (the server's state), server.sock
// (where it listens), server.log, worker-1.log, ...
class LocalService {
 public:
  struct Options {
    std::string server_program;
    std::string worker_program;
    std::string directory;
    int max_worker_restarts = 5;  // of each worker
    // From any thread: a line for people about what happened, and what made it impossible to go on.
    std::function<void(const std::string& line)> on_event;
    std::function<void(absl::Status status)> on_failure;
  };

  // Waits until the server listens. CANCELLED when asked to stop before.
  static absl::StatusOr<std::unique_ptr<LocalService>> Start(Options options, std::stop_token stop);
  ~LocalService();

  const std::string& address() const { return address_; }

  // Starts `count` workers "worker-1", ... with these arguments besides --server, --run and --worker-id.
  void StartWorkers(int count, const std::string& run_id, const std::vector<std::string>& arguments);

  // Ends the workers, then the server; all that they finished is kept.
  void Stop();

  // A sibling of this program, in the layout of an installation or of a build directory, or a program on PATH.
  // NOT_FOUND.
  static absl::StatusOr<std::string> FindProgram(const std::string& name);

 private:
  explicit LocalService(Options options) : options_(std::move(options)) {}
  std::string LogOf(const std::string& process) const;

  const Options options_;
  std::string address_;
  std::unique_ptr<SupervisedProcess> server_;
  std::vector<std::unique_ptr<SupervisedProcess>> workers_;
};

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_LOCAL_SERVICE_H_
