#ifndef HFOPT_SERVER_SERVER_H_
#define HFOPT_SERVER_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/server.h"
#include "server/access/access_control.h"
#include "server/evaluation/evaluation_service.h"
#include "server/evaluation/transfer_watchdog.h"
#include "server/rpc/run_service.h"
#include "server/run/run_manager.h"
#include "server/run/run_store.h"
#include "server/server_options.h"

namespace hfopt::server {

// A whole server: the only place that knows the order in which its parts begin and end.
class Server {
 public:
  using Log = std::function<void(const std::string&)>;

  // Recovers the stored runs and listens. UNAVAILABLE when the address is taken, FAILED_PRECONDITION when another server uses the state.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, Log log);
  // Shuts down.
  ~Server();

  // Drains: refuses new calls, stops the runs at once (an unfinished iteration is done again after the next start), sends workers and watchers
  // away with UNAVAILABLE, so that they dial again, and returns when all is closed.
  void Shutdown();

  // HOST:PORT with the port really used, or unix:PATH.
  const std::string& address() const { return address_; }
  // Of the plaintext health checks, likewise; empty: none.
  const std::string& health_address() const { return health_address_; }
  std::shared_ptr<grpc::Channel> InProcessChannel();

 private:
  Server() = default;

  std::string address_, health_address_;
  // In the order of construction; destroyed the other way round.
  std::unique_ptr<RunStore> store_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<RunManager> runs_;
  std::unique_ptr<TransferWatchdog> watchdog_;
  std::unique_ptr<EvaluationService> evaluation_service_;
  std::unique_ptr<RunService> run_service_;
  std::unique_ptr<grpc::Server> health_server_;  // null: none of its own
  std::unique_ptr<grpc::Server> grpc_server_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_SERVER_H_
