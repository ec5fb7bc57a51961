#include "server/evaluation/worker_pool.h"

#include <functional>
#include <future>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_link.h"
#include "tests/support/shared.h"

namespace hfopt::server {
namespace {

using hfopt::testing::FakeClock;
using hfopt::testing::FakeLink;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr absl::Duration kLease = absl::Seconds(10);

v1::Hello HelloOf(const std::string& worker_id, uint64_t incarnation = 1, std::vector<uint32_t> shards = {}) {
  v1::Hello hello;
  hello.set_protocol_version(1);
  hello.set_worker_id(worker_id);
  hello.set_incarnation(incarnation);
  hello.set_run_id("r");
  hello.set_num_parameters(3);
  hello.set_training_examples(100);
  hello.set_held_out_examples(20);
  hello.set_model_signature("m");
  hello.add_element_types(v1::ELEMENT_TYPE_FLOAT32);
  hello.mutable_shards()->Add(shards.begin(), shards.end());
  return hello;
}

NamedVectorPtr MakeVector(const std::string& name) {
  return std::make_shared<const NamedVector>(NamedVector{name, hfopt::testing::Share(Eigen::VectorXf{{1, 2, 3}})});
}

// A losses request for each of `shards`, which names the vector "theta".
std::vector<Unit> LossUnits(int shards) {
  std::vector<Unit> units;
  for (int shard = 0; shard < shards; ++shard) {
    Unit unit{.shard = shard, .vectors = {MakeVector("theta")}};
    unit.request.mutable_losses()->add_points()->set_base("theta");
    unit.request.mutable_slice()->set_shard(shard);
    units.push_back(unit);
  }
  return units;
}

absl::StatusOr<std::vector<UnitAnswer>> Evaluate(WorkerPool& pool, std::vector<Unit> units) {
  std::vector<UnitAnswer> answers;
  const absl::Status status = pool.Evaluate(std::move(units), [&](UnitAnswer answer) {
    answers.push_back(std::move(answer));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return answers;
}

v1::Answer LossAnswerTo(const v1::EvaluationRequest& request, double loss) {
  v1::Answer answer;
  answer.set_request_id(request.id());
  answer.mutable_losses()->add_loss_sums(loss);
  answer.mutable_losses()->set_weight(10);
  return answer;
}

class WorkerPoolTest : public ::testing::Test {
 protected:
  explicit WorkerPoolTest(bool hedging = true)
      : pool_({.run_name = "runs/r", .lease = kLease, .hedging = hedging, .now = clock_.AsFunction()}) {}

  std::shared_ptr<FakeLink> MakeLink() { return std::make_shared<FakeLink>(clock_); }
  std::shared_ptr<FakeLink> Join(const v1::Hello& hello) {
    auto link = MakeLink();
    EXPECT_EQ(pool_.Join(hello, link), absl::OkStatus());
    return link;
  }
  std::future<absl::StatusOr<std::vector<UnitAnswer>>> EvaluateAsync(int shards) {
    return std::async(std::launch::async, [this, shards] { return Evaluate(pool_, LossUnits(shards)); });
  }
  void Answer(FakeLink& link, const v1::EvaluationRequest& request, double loss) {
    EXPECT_EQ(pool_.OnAnswer(&link, LossAnswerTo(request, loss), {}), absl::OkStatus());
  }
  // Losses in the order of the units.
  static std::vector<double> Losses(const absl::StatusOr<std::vector<UnitAnswer>>& answers) {
    std::vector<double> losses;
    if (!answers.ok()) {
      ADD_FAILURE() << answers.status();
      return losses;
    }
    for (const UnitAnswer& unit : *answers) losses.push_back(unit.answer.losses().loss_sums(0));
    return losses;
  }
  void Advance(absl::Duration duration) {
    clock_.Advance(duration);
    pool_.CheckLeases();
  }

  FakeClock clock_;
  WorkerPool pool_;
};

TEST_F(WorkerPoolTest, WelcomesWorkersOnceShardsAreFixed) {
  const auto early = Join(HelloOf("a"));
  EXPECT_FALSE(early->was_welcomed());
  pool_.SetShards(2);
  EXPECT_TRUE(early->was_welcomed());
  EXPECT_TRUE(Join(HelloOf("b"))->was_welcomed());
}

TEST_F(WorkerPoolTest, AWorkerThatWaitsForItsWelcomeHasNoLeaseToRenew) {
  const auto a = Join(HelloOf("a"));
  Advance(10 * kLease);
  EXPECT_TRUE(pool_.AwaitWorkers().ok());
  EXPECT_FALSE(a->closed().has_value());
  pool_.SetShards(1);
  EXPECT_TRUE(pool_.AwaitWorkers().ok());
  EXPECT_FALSE(a->closed().has_value()) << "the lease begins with the Welcome";
  a->Hear();
  EXPECT_TRUE(pool_.AwaitWorkers().ok());
}

TEST_F(WorkerPoolTest, ForgetsWhoLeftWithoutAnAnswer) {
  pool_.SetShards(1);
  const auto useful = Join(HelloOf("useful"));
  auto result = EvaluateAsync(1);
  Answer(*useful, useful->AwaitRequests(1)[0], 1);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1));
  pool_.OnDisconnected(useful.get());
  for (int i = 0; i < 100; ++i) pool_.OnDisconnected(Join(HelloOf("stranger-" + std::to_string(i))).get());
  EXPECT_THAT(pool_.workers(), SizeIs(101)) << "they may come back within their leases";
  Advance(2 * kLease);
  const auto last = Join(HelloOf("last"));
  std::vector<std::string> ids;
  for (const v1::WorkerStatus& worker : pool_.workers()) ids.push_back(worker.worker_id());
  EXPECT_THAT(ids, ElementsAre("last", "useful"));
  // Its shard goes to who is there.
  auto next = EvaluateAsync(1);
  Answer(*last, last->AwaitRequests(1)[0], 2);
  EXPECT_THAT(Losses(next.get()), ElementsAre(2));
}

TEST_F(WorkerPoolTest, TakesAnswersInTheOrderOfTheShardsAsTheyCome) {
  pool_.SetShards(2);
  const auto link = Join(HelloOf("a"));
  std::vector<double> taken;
  absl::Notification first_was_taken;
  auto result = std::async(std::launch::async, [&] {
    return pool_.Evaluate(LossUnits(2), [&](UnitAnswer answer) {
      taken.push_back(answer.answer.losses().loss_sums(0));
      if (taken.size() == 1) first_was_taken.Notify();
      return absl::OkStatus();
    });
  });
  const auto requests = link->AwaitRequests(2);
  Answer(*link, requests[0], 1);
  first_was_taken.WaitForNotification();  // before the other has answered
  Answer(*link, requests[1], 2);
  EXPECT_EQ(result.get(), absl::OkStatus());
  EXPECT_THAT(taken, ElementsAre(1, 2));
}

TEST_F(WorkerPoolTest, AnErrorOrExceptionOfWhatTakesTheAnswersEndsTheEvaluationAlone) {
  pool_.SetShards(2);
  const auto link = Join(HelloOf("a"));
  const auto evaluate = [&](std::function<absl::Status()> take) {
    return std::async(std::launch::async, [this, take = std::move(take)]() -> absl::Status {
      try {
        return pool_.Evaluate(LossUnits(2), [&](UnitAnswer) { return take(); });
      } catch (const std::bad_alloc&) {
        return absl::ResourceExhaustedError("as it was thrown");
      }
    });
  };
  auto thrown = evaluate([]() -> absl::Status { throw std::bad_alloc(); });
  std::vector<v1::EvaluationRequest> requests = link->AwaitRequests(2);
  Answer(*link, requests[0], 1);
  EXPECT_EQ(thrown.get(), absl::ResourceExhaustedError("as it was thrown"));
  Answer(*link, requests[1], 2);  // nobody waits for it any more

  auto refused = evaluate([] { return absl::InvalidArgumentError("not finite"); });
  requests = link->AwaitRequests(4);
  Answer(*link, requests[2], 1);
  EXPECT_EQ(refused.get(), absl::InvalidArgumentError("not finite"));
  EXPECT_EQ(link->Count([&](const FakeLink::Sent& s) { return s.message.cancel().request_id() == requests[3].id(); }), 1);

  auto good = EvaluateAsync(2);
  requests = link->AwaitRequests(6);
  Answer(*link, requests[4], 5);
  Answer(*link, requests[5], 6);
  EXPECT_THAT(Losses(good.get()), ElementsAre(5, 6));
}

TEST_F(WorkerPoolTest, RefusesWhatDoesNotFitNamingBothValues) {
  Join(HelloOf("a"));
  const auto refusal = [&](auto change) {
    v1::Hello hello = HelloOf("b");
    change(hello);
    return pool_.Join(hello, MakeLink());
  };
  EXPECT_THAT(std::string(refusal([](auto& h) { h.set_num_parameters(4); }).message()),
              AllOf(HasSubstr("worker b"), HasSubstr("num_parameters is 4"), HasSubstr("has 3")));
  EXPECT_THAT(std::string(refusal([](auto& h) { h.set_num_parameters(~uint64_t{0}); }).message()),
              HasSubstr("num_parameters is 18446744073709551615; allowed: 1 to 2^40"));
  EXPECT_THAT(std::string(refusal([](auto& h) { h.set_training_examples(7); }).message()), HasSubstr("7"));
  EXPECT_THAT(std::string(refusal([](auto& h) { h.set_held_out_examples(9); }).message()), HasSubstr("20"));
  EXPECT_THAT(std::string(refusal([](auto& h) { h.set_model_signature("other"); }).message()),
              AllOf(HasSubstr("other"), HasSubstr("m")));
  EXPECT_THAT(std::string(refusal([](auto& h) {
                h.clear_element_types();
                h.add_element_types(v1::ELEMENT_TYPE_FLOAT64);
              }).message()),
              HasSubstr("float32"));
}

TEST_F(WorkerPoolTest, RefusesWorkersThatLackWhatTheRunNeeds) {
  WorkerPool pool({.run_name = "runs/r", .bfloat16_products = true, .diagonal = DiagonalMode::kSquaredGradients, .sub_batches = true});
  v1::Hello hello = HelloOf("a");
  const auto refusal = [&] { return std::string(pool.Join(hello, MakeLink()).message()); };
  EXPECT_THAT(refusal(), AllOf(HasSubstr("worker a"), HasSubstr("Hello.bfloat16")));
  hello.set_bfloat16(true);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("Hello.second_moment"), HasSubstr("preconditioner.diagonal=none")));
  hello.set_second_moment(true);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("Hello.sub_batches"), HasSubstr("samples.growth=damping or geometric")));
  hello.set_sub_batches(true);
  EXPECT_EQ(pool.Join(hello, MakeLink()), absl::OkStatus());
}

