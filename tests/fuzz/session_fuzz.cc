// Any messages as a worker's session, with the pool of a run behind it that asks for something of every kind. The session ends with a status or waits;
// the pool's locks, buffers and counts stay whole, which the sanitizers watch.

#include <unistd.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/evaluation/evaluation_service.h"
#include "server/evaluation/worker_pool.h"
#include "tests/fuzz/fuzz.h"

namespace hfopt {
namespace {

constexpr int kParameters = 5;
constexpr int kShards = 2;

// One server for all inputs; each has a pool of its own. Over a socket: gRPC 1.51 keeps some 12 kB of each call that went through an in-process channel.
struct Fixture {
  std::shared_ptr<server::WorkerPool> pool;
  server::TransferWatchdog watchdog{absl::Minutes(1)};
  server::EvaluationService service{[this](const v1::Hello&) { return pool; }, watchdog};
  std::unique_ptr<grpc::Server> server;
  std::shared_ptr<grpc::Channel> channel;
  grpc::CompletionQueue queue;  // one that is not shut down and emptied is kept for ever

  Fixture() {
    grpc::ServerBuilder builder;
    const std::string address = absl::StrCat("unix-abstract:hfopt-session-fuzz-", getpid());
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    service.AddTo(builder);
    server = builder.BuildAndStart();
    service.Start();
    channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  }
};

// One unit of each kind; their requests have the ids 1 to 4 (as the pool counts from 1).
std::vector<server::Unit> Units(server::WorkerPool& pool) {
  std::vector<server::Unit> units(4);
  wire::SharedVector<float> v = pool.NewVector<float>(kParameters);
  v.map().setOnes();
  const auto named = std::make_shared<const server::NamedVector>(server::NamedVector{"v", v});
  units[0].request.mutable_losses()->add_points()->set_base("v");
  units[1].request.mutable_gradient()->mutable_point()->set_base("v");
  units[1].request.mutable_gradient()->set_second_moment(true);
  units[2].request.mutable_product()->mutable_point()->set_base("v");
  units[2].request.mutable_product()->set_direction("v");
  units[3].request.mutable_initial_parameters()->set_seed(1);
  for (int i = 0; i < 4; ++i) {
    units[i].shard = i % kShards;
    units[i].request.mutable_slice()->set_shard(i % kShards);
    units[i].vectors = {named};
  }
  return units;
}

}  // namespace
}  // namespace hfopt

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  static auto& fixture = *new Fixture;
  fixture.pool = std::make_shared<server::WorkerPool>(server::WorkerPool::Options{
      .run_name = "runs/r", .lease = absl::Seconds(60), .bfloat16_products = size % 8 == 7, .now = [] { return absl::FromUnixNanos(1); }});
  fixture.pool->SetShards(kShards);
  std::thread run([pool = fixture.pool] {
    if (!pool->AwaitWorkers().ok()) return;
    pool->Evaluate(Units(*pool), [](server::UnitAnswer) { return absl::OkStatus(); }).IgnoreError();
  });

  grpc::GenericStub stub(fixture.channel);
  grpc::ClientContext context;
  const auto stream = stub.PrepareCall(&context, "/hfopt.v1.EvaluationService/Session", &fixture.queue);
  void* tag = nullptr;
  bool ok = false;
  const auto wait = [&] { return fixture.queue.Next(&tag, &ok) && ok; };
  stream->StartCall(nullptr);
  wait();
  fuzz::Input input(data, size);
  while (!input.empty()) {
    const absl::string_view message = input.Piece();
    const grpc::Slice slice(message.data(), message.size());
    stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    if (!wait()) break;
  }
  stream->WritesDone(nullptr);
  wait();
  // The session has seen everything once it ends, which a closed pool has it do.
  fixture.pool->Interrupt(absl::CancelledError("the input is at its end"));
  fixture.pool->CloseSessions(absl::CancelledError("the input is at its end"));
  grpc::ByteBuffer response;
  do {
    stream->Read(&response, nullptr);
  } while (wait());
  grpc::Status status;
  stream->Finish(&status, nullptr);
  wait();
  run.join();
  return 0;
}
