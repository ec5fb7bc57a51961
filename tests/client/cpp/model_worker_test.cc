#include "client/cpp/model_worker.h"

#include <atomic>
#include <mutex>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/cpp/fake_evaluation_service.h"
#include "tests/client/cpp/quadratic_model.h"

namespace hfopt::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// Requests on all examples of shard 0 of 1, whose factors add up to 5050.
v1::EvaluationRequest OnAllExamples(uint64_t id) {
  v1::EvaluationRequest request;
  request.set_id(id);
  request.mutable_slice()->set_data_set(v1::DATA_SET_TRAINING);
  request.mutable_slice()->set_shards(1);
  request.mutable_slice()->set_count(100);
  return request;
}

v1::EvaluationRequest LossRequest(uint64_t id, const std::string& point) {
  v1::EvaluationRequest request = OnAllExamples(id);
  request.mutable_losses()->add_points()->set_base(point);
  return request;
}

v1::EvaluationRequest GradientRequest(uint64_t id, const std::string& point) {
  v1::EvaluationRequest request = OnAllExamples(id);
  request.mutable_gradient()->mutable_point()->set_base(point);
  return request;
}

v1::EvaluationRequest ProductRequest(uint64_t id, const std::string& point, const std::string& direction) {
  v1::EvaluationRequest request = OnAllExamples(id);
  request.mutable_product()->mutable_point()->set_base(point);
  request.mutable_product()->set_direction(direction);
  return request;
}

// A model whose calls wait to be let go, one at a time.
class Gate {
 public:
  explicit Gate(QuadraticModel<float>& model) {
    model.before = [this] {
      started_.release();
      go_.acquire();
      return absl::OkStatus();
    };
  }
  void AwaitCall() { started_.acquire(); }
  void LetGo() { go_.release(); }

 private:
  std::counting_semaphore<> started_{0}, go_{0};
};

template <typename Scalar>
class WorkerTest : public ::testing::Test {
 protected:
  using Server = ServerEnd<Scalar>;
  using Script = typename FakeEvaluationService<Scalar>::Script;

  // Options for a worker of a service with these scripts.
  ModelWorkerOptions OptionsFor(std::vector<Script> scripts) {
    service_ = std::make_unique<FakeEvaluationService<Scalar>>(std::move(scripts));
    ModelWorkerOptions options;
    options.channel = service_->channel();
    options.run_id = "an4";
    options.worker_id = "w-1";
    options.incarnation = 17;
    options.initial_backoff = absl::Milliseconds(1);
    options.max_backoff = absl::Milliseconds(2);
    options.log = [this](const std::string& line) {
      const std::lock_guard<std::mutex> lock(mu_);
      log_ += line + "\n";
    };
    return options;
  }

  absl::StatusOr<Finished> Run(std::vector<Script> scripts) {
    return ModelWorker<Scalar>(model_, OptionsFor(std::move(scripts))).Run();
  }

  std::string log() {
    const std::lock_guard<std::mutex> lock(mu_);
    return log_;
  }

  const Vector<Scalar> theta_{{1, 2, 3}};
  const Vector<Scalar> direction_{{1, 0, -1}};
  QuadraticModel<Scalar> model_{3};
  std::unique_ptr<FakeEvaluationService<Scalar>> service_;

 private:
  std::mutex mu_;
  std::string log_;
};

template <typename Scalar, bool kShared>
struct Way {};
template <typename>
class ModelWorkerOf;
template <typename S, bool kSharedMemory>
class ModelWorkerOf<Way<S, kSharedMemory>> : public WorkerTest<S> {
 protected:
  using Scalar = S;
  static constexpr bool kShared = kSharedMemory;
};
using Ways = ::testing::Types<Way<float, false>, Way<float, true>, Way<double, false>, Way<double, true>>;
TYPED_TEST_SUITE(ModelWorkerOf, Ways);

