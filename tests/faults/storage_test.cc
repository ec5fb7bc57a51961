// Disks that are full, or fail: what the run does, and what is left of it.

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/failpoint/failpoint.h"
#include "tests/support/local_objective.h"
#include "tests/support/mock_worker.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Storage : public ::testing::Test {
 protected:
  ~Storage() override { EXPECT_TRUE(failpoint::Configure("").ok()); }

  static v1::RunOptions Options() {
    v1::RunOptions options;
    options.set_shards(1);
    options.set_repeat_every(0);  // no questions but those of the iterations
    options.mutable_optimizer()->mutable_samples()->set_initial_gradient_examples(200);
    options.mutable_optimizer()->mutable_stop()->set_max_iterations(4);
    return options;
  }
  static std::unique_ptr<client::Model<float>> MakeModel() {
    return models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-10"}).value();
  }
  // Starts a run that meets these failpoints once it has a worker.
  void Prepare(const std::string& failpoints) {
    ASSERT_TRUE(client_.Create("r", Options()).ok());
    ASSERT_TRUE(client_.Start("r").ok());
    ASSERT_TRUE(failpoint::Configure(failpoints).ok());
  }
  void Begin(const std::string& failpoints) {
    Prepare(failpoints);
    worker_ = std::make_unique<WorkerThread<float>>(MakeModel(), server_.address(), "r", "w");
  }
  // A worker that does this with the first gradient of the second iteration.
  std::unique_ptr<MockWorker> MockInSecondIteration(std::function<MockWorker::Action()> action) {
    v1::Hello hello;
    hello.set_run_id("r");
    hello.set_worker_id("mock");
    enum { kGradient, kSteps, kSecondIteration } seen = kGradient;
    return std::make_unique<MockWorker>(MakeModel(), server_.address(), hello, [=](int, const client::Evaluated<float>& evaluated) mutable {
      if (seen == kGradient && evaluated.answer.has_losses()) seen = kSteps;
      if (seen != kSteps || !evaluated.answer.has_gradient()) return MockWorker::Action::kAnswer;
      seen = kSecondIteration;
      return action();
    });
  }
  v1::Run Await(const std::function<bool(const v1::Run&)>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (absl::Now() < deadline) {
      if (v1::Run run = client_.Get("r").value(); condition(run)) return run;
      std::this_thread::yield();
    }
    ADD_FAILURE() << "the run is " << client_.Get("r")->ShortDebugString();
    return {};
  }
  static bool WaitsForSpace(const v1::Run& run) { return run.state_detail().find("waiting for space") == 0; }
  static bool WaitsForWorkers(const v1::Run& run) { return run.state() == v1::RUN_STATE_WAITING_FOR_WORKERS; }

  // The run ends as if nothing had been, and every iteration is told once.
  void ExpectUndisturbed() {
    uint64_t iterations = 0;
    const auto run = client_.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
      if (!event.has_iteration()) return true;
      EXPECT_EQ(event.iteration().iteration(), ++iterations);
      return true;
    });
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_EQ(run->state(), v1::RUN_STATE_ENDED) << run->state_detail();
    EXPECT_EQ(iterations, 4u);
    const auto model = MakeModel();
    LocalObjective<float> objective(*model, 1);
    const auto local = RunLocally<float>(objective, *model->InitialParameters(0), Options().optimizer());
    EXPECT_EQ(client_.DownloadLast<float>("r")->theta, local.theta);
    EXPECT_EQ(run->last_iteration().cost().products(), static_cast<uint64_t>(local.cost.products)) << "something was done again";
  }

  TestServer server_;
  client::RunClient client_ = server_.Client();
  std::unique_ptr<WorkerThread<float>> worker_;
};

