#include "server/server.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "server/access/server_credentials.h"
#include "server/run/file_run_store.h"

namespace hfopt::server {
namespace {

// Keepalive, in agreement with the clients (client/cpp/channel.cc), which ping every 30 s: we accept a ping every 10 s also when no call is open, and so
// never answer "too many pings". Our own pings find peers that have gone without a word.
constexpr int kMinPingIntervalMs = 10'000;

// Time for streams to end by themselves; after it they are cut.
constexpr absl::Duration kShutdownGrace = absl::Seconds(5);

// Of one connection; a client has a handful.
constexpr int kMaxConcurrentStreams = 1024;

// Whether somebody takes connections at this path.
bool IsListening(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof address.sun_path) return false;  // which gRPC refuses
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return false;
  // EAGAIN: more callers wait than it takes.
  const bool listening = connect(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN;
  close(descriptor);
  return listening;
}

// Builds and starts; UNAVAILABLE when it cannot listen. `address` becomes the one really used.
absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(grpc::ServerBuilder& builder, std::string& address,
                                                     const std::shared_ptr<grpc::ServerCredentials>& credentials) {
  const bool is_unix_socket = absl::StartsWith(address, "unix:");
  // gRPC takes the place of whatever socket is there.
  if (is_unix_socket && IsListening(address.substr(strlen("unix:")))) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": another server does; choose another path, or stop that server first"));
  }
  int port = 0;
  builder.AddListeningPort(address, credentials, &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server is an error, not a lottery
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || (port == 0 && !is_unix_socket)) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": the address is in use or not one of this machine's; choose another"));
  }
  if (!is_unix_socket) address = absl::StrCat(address.substr(0, address.rfind(':') + 1), port);  // for which gRPC says port 1
  return server;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Log log) {
  HFOPT_RETURN_IF_ERROR(options.Validate());
  HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials, MakeServerCredentials(options));
  std::unique_ptr<TokenFile> tokens;
  if (!options.tokens.empty()) {
    HFOPT_ASSIGN_OR_RETURN(tokens, TokenFile::Open(options.tokens, log));
  }
  std::unique_ptr<Server> server(new Server);
  server->access_ = std::make_unique<AccessControl>(std::move(tokens), !options.tls_client_ca.empty());
  HFOPT_ASSIGN_OR_RETURN(server->store_, FileRunStore::Open(options.state_directory, log));
  HFOPT_ASSIGN_OR_RETURN(server->runs_, RunManager::Open({.store = server->store_.get(),
                                                          .default_lease = absl::Seconds(options.lease_seconds),
                                                          .default_keep_checkpoints = options.keep_checkpoints,
                                                          .memory_limit_bytes = options.memory_limit_bytes(),
                                                          .log = log}));
  server->watchdog_ = std::make_unique<TransferWatchdog>(absl::Seconds(options.transfer_idle_seconds), std::move(log));
  server->evaluation_service_ = std::make_unique<EvaluationService>(
      [runs = server->runs_.get()](const v1::Hello& hello) -> absl::StatusOr<std::shared_ptr<WorkerPool>> {
        HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<Run> run, runs->Find(absl::StrCat("runs/", hello.run_id().c_str())));
        return run->pool();
      },
      *server->watchdog_,
      [access = server->access_.get()](const grpc::ServerContext& context) { return access->Check(context, v1::ROLE_WORKER); });
  server->run_service_ = std::make_unique<RunService>(*server->runs_, *server->access_, *server->watchdog_);

  static const bool plugins_once = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)plugins_once;
  grpc::ServerBuilder builder;
  server->evaluation_service_->AddTo(builder);
  builder.RegisterService(server->run_service_.get());
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(absl::ToInt64Milliseconds(options.ping_interval())));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(absl::ToInt64Milliseconds(options.ping_timeout())));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
  // Bandwidth probing is for links with latency; on this machine it only costs (a quarter of the CPU of a transfer).
  if (options.is_local()) builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  server->address_ = options.address;
  HFOPT_ASSIGN_OR_RETURN(server->grpc_server_, Listen(builder, server->address_, credentials));
  server->evaluation_service_->Start();
  if (!options.health_address.empty()) {
    grpc::ServerBuilder health;
    server->health_address_ = options.health_address;
    HFOPT_ASSIGN_OR_RETURN(server->health_server_, Listen(health, server->health_address_, grpc::InsecureServerCredentials()));
  }
  return server;
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  return grpc_server_->InProcessChannel(grpc::ChannelArguments());
}

void Server::Shutdown() {
  if (grpc_server_ == nullptr) return;
  for (grpc::Server* const server : {grpc_server_.get(), health_server_.get()}) {
    if (server != nullptr) server->GetHealthCheckService()->SetServingStatus(false);
  }
  run_service_->Drain();
  runs_->Shutdown();
  grpc_server_->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
  grpc_server_->Wait();
  evaluation_service_->Stop();
  grpc_server_.reset();
  health_server_.reset();  // NOT_SERVING until the end
}

Server::~Server() {
  if (runs_ != nullptr) Shutdown();
}

}  // namespace hfopt::server
