#include "server/evaluation/worker_session.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "grpcpp/channel.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/wire/shared_segment.h"
#include "proto/wire/vector_codec.h"
#include "server/evaluation/evaluation_service.h"
#include "tests/support/shared.h"

namespace hfopt::server {
namespace {

using ::testing::HasSubstr;
using wire::SharedSegment;

constexpr int64_t kParameters = 3;

v1::SessionRequest HelloOf(const std::string& worker_id, const std::string& host = wire::HostName()) {
  v1::SessionRequest message;
  v1::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(1);
  hello.set_worker_id(worker_id);
  hello.set_num_parameters(kParameters);
  hello.set_incarnation(1);
  hello.set_training_examples(10);
  hello.set_held_out_examples(10);
  hello.set_model_signature("free");
  hello.add_element_types(v1::ELEMENT_TYPE_FLOAT32);
  hello.set_host(host);
  return message;
}

// One session of a worker on the generated stub, with the pool of a run of one shard behind it.
class WorkerSessionTest : public ::testing::Test {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;

  WorkerSessionTest() {
    pool_->SetShards(1);
    grpc::ServerBuilder builder;
    service_.AddTo(builder);
    server_ = builder.BuildAndStart();
    service_.Start();
    stream_ = v1::EvaluationService::NewStub(server_->InProcessChannel({}))->Session(&context_);
  }
  ~WorkerSessionTest() override {
    context_.TryCancel();
    server_->Shutdown();
    server_->Wait();
    service_.Stop();
  }

  void Write(const v1::SessionRequest& message) { EXPECT_TRUE(stream_->Write(message)); }
  v1::SessionResponse Read() {
    v1::SessionResponse message;
    EXPECT_TRUE(stream_->Read(&message));
    return message;
  }
  // What the server ends the session with.
  grpc::Status End() {
    v1::SessionResponse message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }

  void WriteHello(const std::string& host = wire::HostName()) { Write(HelloOf("w", host)); }
  v1::Welcome SayHello(const std::string& host = wire::HostName()) {
    WriteHello(host);
    return Read().welcome();
  }
  void Attach(const v1::Welcome& welcome) {
    to_worker_ = SharedSegment::Attach(welcome.shared_memory().to_worker(), SharedSegment::Peer::kReads).value();
    to_server_ = SharedSegment::Attach(welcome.shared_memory().to_server(), SharedSegment::Peer::kWrites).value();
    v1::SessionRequest message;
    message.mutable_shared_memory_attached();
    Write(message);
  }
  void WriteHeader(uint64_t transfer, std::optional<uint32_t> slot, uint64_t size = kParameters) {
    v1::SessionRequest message;
    *message.mutable_vector_header() = wire::MakeHeader(transfer, "", size, v1::ELEMENT_TYPE_FLOAT32);
    if (slot.has_value()) message.mutable_vector_header()->set_slot(*slot);
    Write(message);
  }
  void WriteProduct(uint64_t request_id, uint64_t transfer) {
    v1::SessionRequest message;
    message.mutable_answer()->set_request_id(request_id);
    message.mutable_answer()->mutable_product()->set_product_transfer(transfer);
    message.mutable_answer()->mutable_product()->set_weight(1);
    Write(message);
  }

  // Asks for a product with the direction (1, 2, 3); the answer's vector.
  std::future<std::vector<float>> AskForProduct() {
    return std::async(std::launch::async, [this] {
      Unit unit;
      unit.request.mutable_product()->mutable_point()->set_base("v");
      unit.request.mutable_product()->set_direction("v");
      wire::SharedVector<float> v = pool_->NewVector<float>(kParameters);
      v.map() << 1, 2, 3;
      unit.vectors.push_back(std::make_shared<const NamedVector>(NamedVector{"v", v}));
      std::vector<float> product;
      const absl::Status status = pool_->Evaluate({unit}, [&](UnitAnswer answer) {
        const auto& vector = std::get<wire::SharedVector<float>>(answer.vectors.begin()->second);
        product.assign(vector.map().begin(), vector.map().end());
        return absl::OkStatus();
      });
      EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
      return product;
    });
  }

