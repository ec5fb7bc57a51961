#include "server/server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "server/run/file_run_store.h"

namespace hfopt::server {
namespace {

// Keepalive, in agreement with the clients (client/cpp/channel.cc): they ping every 30 s, we accept a ping every 10 s also when no call is
// open, and so never answer "too many pings".
constexpr int kMinPingIntervalMs = 10'000;

// Time for streams to end by themselves; after it they are cut.
constexpr absl::Duration kShutdownGrace = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Log log) {
  HFOPT_RETURN_IF_ERROR(options.Validate());
  std::unique_ptr<Server> server(new Server);
  HFOPT_ASSIGN_OR_RETURN(server->store_, FileRunStore::Open(options.state_directory));
  HFOPT_ASSIGN_OR_RETURN(server->runs_, RunManager::Open({.store = server->store_.get(),
                                                          .default_lease = absl::Seconds(options.lease_seconds),
                                                          .default_keep_checkpoints = options.keep_checkpoints,
                                                          .memory_limit_bytes = options.memory_limit_bytes(),
                                                          .log = std::move(log)}));
  server->evaluation_service_ = std::make_unique<EvaluationService>(
      [runs = server->runs_.get()](const v1::Hello& hello) -> absl::StatusOr<std::shared_ptr<WorkerPool>> {
        HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<Run> run, runs->Find(absl::StrCat("runs/", hello.run_id().c_str())));
        return run->pool();
      });
  server->run_service_ = std::make_unique<RunService>(*server->runs_);

  static const bool plugins_once = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)plugins_once;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(server->evaluation_service_.get());
  builder.RegisterService(server->run_service_.get());
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server is an error, not a lottery
  // Bandwidth probing is for links with latency; on this machine it only costs (a quarter of the CPU of a transfer).
  if (options.is_local()) builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  server->grpc_server_ = builder.BuildAndStart();
  if (server->grpc_server_ == nullptr || (port == 0 && !options.is_unix_socket())) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address.c_str(),
                                               ": the address is in use or not one of this machine's; choose another "
                                               "with --address"));
  }
  server->address_ = options.address;
  if (!options.is_unix_socket()) {  // for which gRPC says port 1
    server->address_ = options.address.substr(0, options.address.rfind(':') + 1) + std::to_string(port);
  }
  return server;
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  return grpc_server_->InProcessChannel(grpc::ChannelArguments());
}

void Server::Shutdown() {
  if (grpc_server_ == nullptr) return;
  if (auto* const health = grpc_server_->GetHealthCheckService()) health->SetServingStatus(false);
  run_service_->Drain();
  runs_->Shutdown();
  grpc_server_->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
  grpc_server_->Wait();
  grpc_server_.reset();
}

Server::~Server() {
  if (runs_ != nullptr) Shutdown();
}

}  // namespace hfopt::server
