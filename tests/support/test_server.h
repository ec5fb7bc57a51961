#ifndef HFOPT_TESTS_SUPPORT_TEST_SERVER_H_
#define HFOPT_TESTS_SUPPORT_TEST_SERVER_H_

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/cpp/model_worker.h"
#include "client/cpp/run_client.h"
#include "core/hessian_free.h"
#include "core/termination.h"
#include "gtest/gtest.h"
#include "server/convert/options.h"
#include "server/server.h"
#include "tests/support/temporary_directory.h"

namespace hfopt::testing {

// A server in this process on a port of the system's choice, which can be stopped and started again on the same state.
class TestServer {
 public:
  static constexpr int64_t kMemoryLimitMib = 1000;

  // With these options, but for its state directory.
  explicit TestServer(server::ServerOptions options = {.address = "127.0.0.1:0", .memory_limit_mib = kMemoryLimitMib})
      : options_(std::move(options)) {
    options_.state_directory = directory_.path();
    Restart();
  }

  void Restart() {
    server_.reset();
    auto server = server::Server::Start(options_, [this](const std::string& line) {
      absl::MutexLock lock(&mu_);
      log_.push_back(line);
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void Stop() { server_.reset(); }

  const std::string& address() const { return server_->address(); }
  const std::string& health_address() const { return server_->health_address(); }
  std::vector<std::string> log() {
    absl::MutexLock lock(&mu_);
    return log_;
  }
  std::string state_directory() const { return directory_.path(); }
  client::RunClient Client() { return client::RunClient(client::MakeChannel(address())); }

 private:
  TemporaryDirectory directory_;
  server::ServerOptions options_;
  absl::Mutex mu_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<server::Server> server_;
};

// A worker of this process in a thread of its own. Stops and joins when it goes.
template <typename Scalar>
class WorkerThread {
 public:
  WorkerThread(std::unique_ptr<client::Model<Scalar>> model, const std::string& address, const std::string& run_id,
               const std::string& worker_id, std::set<uint32_t> shards = {}, bool shared_memory = true)
      : WorkerThread(std::move(model), client::MakeChannel(address), run_id, worker_id, std::move(shards), shared_memory) {}
  WorkerThread(std::unique_ptr<client::Model<Scalar>> model, std::shared_ptr<grpc::Channel> channel, const std::string& run_id,
               const std::string& worker_id, std::set<uint32_t> shards = {}, bool shared_memory = true)
      : model_(std::move(model)),
        worker_(*model_, {.channel = std::move(channel),
                          .run_id = run_id,
                          .worker_id = worker_id,
                          .shards = std::move(shards),
                          .shared_memory = shared_memory,
                          .initial_backoff = absl::Milliseconds(5),
                          .max_backoff = absl::Milliseconds(50)}),
        thread_([this] { finished_ = worker_.Run(); }) {}
  ~WorkerThread() {
    if (!thread_.joinable()) return;
    worker_.Stop();
    worker_.Stop();  // does not wait for a server that may be gone
    thread_.join();
  }

  void Stop() { worker_.Stop(); }
  // Blocks until the worker has ended.
  const absl::StatusOr<client::Finished>& Join() {
    if (thread_.joinable()) thread_.join();
    return finished_;
  }

 private:
  std::unique_ptr<client::Model<Scalar>> model_;
  client::ModelWorker<Scalar> worker_;
  absl::StatusOr<client::Finished> finished_ = absl::InternalError("the worker has not ended");
  std::thread thread_;
};

// The optimizer alone, in this process: what a run has to reproduce bit for bit.
template <typename Scalar>
OptimizerState<Scalar> RunLocally(Objective<Scalar>& objective, Vector<Scalar> theta,
                                  const v1::OptimizerOptions& proto) {
  const OptimizerOptions options = server::OptionsFromProto(proto).value();
  OptimizerState<Scalar> state = InitialState<Scalar>(std::move(theta), objective.layout(), options);
  while (!CheckTermination(state, objective.layout(), options.stop).has_value()) {
    auto next = Iterate<Scalar>(state, objective, options);
    if (!next.ok()) {
      ADD_FAILURE() << next.status();
      return state;
    }
    state = std::move(next->state);
  }
  return state;
}

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_TEST_SERVER_H_
