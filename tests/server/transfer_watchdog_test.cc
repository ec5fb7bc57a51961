#include "server/evaluation/transfer_watchdog.h"

#include <memory>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "hfopt/v1/run_service.grpc.pb.h"
#include "proto/wire/vector_codec.h"
#include "server/evaluation/evaluation_service.h"
#include "server/rpc/run_service.h"
#include "server/run/file_run_store.h"
#include "server/run/run_manager.h"
#include "tests/support/test_server.h"

namespace hfopt::server {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Minutes(1);

// A server's services, with a clock that the test moves, and channels on which what is sent waits until it is read.
class TransferWatchdogTest : public ::testing::Test {
 protected:
  TransferWatchdogTest() {
    grpc::ServerBuilder builder;
    evaluations_.AddTo(builder);
    builder.RegisterService(&runs_);
    server_ = builder.BuildAndStart();
    evaluations_.Start();
    channel_ = server_->InProcessChannel({});
    run_stub_ = v1::RunService::NewStub(channel_);
    v1::CreateRunRequest request;
    request.set_run_id("r");
    EXPECT_TRUE(manager_->Create(request).ok());
  }
  ~TransferWatchdogTest() override {
    runs_.Drain();
    manager_->Shutdown();
    server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
    server_->Wait();
    evaluations_.Stop();
  }

  // Lets hours pass until a call has been ended.
  void AwaitEnd() {
    absl::MutexLock lock(&mu_);
    while (log_.empty()) {
      now_ += 2 * kLimit;
      mu_.Unlock();
      watchdog_.Check();
      mu_.Lock();
      mu_.AwaitWithTimeout(absl::Condition(+[](std::vector<std::string>* log) { return !log->empty(); }, &log_), absl::Milliseconds(1));
    }
  }
  // The server has seen that all it has sent was read.
  void AwaitQuiet() {
    while (watchdog_.waiting() > 0) std::this_thread::yield();
  }
  std::vector<std::string> Log() {
    absl::MutexLock lock(&mu_);
    return log_;
  }
  static void ExpectEnd(const grpc::Status& status, const std::string& complaint) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr(complaint), HasSubstr("for 1m (the server's --transfer-idle)")));
  }

  std::unique_ptr<grpc::ClientWriter<v1::UploadParametersRequest>> BeginUpload(uint64_t size) {
    auto upload = run_stub_->UploadParameters(&context_, &uploaded_);
    v1::UploadParametersRequest message;
    message.mutable_header()->set_name("runs/r");
    message.mutable_header()->set_size(size);
    message.mutable_header()->set_element_type(v1::ELEMENT_TYPE_FLOAT32);
    EXPECT_TRUE(upload->Write(message));
    return upload;
  }

  absl::Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::UnixEpoch() + absl::Hours(1);
  std::vector<std::string> log_ ABSL_GUARDED_BY(mu_);
  hfopt::testing::TemporaryDirectory directory_;
  const std::unique_ptr<RunStore> store_ = *FileRunStore::Open(directory_.path());
  const AccessControl access_;
  const std::unique_ptr<RunManager> manager_ = *RunManager::Open({.store = store_.get(), .memory_limit_bytes = 1 << 20});
  TransferWatchdog watchdog_{kLimit,
                             [this](const std::string& line) {
                               absl::MutexLock lock(&mu_);
                               log_.push_back(line);
                             },
                             [this] {
                               absl::MutexLock lock(&mu_);
                               return now_;
                             }};
  EvaluationService evaluations_{[this](const v1::Hello&) -> absl::StatusOr<std::shared_ptr<WorkerPool>> { return pool_; }, watchdog_};
  RunService runs_{*manager_, access_, watchdog_};
  const std::shared_ptr<WorkerPool> pool_ = std::make_shared<WorkerPool>(WorkerPool::Options{.run_name = "runs/r", .lease = absl::Hours(1000)});
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::RunService::Stub> run_stub_;
  grpc::ClientContext context_;
  v1::UploadParametersResponse uploaded_;
};