TYPED_TEST(ModelWorkerOf, HoldsTheWholeConversation) {
  using Scalar = typename TestFixture::Scalar;
  const auto finished = this->Run({[&](ServerEnd<Scalar>& server) {
    const v1::Hello hello = TestFixture::kShared ? server.WelcomeAndShare() : server.Welcome();
    EXPECT_EQ(hello.protocol_version(), 1u);
    EXPECT_EQ(hello.worker_id(), "w-1");
    EXPECT_EQ(hello.incarnation(), 17u);
    EXPECT_EQ(hello.run_id(), "an4");
    EXPECT_EQ(hello.num_parameters(), 3u);
    EXPECT_EQ(hello.training_examples(), 100u);
    EXPECT_EQ(hello.held_out_examples(), 10u);
    EXPECT_EQ(hello.model_signature(), "quadratic");
    EXPECT_THAT(hello.element_types(), ElementsAre(wire::ElementTypeOf<Scalar>()));
    EXPECT_THAT(hello.shards(), IsEmpty());
    EXPECT_TRUE(hello.second_moment() && hello.sub_batches() && hello.initial_parameters());
    EXPECT_THAT(hello.held_vectors(), IsEmpty());
    EXPECT_THAT(hello.pending_requests(), IsEmpty());

    server.SendVector("theta", this->theta_);
    server.SendVector("v", this->direction_);

    // Losses at theta and theta - 2 v.
    v1::EvaluationRequest losses = LossRequest(1, "theta");
    v1::Point& point = *losses.mutable_losses()->add_points();
    point.set_base("theta");
    point.add_terms()->set_vector("v");
    point.mutable_terms(0)->set_coefficient(-2);
    server.SendRequest(losses);
    const v1::Answer loss_answer = server.ReadAnswer().answer;
    EXPECT_EQ(loss_answer.request_id(), 1u);
    EXPECT_THAT(loss_answer.losses().loss_sums(), ElementsAre(5050 * 7, 5050 * 15));
    EXPECT_EQ(loss_answer.losses().weight(), 100);

    v1::EvaluationRequest gradient = GradientRequest(2, "theta");
    gradient.mutable_gradient()->set_sub_batches(4);
    gradient.mutable_gradient()->set_second_moment(true);
    server.SendRequest(gradient);
    const Received<Scalar> g = server.ReadAnswer();
    EXPECT_EQ(g.vectors.at(g.answer.gradient().gradient_transfer()), Vector<Scalar>(5050 * this->theta_));
    EXPECT_EQ(g.vectors.at(g.answer.gradient().second_moment_transfer())[0], 338350);  // sum of i^2, i = 1 .. 100
    EXPECT_EQ(g.answer.gradient().sub_batches_size(), 4);

    server.SendRequest(ProductRequest(3, "theta", "v"));
    const Received<Scalar> product = server.ReadAnswer();
    EXPECT_EQ(product.answer.product().weight(), 100);
    EXPECT_EQ(product.vectors.at(product.answer.product().product_transfer()),
              Vector<Scalar>(5050 * this->direction_));

    v1::EvaluationRequest initial;
    initial.set_id(4);
    initial.mutable_initial_parameters()->set_seed(9);
    server.SendRequest(initial);
    const Received<Scalar> start = server.ReadAnswer();
    EXPECT_EQ(start.vectors.at(start.answer.initial_parameters().parameters_transfer())[2], 9);
    return server.Finish("TARGET_REACHED");
  }});
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->reason, "TARGET_REACHED");
  EXPECT_EQ(this->service_->sessions(), 1);
  EXPECT_EQ(this->model_.live_linearizations, 0) << "Run leaves nothing behind";
  EXPECT_THAT(this->log(), HasSubstr(TestFixture::kShared ? "vectors through shared memory" : "vectors through gRPC"));
}

using ModelWorkerTest = WorkerTest<float>;