TEST_F(WorkerPoolTest, WhetherTheFirstWorkerOffersSecondMomentsSettlesWhatTheOthersNeed) {
  const auto pool = [](DiagonalMode diagonal, std::optional<bool> recorded = std::nullopt) {
    return std::make_unique<WorkerPool>(
        WorkerPool::Options{.run_name = "runs/r", .model = {.second_moment = recorded}, .diagonal = diagonal});
  };
  const auto join = [&](WorkerPool& pool, const std::string& id, bool second_moment) {
    v1::Hello hello = HelloOf(id);
    hello.set_second_moment(second_moment);
    return pool.Join(hello, MakeLink());
  };
  const auto refused = AllOf(HasSubstr("runs/r"), HasSubstr("worker b"), HasSubstr("Hello.second_moment"), HasSubstr("preconditioner.diagonal=none"));

  auto settled = pool(DiagonalMode::kSquaredGradientsIfOffered);
  EXPECT_EQ(join(*settled, "a", true), absl::OkStatus());
  EXPECT_THAT(std::string(join(*settled, "b", false).message()), refused);
  EXPECT_EQ(settled->AwaitWorkers()->second_moment, true);

  settled = pool(DiagonalMode::kSquaredGradientsIfOffered);
  EXPECT_EQ(join(*settled, "a", false), absl::OkStatus());
  EXPECT_EQ(join(*settled, "b", true), absl::OkStatus());
  EXPECT_EQ(settled->AwaitWorkers()->second_moment, false);

  // The record of a run that has begun knows it.
  EXPECT_THAT(std::string(join(*pool(DiagonalMode::kSquaredGradientsIfOffered, true), "b", false).message()), refused);
  settled = pool(DiagonalMode::kSquaredGradientsIfOffered, false);
  EXPECT_EQ(join(*settled, "a", true), absl::OkStatus());
  EXPECT_EQ(settled->AwaitWorkers()->second_moment, false);

  settled = pool(DiagonalMode::kNone);
  EXPECT_EQ(join(*settled, "a", true), absl::OkStatus());
  EXPECT_EQ(join(*settled, "b", false), absl::OkStatus()) << "nobody asks for them";
}

