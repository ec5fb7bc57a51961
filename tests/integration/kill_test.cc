// Real processes, really killed. The result of every run is compared, bit for bit, with the optimizer alone in this process.

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/local_objective.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

constexpr int kShards = 2;
constexpr int kIterations = 10;  // more than pass while a test looks for its moment, which is in the first two
constexpr char kLayers[] = "64-40-10";

// Long solves on much data, so that most of the time is spent in the middle of CG: 1 gradient, 30 products, then the losses.
v1::OptimizerOptions LongSolves() {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_PUBLISHED);
  options.mutable_conjugate_gradient()->set_max_iterations(30);
  options.mutable_conjugate_gradient()->set_progress_tolerance(0);
  options.mutable_preconditioner()->set_lbfgs(v1::PreconditionerOptions::LBFGS_FROZEN);
  options.mutable_preconditioner()->set_memory(4);
  options.mutable_samples()->set_curvature_fraction(1);
  options.mutable_stop()->set_max_iterations(kIterations);
  return options;
}

class KillTest : public ::testing::Test {
 protected:
  KillTest() { StartServer("127.0.0.1:0"); }

  void StartServer(const std::string& address) {
    server_ = std::make_unique<Process>(std::vector<std::string>{HFOPT_SERVER_BINARY, "--address", address,
                                                                 "--state-dir", state_.path(), "--lease", "0.5"});
    address_ = server_->AwaitErrorLine("listening on ");
    ASSERT_FALSE(address_.empty());
  }
  void StartWorker(const std::string& id) {
    workers_[id] = std::make_unique<Process>(std::vector<std::string>{
        HFOPT_WORKER_BINARY, "--server", address_, "--run", "r", "--worker-id", id, "--task", "digits", "--data",
        HFOPT_DIGITS_DATA, "--layers", kLayers});
  }
  void StartWorkers() {
    StartWorker("a");
    StartWorker("b");
  }
  // One that sends itself `signal` in the middle of its 12th product.
  void StartWorkerWithSignal(const std::string& id, int signal) {
    workers_[id] = std::make_unique<Process>(
        std::vector<std::string>{HFOPT_SELF_SIGNALLING_WORKER, address_, id, std::to_string(signal), "12"});
  }
  client::RunClient Client() { return client::RunClient(client::MakeChannel(address_)); }

  void StartRun() {
    client::RunClient client = Client();
    v1::RunOptions options;
    options.set_shards(kShards);
    options.set_seed(3);
    *options.mutable_optimizer() = LongSolves();
    ASSERT_TRUE(client.Create("r", options).ok());
    ASSERT_TRUE(client.Start("r").ok());
  }

  // Blocks until the workers have answered at least `answers` requests together. An iteration begins with kShards for the gradient, and goes
  // on with kShards for each product.
  void AwaitAnswers(uint64_t answers) {
    client::RunClient client = Client();
    uint64_t total = 0;
    while (total < answers) {
      const auto run = client.Get("r");
      ASSERT_TRUE(run.ok()) << run.status();
      ASSERT_NE(run->state(), v1::RUN_STATE_ENDED) << "too fast for this test: " << total << " answers";
      total = 0;
      for (const v1::WorkerStatus& worker : run->workers()) total += worker.answers();
    }
  }
  v1::Run AwaitIteration(uint64_t iteration) {
    v1::Run at;
    client::RunClient client = Client();
    const auto run = client.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
      return !(event.has_iteration() && event.iteration().iteration() >= iteration);
    });
    return run.value_or(at);
  }

  // Follows the run to its end and compares.
  // `asked_again`: requests that another worker got too, because the first was lost or late.
  void ExpectUndisturbedBits(uint64_t* asked_again = nullptr) {
    client::RunClient client = Client();
    std::vector<uint64_t> iterations;
    uint64_t again = 0;
    const auto run = client.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
      if (event.has_iteration()) {
        iterations.push_back(event.iteration().iteration());
        again += event.iteration().reissued() + event.iteration().hedged();
      }
      return true;
    });
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_EQ(run->state(), v1::RUN_STATE_ENDED) << run->state_detail();
    std::vector<uint64_t> all(kIterations);
    std::iota(all.begin(), all.end(), 1);
    EXPECT_EQ(iterations, all);
    if (asked_again != nullptr) *asked_again = again;

    const auto remote = client.DownloadLast<float>("r");
    ASSERT_TRUE(remote.ok()) << remote.status();
    auto model = models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = kLayers}).value();
    LocalObjective<float> objective(*model, kShards);
    const auto local = RunLocally<float>(objective, *model->InitialParameters(3), LongSolves());
    EXPECT_EQ(remote->theta, local.theta);
    EXPECT_EQ(run->last_iteration().cost().products(), static_cast<uint64_t>(local.cost.products))
        << "an evaluation was booked twice, or not at all";
  }

  TemporaryDirectory state_;
  std::string address_;
  std::unique_ptr<Process> server_;
  std::map<std::string, std::unique_ptr<Process>> workers_;
};

