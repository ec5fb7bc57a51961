// Workers without manners, beside one that has some: the run ends with the bits of an undisturbed one.

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/local_objective.h"
#include "tests/support/mock_worker.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Action = MockWorker::Action;

constexpr int kShards = 2;

std::unique_ptr<client::Model<float>> MakeDigits() {
  return models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10"}).value();
}

v1::OptimizerOptions ShortRun() {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  options.mutable_samples()->set_initial_gradient_examples(300);
  options.mutable_samples()->set_min_curvature_examples(100);
  options.mutable_stop()->set_max_iterations(3);
  return options;
}

class MockWorkerTest : public ::testing::Test {
 protected:
  // The mock renews its lease by answering alone, and a checkpoint may take long on a slow disk: a lease that does not end within a test,
  // unless the test is about its end.
  explicit MockWorkerTest(double lease_seconds = 3600) : client_(server_.Client()) {
    // Nothing is asked twice, and nobody else because of lateness: the numbers of requests are those of the optimization.
    Begin("r", {.shards = kShards, .lease_seconds = lease_seconds, .repeat_every = 0});
  }

  struct Options {
    uint32_t shards = kShards;
    double lease_seconds = 3600;
    uint32_t repeat_every = 0;
  };
  void Begin(const std::string& run_id, const Options& of_run) {
    v1::RunOptions options;
    options.set_shards(of_run.shards);
    options.set_lease_seconds(of_run.lease_seconds);
    options.set_repeat_every(of_run.repeat_every);
    options.set_disable_hedging(true);
    *options.mutable_optimizer() = ShortRun();
    EXPECT_TRUE(client_.Create(run_id, options).ok());
    EXPECT_TRUE(client_.Start(run_id).ok());
  }

  v1::Hello HelloOf(const std::string& worker_id) {
    v1::Hello hello;
    hello.set_run_id("r");
    hello.set_worker_id(worker_id);
    return hello;
  }
  std::unique_ptr<MockWorker> Mock(MockWorker::Misbehave misbehave) {
    return std::make_unique<MockWorker>(MakeDigits(), server_.address(), HelloOf("mock"), std::move(misbehave));
  }
  std::unique_ptr<WorkerThread<float>> GoodWorker() {
    return std::make_unique<WorkerThread<float>>(MakeDigits(), server_.address(), "r", "good");
  }
  void AwaitWorker(const std::string& worker_id) {
    client::RunClient client = server_.Client();
    const auto is_there = [&](const v1::WorkerStatus& worker) { return worker.worker_id() == worker_id; };
    while (true) {
      const auto run = client.Get("r");
      ASSERT_TRUE(run.ok()) << run.status();
      if (std::any_of(run->workers().begin(), run->workers().end(), is_there)) return;
      std::this_thread::yield();
    }
  }
  v1::Run AwaitEnd() {
    auto run = client_.Watch("r", 0, [](const v1::WatchRunResponse&) { return true; });
    EXPECT_TRUE(run.ok()) << run.status();
    return run.value_or(v1::Run());
  }
  void ExpectUndisturbedBits() {
    const v1::Run run = AwaitEnd();
    ASSERT_EQ(run.state(), v1::RUN_STATE_ENDED) << run.state_detail();
    auto model = MakeDigits();
    LocalObjective<float> objective(*model, kShards);
    const auto local = RunLocally<float>(objective, *model->InitialParameters(0), ShortRun());
    const auto remote = client_.DownloadLast<float>("r");
    ASSERT_TRUE(remote.ok()) << remote.status();
    EXPECT_EQ(remote->theta, local.theta);
  }

  TestServer server_;
  client::RunClient client_;
};

// Workers of which nothing is heard any more: their shards move when the lease ends.
class LostWorkerTest : public MockWorkerTest {
 protected:
  LostWorkerTest() : MockWorkerTest(0.3) {}
};