TEST_F(WorkerPoolTest, RefusesWorkersOfAnotherModelThanTheRecordsBeforeAnyHasJoined) {
  WorkerPool pool({.run_name = "runs/r", .model = {.num_parameters = 4}});
  EXPECT_THAT(std::string(pool.Join(HelloOf("a"), MakeLink()).message()),
              AllOf(HasSubstr("num_parameters is 3"), HasSubstr("has 4")));
  v1::Hello hello = HelloOf("a");
  hello.set_num_parameters(4);
  EXPECT_EQ(pool.Join(hello, MakeLink()), absl::OkStatus());
}

TEST_F(WorkerPoolTest, ForgetsTheModelOfWorkersThatHaveLeftUnlessTheRecordKnowsIt) {
  const auto other = [](const std::string& worker_id) {
    v1::Hello hello = HelloOf(worker_id);
    hello.set_num_parameters(4);
    return hello;
  };
  const auto wrong = Join(HelloOf("a"));
  pool_.OnDisconnected(wrong.get());
  const auto right = Join(other("b"));
  pool_.Expect(pool_.AwaitWorkers().value());
  pool_.OnDisconnected(right.get());
  EXPECT_THAT(std::string(pool_.Join(HelloOf("c"), MakeLink()).message()), HasSubstr("has 4"));
  EXPECT_EQ(pool_.Join(other("d"), MakeLink()), absl::OkStatus());
}

