#include "server/evaluation/worker_session.h"

#include <memory>
#include <new>

#include "grpcpp/channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/evaluation/evaluation_service.h"

namespace hfopt::server {
namespace {

TEST(WorkerSession, EndsWithAStatusWhenMemoryGivesOut) {
  // A machine without memory: whatever a session needs cannot be had.
  EvaluationService service(
      [](const v1::Hello&) -> absl::StatusOr<std::shared_ptr<WorkerPool>> { throw std::bad_alloc(); });
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
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
}

}  // namespace
}  // namespace hfopt::server