  const std::shared_ptr<WorkerPool> pool_ =
      std::make_shared<WorkerPool>(WorkerPool::Options{.run_name = "runs/r", .lease = absl::Seconds(60)});
  TransferWatchdog watchdog_{absl::Minutes(1)};
  EvaluationService service_{[this](const v1::Hello&) { return pool_; }, watchdog_};
  std::unique_ptr<grpc::Server> server_;
  grpc::ClientContext context_;
  std::unique_ptr<Stream> stream_;
  std::shared_ptr<SharedSegment> to_worker_, to_server_;
};

TEST_F(WorkerSessionTest, OffersMemoryToWorkersOfThisMachineAlone) {
  EXPECT_FALSE(SayHello("another machine/pid:[4026531836]").has_shared_memory());
}

TEST_F(WorkerSessionTest, HandsVectorsOverInSharedMemoryBothWays) {
  const v1::Welcome welcome = SayHello();
  EXPECT_EQ(welcome.shared_memory().to_worker().slot_bytes(), kParameters * sizeof(float));
  Attach(welcome);
  auto product = AskForProduct();
  // The request may have been made before the server knew that we are attached.
  v1::SessionResponse message = Read();
  ASSERT_TRUE(message.has_vector_header());
  if (message.vector_header().has_slot()) {
    const std::shared_ptr<void> slot = to_worker_->Look(message.vector_header().slot()).value();
    EXPECT_EQ(static_cast<float*>(slot.get())[2], 3);
  } else {
    EXPECT_TRUE(Read().has_vector_chunk());
  }
  const v1::SessionResponse request = Read();
  ASSERT_TRUE(request.has_evaluation());
  std::shared_ptr<void> slot = to_server_->Acquire();
  for (int i = 0; i < kParameters; ++i) static_cast<float*>(slot.get())[i] = 10.0f * i;
  to_server_->HandOver(*to_server_->SlotOf(slot.get()));
  WriteHeader(5, to_server_->SlotOf(slot.get()));
  WriteProduct(request.evaluation().id(), 5);
  EXPECT_EQ(product.get(), (std::vector<float>{0, 10, 20}));
  slot.reset();
  EXPECT_EQ(to_server_->SlotOf(to_server_->Acquire().get()), 0u) << "the server has given it back";
  EXPECT_TRUE(pool_->workers()[0].shared_memory());
  EXPECT_EQ(pool_->workers()[0].bytes_sent(), 12u);
  EXPECT_EQ(pool_->workers()[0].bytes_received(), 12u);
}

TEST_F(WorkerSessionTest, TakesChunksFromOneThatIsAttached) {
  Attach(SayHello());
  auto product = AskForProduct();
  v1::SessionResponse request = Read();
  while (!request.has_evaluation()) request = Read();
  WriteHeader(5, std::nullopt);
  for (const int i : {2, 0, 1}) {
    const float number = 7.0f + i;
    v1::SessionRequest chunk;
    chunk.mutable_vector_chunk()->set_transfer(5);
    chunk.mutable_vector_chunk()->set_offset(4 * i);
    chunk.mutable_vector_chunk()->set_data(&number, 4);
    Write(chunk);
  }
  WriteProduct(request.evaluation().id(), 5);
  EXPECT_EQ(product.get(), (std::vector<float>{7, 8, 9}));
}

class WorkerSessionOffence : public WorkerSessionTest {
 protected:
  void ExpectEnd(grpc::StatusCode code, const std::string& message) {
    const grpc::Status end = End();
    EXPECT_EQ(end.error_code(), code);
    EXPECT_THAT(end.error_message(), HasSubstr(message));
  }
};

TEST_F(WorkerSessionOffence, ASlotThatWasNotHandedOver) {
  Attach(SayHello());
  WriteHeader(5, 1);
  ExpectEnd(grpc::StatusCode::FAILED_PRECONDITION, "slot 1 of 4 was not handed over");
}

TEST_F(WorkerSessionOffence, ASlotThatThereIsNot) {
  Attach(SayHello());
  WriteHeader(5, 4'000'000'000);
  ExpectEnd(grpc::StatusCode::FAILED_PRECONDITION, "slot 4000000000 of 4 was not handed over");
}

TEST_F(WorkerSessionOffence, ASlotNamedTwice) {
  Attach(SayHello());
  const std::shared_ptr<void> slot = to_server_->Acquire();
  to_server_->HandOver(0);
  WriteHeader(5, 0);
  WriteHeader(6, 0);
  ExpectEnd(grpc::StatusCode::FAILED_PRECONDITION, "slot 0 of 4 was not handed over");
}

TEST_F(WorkerSessionOffence, ASlotWithAVectorOfAnotherSize) {
  Attach(SayHello());
  const std::shared_ptr<void> slot = to_server_->Acquire();
  to_server_->HandOver(0);
  WriteHeader(5, 0, 1'000'000);
  ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "vector of 1000000 elements, but the model has 3 parameters");
}

TEST_F(WorkerSessionOffence, ASlotBeforeAttaching) {
  SayHello();
  WriteHeader(5, 0);
  ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "without SharedMemoryAttached");
}

TEST_F(WorkerSessionOffence, AttachingToWhatWasNotOffered) {
  SayHello("elsewhere");
  v1::SessionRequest message;
  message.mutable_shared_memory_attached();
  Write(message);
  ExpectEnd(grpc::StatusCode::INVALID_ARGUMENT, "no memory was offered");
}

TEST(EvaluationService, SpreadsSessionsOverItsThreadsAndEndsThemWithoutAWordOfTheirs) {
  const auto pool = std::make_shared<WorkerPool>(WorkerPool::Options{.run_name = "runs/r", .lease = absl::Seconds(60)});
  absl::Mutex mu;
  std::vector<std::thread::id> threads;
  TransferWatchdog watchdog(absl::Minutes(1));
  EvaluationService service(
      [&](const v1::Hello&) {
        absl::MutexLock lock(&mu);
        threads.push_back(std::this_thread::get_id());
        return pool;
      },
      watchdog);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  service.AddTo(builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  service.Start();
  pool->SetShards(1);

  constexpr int kSessions = 6;
  std::vector<grpc::ClientContext> contexts(kSessions);
  std::vector<std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>>> sessions;
  for (int i = 0; i < kSessions; ++i) {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), own_connection);
    sessions.push_back(v1::EvaluationService::NewStub(channel)->Session(&contexts[i]));
    ASSERT_TRUE(sessions.back()->Write(HelloOf(absl::StrCat("w-", i))));
    v1::SessionResponse response;
    ASSERT_TRUE(sessions.back()->Read(&response));
    EXPECT_TRUE(response.has_welcome());
  }
  {
    absl::MutexLock lock(&mu);
    EXPECT_NE(threads[0], threads[1]);
    for (const std::thread::id thread : threads) EXPECT_LE(std::count(threads.begin(), threads.end(), thread), kSessions / 2);
  }