TEST_F(ModelWorkerTest, LinearizesOnceForAllProductsAtAPointUntilItIsReleased) {
  const auto finished = Run({[&](Server& server) {
    server.Welcome();
    server.SendVector("theta", theta_);
    for (uint64_t id = 1; id <= 5; ++id) {
      server.SendVector("v", direction_);
      server.SendRequest(ProductRequest(id, "theta", "v"));
      EXPECT_TRUE(server.ReadAnswer().answer.has_product());
      server.SendRelease("v");
    }
    EXPECT_EQ(model_.linearize_calls, 1);
    server.SendRelease("theta");
    server.SendVector("theta", theta_);
    server.SendVector("v", direction_);
    server.SendRequest(ProductRequest(6, "theta", "v"));
    EXPECT_TRUE(server.ReadAnswer().answer.has_product());
    EXPECT_EQ(model_.linearize_calls, 2);
    EXPECT_EQ(model_.live_linearizations, 1);
    return server.Finish();
  }});
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, TakesChunksInAnyOrderAndInterleaved) {
  const auto finished = Run({[&](Server& server) {
    server.Welcome();
    server.SendHeader(8, "theta", 3);
    server.SendHeader(9, "v", 3);
    server.SendChunk(9, direction_, 1, 3);
    server.SendChunk(8, theta_, 2, 3);
    server.SendChunk(8, theta_, 0, 2);
    server.SendChunk(9, direction_, 0, 1);
    server.SendRequest(ProductRequest(1, "theta", "v"));
    const Received<float> product = server.ReadAnswer();
    EXPECT_EQ(product.vectors.begin()->second, Vector<float>(5050 * direction_));
    return server.Finish();
  }});
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, RenewsItsLeaseWhileTheModelComputes) {
  Gate gate(model_);
  const auto finished = Run({[&](Server& server) {
    server.Welcome(/*shards=*/1, /*lease_seconds=*/0.03);
    server.SendVector("theta", theta_);
    server.SendRequest(LossRequest(1, "theta"));
    gate.AwaitCall();
    v1::SessionRequest message;
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(server.ReadAny().has_lease_renewal());
    }
    gate.LetGo();
    EXPECT_EQ(server.ReadAnswer().answer.request_id(), 1u);
    return server.Finish();
  }});
  EXPECT_TRUE(finished.ok()) << finished.status();
}

// What a session sent has been read once the worker dials again: its Hello shows what came of it.
const grpc::Status kBroken(grpc::StatusCode::UNAVAILABLE, "the link broke");