TEST_F(WorkerPoolTest, SendsAwayWhoDoesNotFitWhatTheRecordHasLearnt) {
  const auto a = Join(HelloOf("a"));
  pool_.Expect({.num_parameters = 3});
  EXPECT_FALSE(a->closed().has_value());
  pool_.Expect({.num_parameters = 4});
  ASSERT_TRUE(a->closed().has_value());
  EXPECT_EQ(a->closed()->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(a->closed()->message()), AllOf(HasSubstr("is 3"), HasSubstr("has 4")));
}

TEST_F(WorkerPoolTest, RefusesShardsThatAreNone) {
  const auto early = Join(HelloOf("a", 1, {1, 2}));
  const auto fits = Join(HelloOf("b", 1, {0, 1}));
  pool_.SetShards(2);
  ASSERT_TRUE(early->closed().has_value());
  EXPECT_EQ(early->closed()->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(early->closed()->message()), AllOf(HasSubstr("shard 2"), HasSubstr("2 shards: 0 to 1")));
  EXPECT_FALSE(early->was_welcomed());
  EXPECT_TRUE(fits->was_welcomed());
  EXPECT_THAT(std::string(pool_.Join(HelloOf("c", 1, {7}), MakeLink()).message()), HasSubstr("worker c: has shard 7"));
  EXPECT_TRUE(pool_.AwaitWorkers().ok()) << "those that fit serve both";
}

TEST_F(WorkerPoolTest, CountsOnlyWorkersThatAreThereAndStay) {
  const auto gone = Join(HelloOf("a")), leaving = Join(HelloOf("b"));
  const auto first = Join(HelloOf("c")), second = Join(HelloOf("d"));
  pool_.OnDisconnected(gone.get());
  pool_.OnDrain(leaving.get());
  EXPECT_EQ(pool_.workers_present(), 2);
  EXPECT_THAT(pool_.workers(), SizeIs(4));
}

TEST_F(WorkerPoolTest, RefusesAStaleIncarnationAndReplacesAnOlderOne) {
  const auto old = Join(HelloOf("a", 5));
  EXPECT_EQ(pool_.Join(HelloOf("a", 4), MakeLink()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(old->closed().has_value());
  Join(HelloOf("a", 6));
  ASSERT_TRUE(old->closed().has_value());
  EXPECT_EQ(old->closed()->code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerPoolTest, AnOlderIncarnationMayComeOnceTheNewerOneIsLost) {
  const auto link = Join(HelloOf("a", 5));
  pool_.SetShards(1);
  pool_.OnDisconnected(link.get());
  EXPECT_EQ(pool_.Join(HelloOf("a", 4), MakeLink()).code(), absl::StatusCode::kFailedPrecondition);
  Advance(kLease + absl::Seconds(1));
  EXPECT_TRUE(pool_.Join(HelloOf("a", 4), MakeLink()).ok()) << "the clock of its machine was set back";
}

TEST_F(WorkerPoolTest, BoundsWhatWorkersSayOfThemselves) {
  v1::Hello hello = HelloOf("a");
  hello.set_model_signature(std::string(4001, 'm'));
  EXPECT_THAT(std::string(pool_.Join(hello, MakeLink()).message()), HasSubstr("model_signature has 4001 bytes; allowed: up to 4000"));
  pool_.SetShards(1);
  const auto link = Join(HelloOf("a"));
  auto result = EvaluateAsync(1);
  v1::Answer answer;
  answer.set_request_id(link->AwaitRequests(1)[0].id());
  answer.mutable_failure()->set_code(13);
  answer.mutable_failure()->set_message(std::string(100'000, 'x'));
  EXPECT_TRUE(pool_.OnAnswer(link.get(), answer, {}).ok());
  const absl::Status failed = result.get().status();
  EXPECT_LT(failed.message().size(), 2200u);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("(100000 bytes)"));
}

TEST_F(WorkerPoolTest, AnswersComeInTheOrderOfUnitsWhateverTheOrderOfArrival) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b"));
  auto result = EvaluateAsync(2);
  const auto first = a->AwaitRequests(1)[0], second = b->AwaitRequests(1)[0];
  EXPECT_EQ(first.slice().shard(), 0u);
  Answer(*b, second, 22);
  Answer(*a, first, 11);
  EXPECT_THAT(Losses(result.get()), ElementsAre(11, 22));
}

TEST_F(WorkerPoolTest, SendsAVectorOnceToEachWorkerAndBeforeTheRequest) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a"));
  for (int round = 0; round < 2; ++round) {
    auto result = EvaluateAsync(2);
    const auto requests = a->AwaitRequests(2 * round + 2);
    for (int i = 0; i < 2; ++i) Answer(*a, requests[2 * round + i], i);
    EXPECT_THAT(Losses(result.get()), SizeIs(2));
  }
  EXPECT_EQ(a->Count([](const auto& s) { return s.vector == "theta"; }), 1);
  const auto sent = a->sent();
  const auto vector = std::find_if(sent.begin(), sent.end(), [](const auto& s) { return !s.vector.empty(); });
  const auto request = std::find_if(sent.begin(), sent.end(), [](const auto& s) { return s.message.has_evaluation(); });
  EXPECT_LT(vector - sent.begin(), request - sent.begin());
  pool_.Release({"theta"});
  EXPECT_EQ(a->Count([](const auto& s) { return s.message.has_release(); }), 1);
}

TEST_F(WorkerPoolTest, ASecondAnswerIsDropped) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a"));
  auto result = EvaluateAsync(2);
  const auto requests = a->AwaitRequests(2);
  Answer(*a, requests[0], 1);
  Answer(*a, requests[0], 100);
  Answer(*a, requests[1], 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
  Answer(*a, requests[1], 100);  // after the end
}

TEST_F(WorkerPoolTest, ASilentWorkerLosesItsShardsAfterTheLeaseAndItsLateAnswerIsDropped) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a"));
  auto result = EvaluateAsync(1);
  const auto request = a->AwaitRequests(1)[0];
  Advance(kLease / 2);
  const auto b = Join(HelloOf("b"));
  EXPECT_THAT(b->sent(), SizeIs(1)) << "only a welcome: the shard is still leased";
  Advance(kLease / 2);
  const auto again = b->AwaitRequests(1)[0];
  EXPECT_NE(again.id(), 0u);
  Answer(*a, request, 100);
  Answer(*b, again, 5);
  EXPECT_THAT(Losses(result.get()), ElementsAre(5));
  ASSERT_TRUE(a->closed().has_value());
  EXPECT_THAT(std::string(a->closed()->message()), HasSubstr("lease"));
  EXPECT_EQ(pool_.accounting().reissued, 1);
}

TEST_F(WorkerPoolTest, AWorkerThatRenewsItsLeaseMayComputeForLong) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b"));
  auto result = EvaluateAsync(1);
  const auto request = a->AwaitRequests(1)[0];
  for (int i = 0; i < 10; ++i) {
    Advance(kLease / 2);
    a->Hear();
    b->Hear();
  }
  Answer(*a, request, 3);
  EXPECT_THAT(Losses(result.get()), ElementsAre(3));
  EXPECT_EQ(pool_.accounting().reissued, 0);
}

