#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_WORKER_UNDER_TEST_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_WORKER_UNDER_TEST_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hfopt::conformance {

// How a worker ended.
struct WorkerExit {
  int code = 0;        // 128 + the signal where it was killed by one
  int signal = 0;      // 0: it ended by itself
  std::string output;  // the end of what it wrote
};

// "ended with exit code 1, saying: ..."
std::string Describe(const WorkerExit& exit);

// What the suite can do with the worker apart from speaking with it.
class WorkerUnderTest {
 public:
  virtual ~WorkerUnderTest() = default;

  // Whether the suite starts the worker. Otherwise somebody else does, and none of the calls below is made.
  virtual bool can_start() const = 0;
  // Starts it anew, to join `run_id` at `address`. One that still runs is killed first.
  virtual absl::Status Start(const std::string& address, const std::string& run_id, const std::string& worker_id) = 0;
  // Asks it to leave, as SIGTERM does.
  virtual void RequestStop() = 0;
  virtual void Kill() = 0;
  // Waits for its end; empty when it still runs after `timeout`. After the end: the same again.
  virtual std::optional<WorkerExit> AwaitExit(absl::Duration timeout) = 0;
};

// A worker that somebody else starts.
class ForeignWorker final : public WorkerUnderTest {
 public:
  bool can_start() const override { return false; }
  absl::Status Start(const std::string&, const std::string&, const std::string&) override {
    return absl::UnimplementedError("somebody else starts this worker");
  }
  void RequestStop() override {}
  void Kill() override {}
  std::optional<WorkerExit> AwaitExit(absl::Duration) override { return std::nullopt; }
};

// A program. Each of its arguments may contain {address}, {run} and {worker}. It runs in a process group of its own,
// which is killed with this object, and ends with this process.
class ProcessWorker final : public WorkerUnderTest {
 public:
  explicit ProcessWorker(std::vector<std::string> command);
  ~ProcessWorker() override;

  bool can_start() const override { return true; }
  absl::Status Start(const std::string& address, const std::string& run_id, const std::string& worker_id) override;
  void RequestStop() override;
  void Kill() override;
  std::optional<WorkerExit> AwaitExit(absl::Duration timeout) override;

 private:
  std::string Output() const;

  const std::vector<std::string> command_;
  std::string log_file_;
  int pid_ = 0;  // 0: none runs
  std::optional<WorkerExit> exit_;
};

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_WORKER_UNDER_TEST_H_