TEST_F(ModelWorkerTest, IgnoresTheSecondCopyOfARequest) {
  Gate gate(model_);
  const auto finished = Run({
      [&](Server& server) {
        server.Welcome();
        server.SendVector("theta", theta_);
        for (const uint64_t id : {1, 2, 1, 2}) server.SendRequest(LossRequest(id, "theta"));
        gate.AwaitCall();
        return kBroken;
      },
      [&](Server& server) {
        EXPECT_THAT(server.Welcome().pending_requests(), ElementsAre(1, 2));
        for (const uint64_t id : {1, 2}) {
          gate.LetGo();
          EXPECT_EQ(server.ReadAnswer().answer.request_id(), id);
        }
        EXPECT_EQ(model_.loss_calls, 2);
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, AnswersARunningRequestThatWasCancelledAndAskedForAgain) {
  Gate gate(model_);
  const auto finished = Run({
      [&](Server& server) {
        server.Welcome();
        server.SendVector("theta", theta_);
        server.SendRequest(LossRequest(1, "theta"));
        gate.AwaitCall();
        server.SendCancel(1);
        server.SendRequest(LossRequest(1, "theta"));
        return kBroken;
      },
      [&](Server& server) {
        EXPECT_THAT(server.Welcome().pending_requests(), ElementsAre(1));
        gate.LetGo();
        EXPECT_EQ(server.ReadAnswer().answer.request_id(), 1u);
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, DropsCancelledRequestsQueuedOrRunning) {
  Gate gate(model_);
  const auto finished = Run({
      [&](Server& server) {
        server.Welcome();
        server.SendVector("theta", theta_);
        for (const uint64_t id : {1, 2, 3}) server.SendRequest(LossRequest(id, "theta"));
        gate.AwaitCall();
        server.SendCancel(1);
        server.SendCancel(2);
        server.SendCancel(99);
        return kBroken;
      },
      [&](Server& server) {
        EXPECT_THAT(server.Welcome().pending_requests(), ElementsAre(3));
        gate.LetGo();
        gate.LetGo();
        EXPECT_EQ(server.ReadAnswer().answer.request_id(), 3u);
        EXPECT_EQ(model_.loss_calls, 2);
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, ReconnectsInTheMiddleOfAVectorWithWhatItHolds) {
  Gate gate(model_);
  const auto finished = Run({
      [&](Server& server) {
        server.Welcome();
        server.SendVector("theta", theta_);
        server.SendRequest(LossRequest(1, "theta"));
        server.SendRequest(GradientRequest(2, "theta"));
        gate.AwaitCall();
        server.SendHeader(50, "v", 3);
        server.SendChunk(50, direction_, 0, 2);
        return kBroken;
      },
      [&](Server& server) {
        const v1::Hello hello = server.Welcome();
        EXPECT_EQ(hello.incarnation(), 17u);
        EXPECT_THAT(hello.held_vectors(), ElementsAre("theta"));
        EXPECT_THAT(hello.pending_requests(), UnorderedElementsAre(1, 2));
        gate.LetGo();
        EXPECT_EQ(server.ReadAnswer().answer.request_id(), 1u);
        gate.LetGo();
        EXPECT_EQ(server.ReadAnswer().answer.request_id(), 2u);
        server.SendVector("v", direction_);
        server.SendRequest(ProductRequest(3, "theta", "v"));
        gate.LetGo();  // Linearize
        gate.LetGo();  // the product
        EXPECT_EQ(server.ReadAnswer().answer.request_id(), 3u);
        EXPECT_EQ(model_.loss_calls, 1);
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
  EXPECT_THAT(log(), HasSubstr("lost the session: UNAVAILABLE: the link broke"));
}

TEST_F(ModelWorkerTest, SendsAnAnswerAgainThatWasCutOff) {
  // Several chunks: the worker cannot have handed all of them to the transport when the session breaks after the first.
  QuadraticModel<float> model(5 * wire::kMaxChunkBytes / sizeof(float));
  const Vector<float> theta = Vector<float>::LinSpaced(model.num_parameters(), 0, 1);
  ModelWorker<float> worker(model, OptionsFor({
                                       [&](Server& server) {
                                         server.Welcome();
                                         server.SendVector("theta", theta);
                                         server.SendRequest(GradientRequest(1, "theta"));
                                         EXPECT_TRUE(server.Read().has_vector_header());
                                         EXPECT_TRUE(server.Read().has_vector_chunk());
                                         return kBroken;
                                       },
                                       [&](Server& server) {
                                         EXPECT_THAT(server.Welcome().pending_requests(), ElementsAre(1));
                                         const Received<float> gradient = server.ReadAnswer();
                                         EXPECT_EQ(gradient.vectors.begin()->second, Vector<float>(5050 * theta));
                                         EXPECT_EQ(model.gradient_calls, 1);
                                         return server.Finish();
                                       },
                                   }));
  const auto finished = worker.Run();
  EXPECT_TRUE(finished.ok()) << finished.status();
}

// What lay in shared memory may be overwritten once the session has ended.
TEST_F(ModelWorkerTest, ForgetsWhatLayInSharedMemoryWhenItsSessionBreaks) {
  const auto finished = Run({
      [&](Server& server) {
        server.WelcomeAndShare();
        server.SendVector("theta", theta_);
        server.SendVector("v", direction_);
        server.SendRequest(ProductRequest(1, "theta", "v"));
        EXPECT_TRUE(server.ReadAnswer().answer.has_product());
        server.Overwrite("theta", 100 * theta_);
        return kBroken;
      },
      [&](Server& server) {
        EXPECT_THAT(server.Welcome().held_vectors(), IsEmpty());
        server.SendVector("theta", theta_);
        server.SendVector("v", direction_);
        server.SendRequest(ProductRequest(2, "theta", "v"));
        Received<float> product = server.ReadAnswer();
        // A worker that did not see its first answer leave before the session broke sends it again.
        if (product.answer.request_id() == 1) product = server.ReadAnswer();
        EXPECT_EQ(product.answer.request_id(), 2u);
        EXPECT_EQ(product.vectors.begin()->second, Vector<float>(5050 * direction_));
        EXPECT_EQ(model_.linearize_calls, 2) << "the first looked at memory that was overwritten";
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

// Two products are asked for in the session that breaks. The second linearizes after what lay in shared memory was forgotten.
TEST_F(ModelWorkerTest, ForgetsWhatAQueuedRequestMadeOfSharedMemoryAfterItsSessionBroke) {
  Gate gate(model_);
  std::shared_ptr<void> slot;
  const auto finished = Run({
      [&](Server& server) {
        server.WelcomeAndShare();
        server.SendVector("theta", theta_);
        server.SendVector("v", direction_);
        server.SendRequest(ProductRequest(1, "theta", "v"));
        server.SendRequest(ProductRequest(2, "theta", "v"));
        slot = server.SlotOf("theta");
        gate.AwaitCall();
        return kBroken;
      },
      [&](Server& server) {
        const v1::Hello hello = server.WelcomeAndShare();
        EXPECT_THAT(hello.pending_requests(), UnorderedElementsAre(1, 2));
        for (int call = 0; call < 10; ++call) gate.LetGo();
        for (const uint64_t id : {1, 2}) {
          const Received<float> product = server.ReadAnswer();
          EXPECT_EQ(product.answer.request_id(), id);
          EXPECT_EQ(product.vectors.begin()->second, Vector<float>(5050 * direction_));
        }
        // The solve is over, and its slot is used again. This session was never sent theta, so there is nothing to release.
        const Vector<float> other = 100 * theta_;
        std::copy(other.begin(), other.end(), static_cast<float*>(slot.get()));
        // The run resumes from its checkpoint: theta again.
        server.SendVector("theta", theta_);
        server.SendVector("v", direction_);
        server.SendRequest(ProductRequest(3, "theta", "v"));
        EXPECT_EQ(server.ReadAnswer().vectors.begin()->second, Vector<float>(5050 * direction_));
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, FinishesWhatItComputesFromSharedMemoryWhenItsSessionBreaks) {
  Gate gate(model_);
  const auto finished = Run({
      [&](Server& server) {
        server.WelcomeAndShare();
        server.SendVector("theta", theta_);
        server.SendRequest(GradientRequest(1, "theta"));
        server.SendRequest(GradientRequest(2, "theta"));
        gate.AwaitCall();
        return kBroken;
      },
      [&](Server& server) {
        EXPECT_THAT(server.WelcomeAndShare().pending_requests(), UnorderedElementsAre(1, 2));
        for (const uint64_t id : {1, 2}) {
          gate.LetGo();
          const Received<float> gradient = server.ReadAnswer();
          EXPECT_EQ(gradient.answer.request_id(), id);
          EXPECT_EQ(gradient.vectors.begin()->second, Vector<float>(5050 * theta_));
        }
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, SendsAnAnswerAgainThatLayInSharedMemory) {
  const auto finished = Run({
      [&](Server& server) {
        server.WelcomeAndShare();
        server.SendVector("theta", theta_);
        server.SendRequest(GradientRequest(1, "theta"));
        EXPECT_TRUE(server.Read().vector_header().has_slot());
        return kBroken;  // nothing tells the worker that the answer has come
      },
      [&](Server& server) {
        const v1::Hello hello = server.Welcome();
        if (hello.pending_requests().empty()) return server.Finish();  // the whole answer had been handed to gRPC
        const Received<float> gradient = server.ReadAnswer();
        EXPECT_EQ(gradient.vectors.begin()->second, Vector<float>(5050 * theta_));
        return server.Finish();
      },
  });
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, GoesOnInChunksWhereMemoryCannotBeShared) {
  const auto chunks = [&](std::function<void(v1::SharedMemory&)> spoil, const std::string& reason) {
    const auto offer = [&](const v1::Hello&, v1::SharedMemory* memory) {
      using wire::SharedSegment;
      static const auto to_worker = SharedSegment::Create(12, 8, SharedSegment::Peer::kReads).value();
      static const auto to_server = SharedSegment::Create(12, 8, SharedSegment::Peer::kWrites).value();
      *memory->mutable_to_worker() = to_worker->Describe();
      *memory->mutable_to_server() = to_server->Describe();
      spoil(*memory);
    };
    const auto finished = Run({[&](Server& server) {
      server.Welcome(1, 60, offer);
      server.SendVector("theta", theta_);
      server.SendRequest(GradientRequest(1, "theta"));
      EXPECT_EQ(server.ReadAnswer().vectors.begin()->second, Vector<float>(5050 * theta_));
      return server.Finish();
    }});
    EXPECT_TRUE(finished.ok()) << finished.status();
    EXPECT_THAT(log(), HasSubstr(reason));
  };
  chunks([](auto& memory) { memory.mutable_to_worker()->set_token("0123456789abcdef"); }, "is not the memory that was");
  chunks([](auto& memory) { memory.mutable_to_server()->set_process_id(-1); }, "No such file");
  chunks([](auto& memory) { *memory.mutable_to_server() = memory.to_worker(); }, "shared memory cannot be had");
  chunks([](auto& memory) { memory.clear_to_server(); }, "of another size");
  chunks([](auto& memory) { memory.mutable_to_worker()->set_slot_bytes(8); }, "of another size");
  chunks([](auto& memory) { memory.mutable_to_server()->set_slot_bytes(16); }, "of another size");
}

TEST_F(ModelWorkerTest, SharesNoMemoryWhenToldNotTo) {
  ModelWorkerOptions options = OptionsFor({[&](Server& server) {
    EXPECT_EQ(server.Welcome().host(), "");
    return server.Finish();
  }});
  options.shared_memory = false;
  EXPECT_TRUE(ModelWorker<float>(model_, options).Run().ok());
}

TEST_F(ModelWorkerTest, AnswersAModelsFailureAndGoesOn) {
  int calls = 0;
  model_.before = [&] {
    return ++calls == 1 ? absl::ResourceExhaustedError("no room for activations") : absl::OkStatus();
  };
  const auto finished = Run({[&](Server& server) {
    server.Welcome();
    server.SendVector("theta", theta_);
    server.SendRequest(GradientRequest(1, "theta"));
    const Received<float> failure = server.ReadAnswer();
    EXPECT_EQ(failure.answer.failure().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(failure.answer.failure().message(), "gradient on training shard 0 of 1: no room for activations");
    EXPECT_THAT(failure.vectors, IsEmpty());
    server.SendRequest(GradientRequest(2, "theta"));
    EXPECT_TRUE(server.ReadAnswer().answer.has_gradient());
    return server.Finish();
  }});
  EXPECT_TRUE(finished.ok()) << finished.status();
}

TEST_F(ModelWorkerTest, DrainsAfterTheRunningRequest) {
  Gate gate(model_);
  ModelWorker<float>* worker_to_stop = nullptr;
  ModelWorker<float> worker(model_, OptionsFor({[&](Server& server) {
                              server.Welcome();
                              server.SendVector("theta", theta_);
                              server.SendRequest(LossRequest(1, "theta"));
                              server.SendRequest(LossRequest(2, "theta"));
                              gate.AwaitCall();
                              worker_to_stop->Stop();
                              EXPECT_TRUE(server.Read().has_drain());
                              gate.LetGo();
                              EXPECT_EQ(server.ReadAnswer().answer.request_id(), 1u);
                              EXPECT_EQ(server.Read().message_case(), v1::SessionRequest::MESSAGE_NOT_SET);
                              return grpc::Status::OK;
                            }}));
  worker_to_stop = &worker;
  const auto finished = worker.Run();
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->reason, kDrained);
  EXPECT_EQ(model_.loss_calls, 1);
  EXPECT_EQ(service_->sessions(), 1);
}

TEST_F(ModelWorkerTest, StopsBeforeItDialled) {
  ModelWorker<float> worker(model_, OptionsFor({}));
  worker.Stop();
  EXPECT_EQ(worker.Run().value().reason, kDrained);
  EXPECT_EQ(service_->sessions(), 0);
}

TEST_F(ModelWorkerTest, StopsWhileItWaitsForAWelcome) {
  ModelWorker<float>* worker_to_stop = nullptr;
  ModelWorker<float> worker(model_, OptionsFor({[&](Server& server) {
                              EXPECT_TRUE(server.Read().has_hello());
                              worker_to_stop->Stop();
                              EXPECT_EQ(server.Read().message_case(), v1::SessionRequest::MESSAGE_NOT_SET);
                              return grpc::Status::OK;
                            }}));
  worker_to_stop = &worker;
  EXPECT_EQ(worker.Run().value().reason, kDrained);
}

TEST_F(ModelWorkerTest, StopsBetweenAttemptsToDial) {
  ModelWorkerOptions options = OptionsFor({});
  options.channel = MakeChannel(SocketAddress());
  options.initial_backoff = options.max_backoff = absl::Hours(1);
  options.give_up_after = absl::Hours(10);
  ModelWorker<float>* worker_to_stop = nullptr;
  options.log = [&](const std::string&) { worker_to_stop->Stop(); };  // just before the pause
  ModelWorker<float> worker(model_, options);
  worker_to_stop = &worker;
  EXPECT_EQ(worker.Run().value().reason, kDrained);
}

TEST_F(ModelWorkerTest, DoesNotWaitForAServerThatIgnoresTheDrainWhenAskedTwice) {
  ModelWorker<float>* worker_to_stop = nullptr;
  ModelWorker<float> worker(model_, OptionsFor({[&](Server& server) {
                              server.Welcome();
                              server.SendVector("theta", theta_);
                              server.SendRequest(LossRequest(1, "theta"));
                              server.ReadAnswer();  // the worker is in session
                              worker_to_stop->Stop();
                              EXPECT_TRUE(server.Read().has_drain());
                              EXPECT_EQ(server.Read().message_case(), v1::SessionRequest::MESSAGE_NOT_SET);
                              worker_to_stop->Stop();
                              server.AwaitCancelled();
                              return grpc::Status::OK;
                            }}));
  worker_to_stop = &worker;
  EXPECT_EQ(worker.Run().value().reason, kDrained);
}

TEST_F(ModelWorkerTest, EndsWithThePermanentRefusal) {
  const auto finished = Run({[](Server& server) {
    server.Read();
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "num_parameters: 3, but the run has 4");
  }});
  EXPECT_EQ(finished.status(), absl::InvalidArgumentError("num_parameters: 3, but the run has 4"));
  EXPECT_EQ(service_->sessions(), 1);
}

TEST_F(ModelWorkerTest, TriesAgainUntilTheRunIsThere) {
  const auto not_yet = [](Server&) { return grpc::Status(grpc::StatusCode::NOT_FOUND, "no run an4"); };
  const auto finished = Run({not_yet, not_yet, not_yet, [](Server& server) {
                               server.Welcome();
                               return server.Finish();
                             }});
  EXPECT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(service_->sessions(), 4);
  EXPECT_THAT(log(), HasSubstr("run an4: no session: NOT_FOUND: no run an4; dialling again in "));
}

TEST_F(ModelWorkerTest, GivesUpInTheEnd) {
  ModelWorkerOptions options = OptionsFor(
      std::vector<Script>(1000, [](Server&) { return grpc::Status(grpc::StatusCode::NOT_FOUND, "no run an4"); }));
  options.give_up_after = absl::Milliseconds(20);
  const auto finished = ModelWorker<float>(model_, options).Run();
  EXPECT_EQ(finished.status(),
            absl::NotFoundError("run an4: gave up, no lasting session for 20ms; the last error: no run an4"));
  EXPECT_GT(service_->sessions(), 1);
}

TEST_F(ModelWorkerTest, RefusesARunOfAnotherElementType) {
  const auto finished = Run({[](Server& server) {
    server.Read();
    v1::SessionResponse welcome;
    welcome.mutable_welcome()->set_element_type(v1::ELEMENT_TYPE_FLOAT64);
    welcome.mutable_welcome()->set_lease_seconds(1);
    server.Send(welcome);
    return grpc::Status::OK;
  }});
  EXPECT_EQ(finished.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(finished.status().message()),
              HasSubstr("the run uses float64, but this worker computes in float32"));
}

TEST_F(ModelWorkerTest, RefusesOptionsAndModelsThatCannotBeServed) {
  const auto refusal = [&](const char* field, auto change) {
    ModelWorkerOptions options = OptionsFor({});
    change(options);
    const absl::Status status = ModelWorker<float>(model_, options).Run().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  };
  refusal("channel: ", [](ModelWorkerOptions& o) { o.channel = nullptr; });
  refusal("run_id: ''", [](ModelWorkerOptions& o) { o.run_id = ""; });
  refusal("worker_id: 'Host 1'", [](ModelWorkerOptions& o) { o.worker_id = "Host 1"; });
  refusal("backoff: 0 to", [](ModelWorkerOptions& o) { o.initial_backoff = absl::ZeroDuration(); });
  QuadraticModel<float> empty(3, 0);
  EXPECT_THAT(std::string(ModelWorker<float>(empty, OptionsFor({})).Run().status().message()),
              HasSubstr("0 training examples"));
}

// Each offence ends its session with a message that names it; the worker dials again.
class Offence : public ModelWorkerTest {
 protected:
  void Expect(const std::string& message, std::function<void(Server&)> offend) {
    const auto finished = Run({[&](Server& server) {
                                 server.Welcome();
                                 server.SendVector("theta", theta_);
                                 offend(server);
                                 EXPECT_EQ(server.Read().message_case(), v1::SessionRequest::MESSAGE_NOT_SET);
                                 return grpc::Status::OK;
                               },
                               [&](Server& server) {
                                 EXPECT_THAT(server.Welcome().held_vectors(), ElementsAre("theta"));
                                 return server.Finish();
                               }});
    EXPECT_TRUE(finished.ok()) << finished.status();
    EXPECT_THAT(log(), HasSubstr(message));
  }
};

TEST_F(Offence, UnknownVector) {
  Expect("request 1 names the vector 76, which is not here",
         [](Server& server) { server.SendRequest(ProductRequest(1, "theta", "v")); });
}

TEST_F(Offence, ChunkOfAnUnknownTransfer) {
  Expect("transfer 77: chunk without a VectorHeader before it",
         [&](Server& server) { server.SendChunk(77, direction_, 0, 3); });
}

TEST_F(Offence, OverlappingChunk) {
  Expect("overlaps bytes 0 to 8", [&](Server& server) {
    server.SendHeader(77, "v", 3);
    server.SendChunk(77, direction_, 0, 2);
    server.SendChunk(77, direction_, 1, 3);
  });
}

TEST_F(Offence, VectorOfAnotherSize) {
  Expect("vector of 4 elements, but the model has 3 parameters", [](Server& server) { server.SendHeader(77, "v", 4); });
}

TEST_F(Offence, TransferBegunTwice) {
  Expect("transfer 77: begun twice", [](Server& server) {
    server.SendHeader(77, "v", 3);
    server.SendHeader(77, "w", 3);
  });
}

TEST_F(Offence, VectorWithoutAName) {
  Expect("transfer 77: the vector has no name", [](Server& server) { server.SendHeader(77, "", 3); });
}

TEST_F(Offence, SlotOfNoSharedMemory) {
  Expect("transfer 77: in memory that is not shared", [](Server& server) {
    v1::SessionResponse message;
    *message.mutable_vector_header() = wire::MakeHeader(77, "v", 3, v1::ELEMENT_TYPE_FLOAT32);
    message.mutable_vector_header()->set_slot(0);
    server.Send(message);
  });
}

TEST_F(Offence, SecondWelcome) {
  Expect("a second Welcome", [](Server& server) {
    v1::SessionResponse message;
    message.mutable_welcome();
    server.Send(message);
  });
}

}  // namespace
}  // namespace hfopt::client