TEST_F(WorkerPoolTest, AReconnectingWorkerIsSentOnlyWhatItLacks) {
  pool_.SetShards(2);
  const auto before = Join(HelloOf("a"));
  auto result = EvaluateAsync(2);
  const auto requests = before->AwaitRequests(2);
  pool_.OnDisconnected(before.get());
  // It still holds theta and computes the first request; the second got lost.
  v1::Hello hello = HelloOf("a");
  hello.add_held_vectors("theta");
  hello.add_held_vectors("old");
  hello.add_pending_requests(requests[0].id());
  hello.add_pending_requests(12345);
  const auto after = Join(hello);
  const auto again = after->AwaitRequests(1);
  EXPECT_EQ(again[0].id(), requests[1].id());
  EXPECT_EQ(after->Count([](const auto& s) { return !s.vector.empty(); }), 0);
  EXPECT_EQ(after->Count([](const auto& s) {
              return s.message.has_release() && s.message.release().vectors(0) == "old";
            }),
            1);
  EXPECT_EQ(after->Count([](const auto& s) {
              return s.message.has_cancel() && s.message.cancel().request_id() == 12345;
            }),
            1);
  Answer(*after, requests[0], 1);
  Answer(*after, requests[1], 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
}

TEST_F(WorkerPoolTest, ANewIncarnationIsAskedEverythingAgain) {
  pool_.SetShards(1);
  const auto before = Join(HelloOf("a", 1));
  auto result = EvaluateAsync(1);
  before->AwaitRequests(1);
  const auto after = Join(HelloOf("a", 2));
  const auto again = after->AwaitRequests(1)[0];
  EXPECT_EQ(after->Count([](const auto& s) { return s.vector == "theta"; }), 1);
  Answer(*after, again, 4);
  EXPECT_THAT(Losses(result.get()), ElementsAre(4));
}

TEST_F(WorkerPoolTest, AFailedRequestGoesToAnotherWorkerAndIsAnErrorWhenThereIsNone) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b"));
  auto result = EvaluateAsync(1);
  v1::Answer failure;
  failure.set_request_id(a->AwaitRequests(1)[0].id());
  failure.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  failure.mutable_failure()->set_message("out of memory");
  ASSERT_EQ(pool_.OnAnswer(a.get(), failure, {}), absl::OkStatus());
  b->AwaitRequests(1);
  ASSERT_EQ(pool_.OnAnswer(b.get(), failure, {}), absl::OkStatus());
  const auto answers = result.get();
  EXPECT_EQ(answers.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(answers.status().message()),
              AllOf(HasSubstr("runs/r"), HasSubstr("shard 0"), HasSubstr("worker b"), HasSubstr("out of memory")));
}