TEST_F(KillTest, Undisturbed) {
  StartWorkers();
  StartRun();
  ExpectUndisturbedBits();
  for (auto& [id, worker] : workers_) EXPECT_EQ(worker->Wait(), 0) << id;
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
}

TEST_F(KillTest, AWorkerInTheMiddleOfACgSolve) {
  StartWorkerWithSignal("a", SIGKILL);
  StartRun();
  AwaitAnswers(1);  // "a" has the shards
  StartWorker("b");
  uint64_t asked_again = 0;
  ExpectUndisturbedBits(&asked_again);
  EXPECT_EQ(workers_["a"]->Wait(), 128 + SIGKILL);
  EXPECT_GT(asked_again, 0u) << "the kill did not hit a running request";
}

TEST_F(KillTest, AWorkerThatComesBack) {
  StartWorkers();
  StartRun();
  AwaitAnswers(12 * kShards);
  workers_["a"]->Signal(SIGKILL);
  workers_["a"]->Wait();
  StartWorker("a");
  ExpectUndisturbedBits();
}

TEST_F(KillTest, AStoppedWorkerIsTakenForLostAndFencedWhenItGoesOn) {
  StartWorkerWithSignal("a", SIGSTOP);
  StartRun();
  AwaitAnswers(1);  // "a" has the shards
  StartWorker("b");
  uint64_t asked_again = 0;
  ExpectUndisturbedBits(&asked_again);
  EXPECT_GT(asked_again, 0u);
  workers_["a"]->Signal(SIGCONT);
  EXPECT_EQ(workers_["a"]->Wait(), 0) << "it is told that the run has ended";
}

TEST_F(KillTest, AllWorkers) {
  StartWorkers();
  StartRun();
  AwaitAnswers(40 * kShards);
  for (auto& [id, worker] : workers_) worker->Signal(SIGKILL);
  StartWorker("c");
  ExpectUndisturbedBits();
}

TEST_F(KillTest, TheServerBetweenIterations) {
  StartWorkers();
  StartRun();
  AwaitIteration(2);
  server_->Signal(SIGKILL);
  server_->Wait();
  StartServer(address_);
  ExpectUndisturbedBits();
}

TEST_F(KillTest, TheServerInTheMiddleOfACgSolveAgainAndAgain) {
  StartWorkers();
  StartRun();
  for (const uint64_t answers : {10, 45, 20}) {
    AwaitAnswers(answers * kShards);
    server_->Signal(SIGKILL);
    server_->Wait();
    StartServer(address_);
  }
  ExpectUndisturbedBits();
}

TEST_F(KillTest, ServerAndWorkers) {
  StartWorkers();
  StartRun();
  AwaitAnswers(50 * kShards);
  server_->Signal(SIGKILL);
  for (auto& [id, worker] : workers_) worker->Signal(SIGKILL);
  server_->Wait();
  StartServer(address_);
  StartWorker("a");
  ExpectUndisturbedBits();
}

TEST_F(KillTest, TheServerDrainsOnSigtermAndTheRunGoesOn) {
  StartWorkers();
  StartRun();
  AwaitAnswers(45 * kShards);
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  StartServer(address_);
  ExpectUndisturbedBits();
}

TEST_F(KillTest, ASecondServerOnTheSameStateRefuses) {
  Process second({HFOPT_SERVER_BINARY, "--address", "127.0.0.1:0", "--state-dir", state_.path()});
  second.AwaitErrorLine(state_.path());
  EXPECT_EQ(second.Wait(), 1);
}

}  // namespace
}  // namespace hfopt::testing