TEST_F(MockWorkerTest, AnswersEverythingTwice) {
  const auto mock = Mock([](int, auto&) { return Action::kAnswerTwice; });
  ExpectUndisturbedBits();
}

TEST_F(LostWorkerTest, FallsSilent) {
  const auto mock = Mock([](int number, auto&) { return number < 5 ? Action::kAnswer : Action::kStaySilent; });
  const auto good = GoodWorker();
  ExpectUndisturbedBits();
}

TEST_F(LostWorkerTest, Dies) {
  const auto mock = Mock([](int number, auto&) { return number < 7 ? Action::kAnswer : Action::kDie; });
  const auto good = GoodWorker();
  ExpectUndisturbedBits();
}

// A worker that was started again on another processor rounds differently: that is no contradiction of its own.
TEST_F(MockWorkerTest, MayRoundDifferentlyWhenItWasStartedAgainBetweenTwoAnswersToTheSame) {
  Begin("twice", {.shards = 1, .repeat_every = 1});
  v1::Hello hello = HelloOf("mock");
  hello.set_run_id("twice");
  // Answers the initial parameters and the first of two equal gradients, and dies when the server has both.
  MockWorker first(MakeDigits(), server_.address(), hello, [this](int number, auto&) {
    if (number < 2) return Action::kAnswer;
    client::RunClient client = server_.Client();
    while (client.Get("twice")->workers(0).answers() < 2) std::this_thread::yield();
    return Action::kDie;
  });
  first.AwaitEnd().IgnoreError();
  hello.set_incarnation(2);
  std::atomic<bool> rounded = false;
  MockWorker second(MakeDigits(), server_.address(), hello, [&](int number, auto& evaluated) {
    if (number > 0) return Action::kAnswer;
    rounded = evaluated.answer.has_gradient();
    float& element = evaluated.vectors.at(0).second.map()[123];
    element = std::nextafter(element, INFINITY);
    return Action::kAnswer;
  });
  const auto run = client_.Watch("twice", 0, [](const v1::WatchRunResponse&) { return true; });
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->state(), v1::RUN_STATE_ENDED) << run->state_detail();
  EXPECT_TRUE(rounded);
}

TEST_F(MockWorkerTest, AnswersWithAnotherKind) {
  absl::Notification asked;
  const auto mock = Mock([&](int number, auto& evaluated) {
    if (number == 4) {
      asked.Notify();
      AwaitWorker("good");  // to be asked instead
      evaluated.answer.mutable_losses()->set_weight(1);
      evaluated.vectors.clear();
    }
    return Action::kAnswer;
  });
  asked.WaitForNotification();
  const auto good = GoodWorker();
  ExpectUndisturbedBits();
  EXPECT_THAT(std::string(mock->AwaitEnd().message()), HasSubstr("not of kind gradient"));
}

TEST_F(MockWorkerTest, SendsATruncatedVector) {
  const auto mock = Mock([](int number, auto& evaluated) {
    if (number == 3) evaluated.vectors[0].second = wire::NewSharedVector<float>(5);
    return Action::kAnswer;
  });
  EXPECT_THAT(std::string(mock->AwaitEnd().message()), AllOf(HasSubstr("5"), HasSubstr("910")));
  const auto good = GoodWorker();
  ExpectUndisturbedBits();
}

TEST_F(MockWorkerTest, ANonFiniteGradientStopsTheRunAndIsNamed) {
  const auto mock = Mock([](int number, auto& evaluated) {
    if (number == 1) evaluated.vectors[0].second.map()[123] = NAN;  // after the initial parameters
    return Action::kAnswer;
  });
  const v1::Run run = AwaitEnd();
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("runs/r"), HasSubstr("shard 0"), HasSubstr("worker mock"),
                                        HasSubstr("gradient"), HasSubstr("index 123")));
  // Nothing is lost: with the model mended the run goes on.
  ASSERT_TRUE(client_.Resume("r").ok());
  ExpectUndisturbedBits();
}