TEST_F(WorkerPoolTest, RefusesAnswersThatAreNotWhatWasAsked) {
  pool_.SetShards(1);
  const auto wrong = [&](const std::string& worker_id, auto change, const std::string& complaint) {
    const auto link = Join(HelloOf(worker_id));
    auto result = EvaluateAsync(1);
    const auto request = link->AwaitRequests(1)[0];
    const auto other = Join(HelloOf(worker_id + "-other"));
    v1::Answer answer = LossAnswerTo(request, 1);
    change(answer);
    EXPECT_THAT(std::string(pool_.OnAnswer(link.get(), answer, {}).message()), HasSubstr(complaint));
    Answer(*other, other->AwaitRequests(1)[0], 8);  // is asked instead
    EXPECT_THAT(Losses(result.get()), ElementsAre(8));
    for (const auto& gone : {link, other}) {
      pool_.OnDrain(gone.get());
      pool_.OnDisconnected(gone.get());
    }
  };
  wrong("a", [](v1::Answer& answer) { answer.mutable_losses()->add_loss_sums(2); }, "2 values where 1");
  wrong("b", [](v1::Answer& answer) { answer.mutable_losses()->set_weight(0); }, "weight 0");
  wrong("c", [](v1::Answer& answer) { answer.mutable_product()->set_weight(1); }, "not of kind losses");
  wrong("d", [](v1::Answer& answer) { answer.mutable_losses()->add_metrics()->set_name("errors"); }, "metric errors");
  wrong("e", [](v1::Answer& answer) { answer.mutable_losses()->add_metrics()->set_name(std::string(101, 'e')); }, "101 bytes; allowed: up to 100");
  wrong("f", [](v1::Answer& answer) { for (int i = 0; i < 101; ++i) answer.mutable_losses()->add_metrics()->add_sums(1); }, "101 metrics; allowed: up to 100");
}

TEST_F(WorkerPoolTest, WaitsForAPrivateShardAndSaysSo) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a", 1, {0}));
  auto result = EvaluateAsync(2);
  Answer(*a, a->AwaitRequests(1)[0], 1);
  while (pool_.WaitingFor().empty()) std::this_thread::yield();
  EXPECT_THAT(pool_.WaitingFor(), AllOf(HasSubstr("1 of 2 shards served"), HasSubstr("shard 1")));
  const auto b = Join(HelloOf("b", 1, {1}));
  Answer(*b, b->AwaitRequests(1)[0], 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
}

TEST_F(WorkerPoolTest, ADrainingWorkerGetsNoNewRequests) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a"));
  auto first = EvaluateAsync(1);
  const auto request = a->AwaitRequests(1)[0];
  pool_.OnDrain(a.get());
  const auto b = Join(HelloOf("b"));
  Answer(*a, request, 1);  // what it had is still welcome
  EXPECT_THAT(Losses(first.get()), ElementsAre(1));
  auto second = EvaluateAsync(1);
  Answer(*b, b->AwaitRequests(1)[0], 2);
  EXPECT_THAT(Losses(second.get()), ElementsAre(2));
  EXPECT_THAT(a->AwaitRequests(1), SizeIs(1));
}

// --- Workers that are late.

TEST_F(WorkerPoolTest, WhatAWorkerIsLateWithAnIdleOneComputesToo) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b")), c = Join(HelloOf("c"));
  auto result = EvaluateAsync(2);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Advance(absl::Seconds(1.9));
  EXPECT_THAT(c->sent(), SizeIs(1)) << "a welcome; 2.9 times what a took is not late";
  Advance(absl::Seconds(0.2));
  const auto of_c = c->AwaitRequests(1)[0];
  EXPECT_EQ(of_c.id(), of_b.id());
  EXPECT_EQ(c->sent()[1].vector, "theta");
  Answer(*c, of_c, 7);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 7));
  EXPECT_EQ(b->Count([&](const auto& s) { return s.message.has_cancel() && s.message.cancel().request_id() == of_b.id(); }), 1);
  EXPECT_EQ(pool_.accounting().hedged, 1);
  EXPECT_EQ(pool_.accounting().reissued, 0);
  Answer(*b, of_b, 100);  // too late

  // The shard is c's from now on.
  auto next = EvaluateAsync(2);
  Answer(*a, a->AwaitRequests(2)[1], 2);
  Answer(*c, c->AwaitRequests(2)[1], 3);
  EXPECT_THAT(Losses(next.get()), ElementsAre(2, 3));
}

class WorkerPoolWithoutHedging : public WorkerPoolTest {
 protected:
  WorkerPoolWithoutHedging() : WorkerPoolTest(/*hedging=*/false) {}
};

TEST_F(WorkerPoolWithoutHedging, WaitsForALateWorkerUntilItsLeaseEnds) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b"));
  auto result = EvaluateAsync(2);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0];
  Advance(kLease / 100);
  Answer(*a, of_a, 1);
  Advance(kLease / 2);
  a->Hear();
  EXPECT_THAT(a->sent(), SizeIs(3)) << "a welcome, theta and a request";
  Advance(kLease / 2);
  EXPECT_EQ(a->AwaitRequests(2)[1].id(), of_b.id());
  Answer(*a, of_b, 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
  EXPECT_EQ(pool_.accounting().hedged, 0);
  EXPECT_EQ(pool_.accounting().reissued, 1);
}