// Wherever the disk is found full: the run waits with what it has computed, and goes on by itself.
TEST_F(Storage, OnAFullDiskTheRunWaitsAndGoesOnByItself) {
  for (const char* const place : {"file.write", "file.sync", "checkpoint.rename_best", "catalogue.write"}) {
    SCOPED_TRACE(place);
    Begin(absl::StrCat(place, "=error(RESOURCE_EXHAUSTED)"));
    const v1::Run waiting = Await(WaitsForSpace);
    EXPECT_EQ(waiting.state(), v1::RUN_STATE_RUNNING);
    EXPECT_THAT(waiting.state_detail(), AllOf(HasSubstr(place), HasSubstr("goes on by itself")));
    ASSERT_TRUE(failpoint::Configure("").ok());
    ExpectUndisturbed();
    EXPECT_EQ(client_.Get("r")->state_detail(), "");
    worker_.reset();
    ASSERT_TRUE(client_.Delete("r").ok());
  }
}

// An iteration is put on the disk while the next one is computed, and not told before it is there.
TEST_F(Storage, TheNextIterationDoesNotWaitForTheDisk) {
  Prepare("checkpoint.best=error(RESOURCE_EXHAUSTED)");  // not passed by the checkpoint of the initial parameters
  absl::Notification in_second_iteration;
  const auto mock = MockInSecondIteration([&] {
    in_second_iteration.Notify();
    return MockWorker::Action::kAnswer;
  });
  ASSERT_TRUE(in_second_iteration.WaitForNotificationWithTimeout(absl::Seconds(60)));
  EXPECT_EQ(Await(WaitsForSpace).last_iteration().iteration(), 0u);
  ASSERT_TRUE(failpoint::Configure("").ok());
  ExpectUndisturbed();
}

// The next iteration may take hours.
TEST_F(Storage, AFailingDiskIsToldBeforeTheNextIterationHasEnded) {
  Prepare("run.report=error(UNKNOWN)@1");
  absl::Notification told;
  const auto mock = MockInSecondIteration([&] {
    told.WaitForNotification();
    return MockWorker::Action::kAnswer;
  });
  const v1::Run failed = Await([](const v1::Run& run) { return run.state() == v1::RUN_STATE_FAILED; });
  EXPECT_THAT(failed.state_detail(), HasSubstr("run.report"));
  told.Notify();
  ASSERT_TRUE(client_.Resume("r").ok());
  ExpectUndisturbed();
}

TEST_F(Storage, ARunThatWaitsForSpaceCanBePausedAndResumed) {
  Begin("checkpoint.rename=error(RESOURCE_EXHAUSTED)");
  Await(WaitsForSpace);
  ASSERT_TRUE(client_.Pause("r").ok());
  const v1::Run paused = *client_.Get("r");
  EXPECT_EQ(paused.state(), v1::RUN_STATE_PAUSED);
  EXPECT_EQ(paused.state_detail(), "");
  ASSERT_TRUE(failpoint::Configure("").ok());
  ASSERT_TRUE(client_.Resume("r").ok());
  ExpectUndisturbed();
}

TEST_F(Storage, ARunThatWaitsForSpaceDoesNotHoldUpTheServersEnd) {
  Begin("file.write=error(RESOURCE_EXHAUSTED)");
  Await(WaitsForSpace);
  server_.Stop();
  ASSERT_TRUE(failpoint::Configure("").ok());
}

// An error that waiting does not mend, such as EIO: the run stops, says why, and ResumeRun tries again.
TEST_F(Storage, OnAFailingDiskTheRunFailsAndCanBeResumed) {
  Begin("file.sync=error(UNKNOWN)@2");
  const v1::Run failed = Await([](const v1::Run& run) { return run.state() == v1::RUN_STATE_FAILED; });
  EXPECT_THAT(failed.state_detail(), AllOf(HasSubstr("cannot save the checkpoint of iteration"), HasSubstr("untouched")));
  ASSERT_TRUE(client_.Resume("r").ok());
  ExpectUndisturbed();
}