TEST_F(TransferWatchdogTest, EndsAnUploadThatStopsHalfWay) {
  const auto upload = BeginUpload(1000);
  v1::UploadParametersRequest message;
  message.mutable_chunk()->set_data(std::string(2000, '\0'));
  EXPECT_TRUE(upload->Write(message));
  AwaitEnd();
  ExpectEnd(upload->Finish(), "no chunk of the upload has come");
  EXPECT_THAT(Log(), ElementsAre(HasSubstr("ended a call: no chunk of the upload has come")));
}

TEST_F(TransferWatchdogTest, EndsADownloadThatIsNotRead) {
  const auto upload = BeginUpload(3);
  v1::UploadParametersRequest message;
  wire::FillChunk<float>(Vector<float>{{1, 2, 3}}, 0, 0, message.mutable_chunk());
  EXPECT_TRUE(upload->Write(message));
  EXPECT_TRUE(upload->WritesDone());
  const grpc::Status status = upload->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();

  grpc::ClientContext context;
  v1::DownloadParametersRequest request;
  request.set_name("runs/r");
  request.set_version(v1::DownloadParametersRequest::VERSION_LAST);
  const auto download = run_stub_->DownloadParameters(&context, request);
  AwaitEnd();
  v1::DownloadParametersResponse response;
  while (download->Read(&response)) {
  }
  ExpectEnd(download->Finish(), "what was sent of the parameters has not been read");
}

TEST_F(TransferWatchdogTest, EndsAWatchThatIsNotReadAndTellsTheRestToTheNext) {
  v1::WatchRunRequest request;
  request.set_name("runs/r");
  v1::WatchRunResponse response;
  {
    grpc::ClientContext context;
    const auto watch = run_stub_->WatchRun(&context, request);
    AwaitEnd();
    while (watch->Read(&response)) {
    }
    ExpectEnd(watch->Finish(), "the run's news have not been read");
  }
  grpc::ClientContext context;
  const auto watch = run_stub_->WatchRun(&context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.run().name(), "runs/r");
  context.TryCancel();
}

TEST_F(TransferWatchdogTest, LetsAWatchWithoutNewsBe) {
  grpc::ClientContext context;
  v1::WatchRunRequest request;
  request.set_name("runs/r");
  const auto watch = run_stub_->WatchRun(&context, request);
  v1::WatchRunResponse response;
  ASSERT_TRUE(watch->Read(&response));
  AwaitQuiet();
  {
    absl::MutexLock lock(&mu_);
    now_ += 100 * kLimit;
  }
  watchdog_.Check();
  ASSERT_TRUE((*manager_->Find("runs/r"))->Cancel().ok());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.run().state(), v1::RUN_STATE_ENDED);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_TRUE(watch->Finish().ok());
  EXPECT_THAT(Log(), ::testing::IsEmpty());
}

class SilentWorker : public TransferWatchdogTest {
 protected:
  void SayHello() {
    v1::SessionRequest message;
    v1::Hello& hello = *message.mutable_hello();
    hello.set_protocol_version(1);
    hello.set_worker_id("w");
    hello.set_num_parameters(3);
    hello.set_incarnation(1);
    hello.set_training_examples(10);
    hello.set_held_out_examples(10);
    hello.add_element_types(v1::ELEMENT_TYPE_FLOAT32);
    EXPECT_TRUE(session_->Write(message));
    EXPECT_TRUE(session_->Read(&response_));
    EXPECT_TRUE(response_.has_welcome());
    AwaitQuiet();
  }
  grpc::Status End() {
    while (session_->Read(&response_)) {
    }
    return session_->Finish();
  }

  const std::unique_ptr<v1::EvaluationService::Stub> stub_ = v1::EvaluationService::NewStub(channel_);
  const std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> session_ = stub_->Session(&context_);
  v1::SessionResponse response_;
};

TEST_F(SilentWorker, IsSentAwayWhenItSaysNoHello) {
  AwaitEnd();
  ExpectEnd(End(), "the worker has not said Hello");
}

TEST_F(SilentWorker, IsNotWaitedForWhenItDoesNotReadTheEndOfItsSession) {
  pool_->SetShards(1);
  SayHello();
  pool_->Finish({});
  AwaitEnd();
  ExpectEnd(End(), "the worker has not read that its session is over");
}

}  // namespace
}  // namespace hfopt::server