TEST_F(WorkerPoolTest, ALateAnswerThatComesFirstCounts) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b")), c = Join(HelloOf("c"));
  auto result = EvaluateAsync(2);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Advance(absl::Seconds(3));
  const auto of_c = c->AwaitRequests(1)[0];
  Answer(*b, of_b, 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
  EXPECT_EQ(c->Count([&](const auto& s) { return s.message.has_cancel(); }), 1);
  Answer(*c, of_c, 100);
  auto next = EvaluateAsync(2);
  Answer(*a, a->AwaitRequests(2)[1], 3);
  Answer(*b, b->AwaitRequests(2)[1], 4);
  EXPECT_THAT(Losses(next.get()), ElementsAre(3, 4));
}

TEST_F(WorkerPoolTest, ASecondWorkerThatFailsOrGoesLeavesTheFirst) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b")), c = Join(HelloOf("c")), d = Join(HelloOf("d"));
  auto result = EvaluateAsync(2);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Advance(absl::Seconds(3));
  v1::Answer failure;
  failure.set_request_id(c->AwaitRequests(1)[0].id());
  failure.mutable_failure()->set_code(8);
  EXPECT_TRUE(pool_.OnAnswer(c.get(), failure, {}).ok());
  d->AwaitRequests(1);  // asked in its place
  pool_.OnDrain(d.get());
  pool_.OnDisconnected(d.get());
  Answer(*b, of_b, 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
}

TEST_F(WorkerPoolTest, ALateWorkerMayBeForgottenBeforeTheEvaluationEnds) {
  pool_.SetShards(4);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b")), c = Join(HelloOf("c")), d = Join(HelloOf("d")), e = Join(HelloOf("e"));
  auto result = EvaluateAsync(4);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0], of_c = c->AwaitRequests(1)[0], of_d = d->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Answer(*c, of_c, 3);
  Advance(absl::Seconds(3));
  EXPECT_EQ(e->AwaitRequests(1)[0].id(), of_d.id());
  EXPECT_EQ(a->AwaitRequests(2)[1].id(), of_b.id());
  Answer(*a, of_b, 2);
  pool_.OnDrain(b.get());  // which has never answered
  pool_.OnDisconnected(b.get());
  const auto f = Join(HelloOf("f"));
  EXPECT_THAT(pool_.workers(), SizeIs(5)) << "b is forgotten";
  Answer(*e, of_d, 4);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2, 3, 4));
}

TEST_F(WorkerPoolTest, WhenTheLateWorkerIsLostTheSecondGoesOn) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b")), c = Join(HelloOf("c"));
  auto result = EvaluateAsync(2);
  const auto of_a = a->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Advance(absl::Seconds(3));
  const auto of_c = c->AwaitRequests(1)[0];
  a->Hear();
  c->Hear();
  Advance(kLease - absl::Seconds(1));  // b's has ended
  Answer(*c, of_c, 2);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2));
  EXPECT_TRUE(b->closed().has_value());
  EXPECT_EQ(pool_.accounting().reissued, 0);
}

TEST_F(WorkerPoolTest, NobodyIsAskedWhoIsBusyOrHasNotTheData) {
  pool_.SetShards(3);
  const auto a = Join(HelloOf("a", 1, {0})), b = Join(HelloOf("b", 1, {1})), c = Join(HelloOf("c", 1, {2}));
  auto result = EvaluateAsync(3);
  const auto of_a = a->AwaitRequests(1)[0], of_b = b->AwaitRequests(1)[0], of_c = c->AwaitRequests(1)[0];
  Advance(absl::Seconds(1));
  Answer(*a, of_a, 1);
  Answer(*b, of_b, 2);
  Advance(absl::Seconds(5));
  Answer(*c, of_c, 3);
  EXPECT_THAT(Losses(result.get()), ElementsAre(1, 2, 3));
  EXPECT_EQ(pool_.accounting().hedged, 0);
}