TEST_F(Storage, AStartThatCannotBeStoredChangesNothing) {
  ASSERT_TRUE(client_.Create("r", Options()).ok());
  ASSERT_TRUE(failpoint::Configure("catalogue.write=error(RESOURCE_EXHAUSTED)").ok());
  EXPECT_EQ(client_.Start("r").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(client_.Get("r")->state(), v1::RUN_STATE_CREATED);
  ASSERT_TRUE(failpoint::Configure("").ok());
  worker_ = std::make_unique<WorkerThread<float>>(MakeModel(), server_.address(), "r", "w");
  ASSERT_TRUE(client_.Start("r").ok());
  ExpectUndisturbed();
}

TEST_F(Storage, APauseThatCannotBeStoredChangesNothing) {
  ASSERT_TRUE(client_.Create("r", Options()).ok());
  ASSERT_TRUE(client_.Start("r").ok());
  Await(WaitsForWorkers);
  ASSERT_TRUE(failpoint::Configure("catalogue.write=error(RESOURCE_EXHAUSTED)").ok());
  const absl::Status refused = client_.Pause("r").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("runs/r is not paused, and goes on as before"));
  EXPECT_EQ(client_.Get("r")->state(), v1::RUN_STATE_WAITING_FOR_WORKERS);
  ASSERT_TRUE(failpoint::Configure("").ok());
  worker_ = std::make_unique<WorkerThread<float>>(MakeModel(), server_.address(), "r", "w");
  ExpectUndisturbed();
}

TEST_F(Storage, ACancelThatCannotBeStoredChangesNothing) {
  ASSERT_TRUE(client_.Create("r", Options()).ok());
  ASSERT_TRUE(client_.Start("r").ok());
  Await(WaitsForWorkers);
  ASSERT_TRUE(failpoint::Configure("catalogue.write=error(RESOURCE_EXHAUSTED)").ok());
  const absl::Status refused = client_.Cancel("r").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("runs/r is not cancelled, and goes on as before"));
  EXPECT_EQ(client_.Get("r")->state(), v1::RUN_STATE_WAITING_FOR_WORKERS);
  ASSERT_TRUE(failpoint::Configure("").ok());
  worker_ = std::make_unique<WorkerThread<float>>(MakeModel(), server_.address(), "r", "w");
  ExpectUndisturbed();
}

// It used to be gone for the server while its files were there, and took a new run of its name with it at the next start.
TEST_F(Storage, ADeletionThatCannotBeStoredIsDoneAgainBeforeItsNameIsFree) {
  Begin("");
  ExpectUndisturbed();
  worker_.reset();
  ASSERT_TRUE(failpoint::Configure("catalogue.write=error(RESOURCE_EXHAUSTED)").ok());
  const absl::Status refused = client_.Delete("r");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("runs/r is not deleted yet"), HasSubstr("delete it again")));
  EXPECT_THAT(client_.Get("r")->state_detail(), HasSubstr("delete it again"));
  ASSERT_TRUE(failpoint::Configure("").ok());
  EXPECT_EQ(client_.Create("r", Options()).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(client_.Cancel("r").status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(client_.Delete("r").ok());
  ASSERT_TRUE(client_.Create("r", Options()).ok());
  server_.Restart();
  EXPECT_EQ(server_.Client().Get("r")->state(), v1::RUN_STATE_CREATED);
}

TEST_F(Storage, AServerStartsOnADiskThatIsFullAlsoWhenADeletionHadBegun) {
  Begin("");
  ExpectUndisturbed();
  worker_.reset();
  ASSERT_TRUE(failpoint::Configure("catalogue.write=error(RESOURCE_EXHAUSTED)").ok());
  EXPECT_FALSE(client_.Delete("r").ok());
  server_.Restart();
  client::RunClient client = server_.Client();
  EXPECT_THAT(server_.log(), ::testing::Contains(HasSubstr("the deletion of run r, which had begun, cannot be finished")));
  ASSERT_TRUE(failpoint::Configure("").ok());
  EXPECT_TRUE(client.Delete("r").ok());
  EXPECT_TRUE(client.Create("r", Options()).ok());
}

}  // namespace
}  // namespace hfopt::testing