TEST_F(MockWorkerTest, AnInfiniteLossRejectsTheTrialOnly) {
  // Of every losses answer the first trial overflows: another iterate, or a shorter step, is taken, or the step is rejected.
  const auto mock = Mock([](int, auto& evaluated) {
    if (evaluated.answer.has_losses()) evaluated.answer.mutable_losses()->set_loss_sums(0, INFINITY);
    return Action::kAnswer;
  });
  const v1::Run run = AwaitEnd();
  EXPECT_EQ(run.state(), v1::RUN_STATE_ENDED) << run.state_detail();
  EXPECT_TRUE(std::isfinite(run.last_iteration().held_out_loss()));
}

TEST_F(MockWorkerTest, AModelFailureStopsTheRunAndIsNamed) {
  const auto mock = Mock([](int number, auto& evaluated) {
    if (number == 2) {
      evaluated.vectors.clear();
      evaluated.answer.mutable_failure()->set_code(8);
      evaluated.answer.mutable_failure()->set_message("out of memory");
    }
    return Action::kAnswer;
  });
  const v1::Run run = AwaitEnd();
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("worker mock"), HasSubstr("out of memory")));
}

TEST_F(MockWorkerTest, AWrongSizeIsRefusedWithBothValues) {
  v1::RunOptions endless;
  endless.set_shards(kShards);
  *endless.mutable_optimizer() = ShortRun();
  endless.mutable_optimizer()->mutable_stop()->set_max_iterations(0);
  endless.mutable_optimizer()->mutable_stop()->set_max_rejections(1'000'000'000);
  ASSERT_TRUE(client_.Create("endless", endless).ok());
  ASSERT_TRUE(client_.Start("endless").ok());
  WorkerThread<float> good(MakeDigits(), server_.address(), "endless", "good");
  while (client_.Get("endless")->num_parameters() == 0) std::this_thread::yield();
  v1::Hello hello = HelloOf("mock");
  hello.set_run_id("endless");
  hello.set_num_parameters(7);
  MockWorker mock(MakeDigits(), server_.address(), hello, [](int, auto&) { return Action::kAnswer; });
  const absl::Status end = mock.AwaitEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(end.message()), AllOf(HasSubstr("7"), HasSubstr("910")));
}

TEST_F(MockWorkerTest, AModelThatDoesNotFitIntoTheServerIsRefusedAndTheRunWaitsForAnother) {
  v1::Hello hello = HelloOf("mock");
  hello.set_num_parameters(uint64_t{1} << 40);
  MockWorker mock(MakeDigits(), server_.address(), hello, [](int, auto&) { return Action::kAnswer; });
  const absl::Status end = mock.AwaitEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(end.message()),
              AllOf(HasSubstr("worker mock"), HasSubstr("1099511627776"), HasSubstr("allows 1000 MiB")));
  const auto good = GoodWorker();
  ExpectUndisturbedBits();
}

TEST_F(MockWorkerTest, AnUnknownProtocolIsRefusedWithBothVersions) {
  v1::Hello hello = HelloOf("mock");
  hello.set_protocol_version(99);
  MockWorker mock(MakeDigits(), server_.address(), hello, [](int, auto&) { return Action::kAnswer; });
  const absl::Status end = mock.AwaitEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(end.message()), AllOf(HasSubstr("is 99"), HasSubstr("speaks 1")));
}

TEST_F(MockWorkerTest, AnUnknownRunIsNotFound) {
  v1::Hello hello = HelloOf("mock");
  hello.set_run_id("nothing-here");
  MockWorker mock(MakeDigits(), server_.address(), hello, [](int, auto&) { return Action::kAnswer; });
  const absl::Status end = mock.AwaitEnd();
  EXPECT_EQ(end.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(end.message()), HasSubstr("nothing-here"));
}

}  // namespace
}  // namespace hfopt::testing
