#ifndef HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
#define HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/server_builder.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/evaluation/worker_session.h"

namespace hfopt::server {

// Brings each worker's session to the pool of its run, once `admit` has nothing against its caller. "Raw", because sessions frame their messages
// themselves.
//
// Sessions are spread over completion queues, each with one thread: what one thread receives it also copies into place, while the bytes are in its
// cache. (gRPC's callbacks come from threads that share a queue and hand every descriptor on to each other, which cost a seventh more CPU.)
class EvaluationService final : private v1::EvaluationService::WithRawMethod_Session<v1::EvaluationService::Service> {
 public:
  using Admit = std::function<absl::Status(const grpc::ServerContext&)>;

  EvaluationService(WorkerSession::FindPool find_pool, TransferWatchdog& watchdog, Admit admit = [](const auto&) { return absl::OkStatus(); });
  ~EvaluationService() override;

  // In this order: AddTo a builder, which builds and starts a server, Start, Shutdown of the server, AwaitEnd, destruction of the server and of this.
  void AddTo(grpc::ServerBuilder& builder);
  void Start();
  // Returns when no session is left, and no call awaited.
  void AwaitEnd();

 private:
  class Queue;

  const WorkerSession::FindPool find_pool_;
  TransferWatchdog& watchdog_;
  const Admit admit_;
  std::vector<std::unique_ptr<Queue>> queues_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
