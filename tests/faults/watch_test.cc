// A watcher is told the end of a run in whatever order its own reading and the run's storing come.

#include <memory>
#include <string>
#include <thread>

#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "hfopt/v1/run_service.grpc.pb.h"
#include "proto/failpoint/failpoint.h"
#include "server/server.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

// Through an in-process channel a write ends when it is read, so the test decides when the server may go on with the next event.
TEST(Watch, EndsAlsoWhenTheStateIsStoredWhileItsEventIsOnTheWay) {
  const TemporaryDirectory state;
  auto server = server::Server::Start({.address = "127.0.0.1:0", .state_directory = state.path(), .memory_limit_mib = 1000},
                                      [](const std::string&) {});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::shared_ptr<grpc::Channel> channel = (*server)->InProcessChannel();
  client::RunClient client(channel);
  ASSERT_TRUE(client.Create("r", {}).ok());

  const auto stub = v1::RunService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  v1::WatchRunRequest request;
  request.set_name("runs/r");
  const auto stream = stub->WatchRun(&context, request);
  stream->WaitForInitialMetadata();  // which comes with the first event

  // The end is in the record, and being stored, while the first event waits to be read.
  ASSERT_TRUE(failpoint::Configure("catalogue.write=sleep(300)").ok());
  std::thread cancel([&] { EXPECT_TRUE(client.Cancel("r").ok()); });
  while (client.Get("r")->state() != v1::RUN_STATE_ENDED) std::this_thread::yield();
  v1::WatchRunResponse event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.run().state(), v1::RUN_STATE_CREATED);
  cancel.join();
  ASSERT_TRUE(failpoint::Configure("").ok());

  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.run().state(), v1::RUN_STATE_ENDED);
  EXPECT_FALSE(stream->Read(&event));
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

}  // namespace
}  // namespace hfopt::testing