  pool->CloseSessions(absl::UnavailableError("enough"));
  server->Shutdown();
  service.Stop();
  v1::SessionResponse response;
  EXPECT_FALSE(sessions[0]->Read(&response));
  EXPECT_EQ(sessions[0]->Finish().error_message(), "enough");
}

TEST(WorkerSession, EndsWithAStatusWhenMemoryGivesOut) {
  // A machine without memory: whatever a session needs cannot be had.
  TransferWatchdog watchdog(absl::Minutes(1));
  EvaluationService service([](const v1::Hello&) -> absl::StatusOr<std::shared_ptr<WorkerPool>> { throw std::bad_alloc(); }, watchdog);
  grpc::ServerBuilder builder;
  service.AddTo(builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  service.Start();
  const auto stub = v1::EvaluationService::NewStub(server->InProcessChannel({}));
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  v1::SessionRequest hello;
  hello.mutable_hello()->set_protocol_version(1);
  hello.mutable_hello()->set_worker_id("w");
  ASSERT_TRUE(stream->Write(hello));
  v1::SessionResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  server->Shutdown();
  server->Wait();
  service.Stop();
}

// The transport in the process holds a write back until the other side reads: Welcome waits for the worker, which waits for the session to read on.
TEST_F(WorkerSessionTest, EndsAlsoForAWorkerThatWritesOnBeforeItReads) {
  WriteHello();
  v1::SessionRequest second_hello;
  second_hello.mutable_hello();
  for (int i = 0; i < 3; ++i) stream_->Write(second_hello);
  const grpc::Status end = End();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(end.error_message(), HasSubstr("twice"));
}

}  // namespace
}  // namespace hfopt::server