TEST_F(WorkerPoolTest, RebalancingGoesByHowFastWorkersAre) {
  pool_.SetShards(2);
  const auto a = Join(HelloOf("a")), b = Join(HelloOf("b"));
  int evaluations = 0;
  // One shard each; b takes so much longer.
  const auto evaluate = [&](absl::Duration longer) {
    auto result = EvaluateAsync(2);
    ++evaluations;
    const auto of_a = a->AwaitRequests(evaluations).back(), of_b = b->AwaitRequests(evaluations).back();
    Advance(absl::Milliseconds(100));
    Answer(*a, of_a, 1);
    Advance(longer);
    Answer(*b, of_b, 1);
    EXPECT_TRUE(result.get().ok());
    a->Hear();
    b->Hear();
    pool_.Rebalance();
    return pool_.workers()[1].shards_size();
  };
  EXPECT_EQ(evaluate(absl::ZeroDuration()), 1);
  EXPECT_EQ(evaluate(absl::Milliseconds(40)), 1) << "may be chance";
  EXPECT_EQ(evaluate(absl::Milliseconds(190)), 1) << "2.9 times, once";
  EXPECT_EQ(evaluate(absl::Milliseconds(1900)), 0) << "two shards at a are done before one at b";
  EXPECT_EQ(pool_.workers()[0].shards_size(), 2);
  // It is tried again in the end.
  int rebalanced = 0;
  while (pool_.workers()[1].shards_size() == 0 && rebalanced < 1000) {
    pool_.Rebalance();
    ++rebalanced;
  }
  EXPECT_GT(rebalanced, 20);
  EXPECT_LT(rebalanced, 200);
}

TEST_F(WorkerPoolTest, SpreadsShardsOverNewWorkersWhenRebalanced) {
  pool_.SetShards(4);
  const auto a = Join(HelloOf("a"));
  auto first = EvaluateAsync(4);
  for (const auto& request : a->AwaitRequests(4)) Answer(*a, request, 0);
  first.get().IgnoreError();
  const auto b = Join(HelloOf("b"));
  pool_.Rebalance();
  auto second = EvaluateAsync(4);
  for (const auto& request : b->AwaitRequests(2)) Answer(*b, request, 0);
  const auto requests = a->AwaitRequests(6);
  Answer(*a, requests[4], 0);
  Answer(*a, requests[5], 0);
  EXPECT_THAT(Losses(second.get()), SizeIs(4));
}

TEST_F(WorkerPoolTest, WhereTheBusiestCannotGiveTheNextOneDoesWhenRebalanced) {
  pool_.SetShards(5);
  const auto a = Join(HelloOf("a", 1, {0, 1, 2})), b = Join(HelloOf("b", 1, {3, 4}));
  auto result = EvaluateAsync(5);
  for (const auto& request : a->AwaitRequests(3)) Answer(*a, request, 0);
  for (const auto& request : b->AwaitRequests(2)) Answer(*b, request, 0);
  EXPECT_TRUE(result.get().ok());
  const auto c = Join(HelloOf("c", 1, {3, 4}));
  pool_.Rebalance();
  const std::vector<v1::WorkerStatus> workers = pool_.workers();
  EXPECT_THAT(workers[0].shards(), ElementsAre(0, 1, 2));
  EXPECT_THAT(workers[1].shards(), ElementsAre(4));
  EXPECT_THAT(workers[2].shards(), ElementsAre(3));
}

TEST_F(WorkerPoolTest, InterruptEndsAnEvaluationAndTellsTheWorkers) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a"));
  auto result = EvaluateAsync(1);
  const auto request = a->AwaitRequests(1)[0];
  pool_.Interrupt(absl::CancelledError("paused"));
  EXPECT_EQ(result.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(a->Count([&](const auto& s) {
              return s.message.has_cancel() && s.message.cancel().request_id() == request.id();
            }),
            1);
  EXPECT_EQ(pool_.AwaitWorkers().status().code(), absl::StatusCode::kCancelled);
  pool_.Resume();
  EXPECT_TRUE(pool_.AwaitWorkers().ok());
}

TEST_F(WorkerPoolTest, TellsWorkersAndLatecomersThatTheRunHasEnded) {
  pool_.SetShards(1);
  const auto a = Join(HelloOf("a"));
  v1::Finished finished;
  finished.set_reason("CONVERGED");
  pool_.Finish(finished);
  const auto late = Join(HelloOf("b"));
  for (const auto& link : {a, late}) {
    EXPECT_EQ(link->sent().back().message.finished().reason(), "CONVERGED");
    EXPECT_TRUE(link->sent().front().message.has_welcome());
    EXPECT_EQ(link->closed(), absl::OkStatus());
  }
}

TEST_F(WorkerPoolTest, RequestIdsGrowOverRestartsOfTheServer) {
  const auto first_id = [&](WorkerPool& pool) {
    pool.SetShards(1);
    auto link = MakeLink();
    EXPECT_EQ(pool.Join(HelloOf("a"), link), absl::OkStatus());
    auto result = std::async(std::launch::async, [&] { return Evaluate(pool, LossUnits(1)); });
    const auto request = link->AwaitRequests(1)[0];
    EXPECT_EQ(pool.OnAnswer(link.get(), LossAnswerTo(request, 1), {}), absl::OkStatus());
    EXPECT_TRUE(result.get().ok());
    return request.id();
  };
  const uint64_t before = first_id(pool_);
  clock_.Advance(absl::Milliseconds(1));
  WorkerPool after({.run_name = "runs/r", .lease = kLease, .now = clock_.AsFunction()});
  EXPECT_GT(first_id(after), before);
}

}  // namespace
}  // namespace hfopt::server
