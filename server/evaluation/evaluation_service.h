#ifndef HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
#define HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/server_builder.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/evaluation/worker_session.h"

namespace hfopt::server {

// Brings each worker's session to the pool of its run, once `admit` has nothing against its caller. "Raw", because sessions frame their messages
// themselves.
//
// Sessions are spread over completion queues, each with one thread: the thread that receives bytes also copies them into place, while they are in its
// cache ("Who receives" in server/README.md).
class EvaluationService final : private v1::EvaluationService::WithRawMethod_Session<v1::EvaluationService::Service> {
 public:
  using Admit = std::function<absl::Status(const grpc::ServerContext&)>;

  EvaluationService(WorkerSession::FindPool find_pool, TransferWatchdog& watchdog, Admit admit = [](const auto&) { return absl::OkStatus(); });
  ~EvaluationService() override;

  // In this order: AddTo a builder, which builds and starts a server, Start, Shutdown of the server, Stop, destruction of the server. (Until then gRPC has
  // something in the queues that needs the server.)
  void AddTo(grpc::ServerBuilder& builder);
  void Start();
  // Waits for the sessions to end, and ends the threads.
  void Stop();

 private:
  class Queue;

  // Every queue awaits a call. gRPC prefers the one that waits for its connection's descriptor, so that no other thread takes part: a ninth of the CPU
  // of a transfer and a sixth of its time, which is worth more than to choose the queue that has the fewest sessions. Connections take turns.
  void AwaitCall(Queue& queue);
  void OnCall(Queue& queue, bool ok);

  // One that was open is so no more.
  void Closed();

  const WorkerSession::FindPool find_pool_;
  TransferWatchdog& watchdog_;
  const Admit admit_;
  absl::Mutex mu_;
  int open_ ABSL_GUARDED_BY(mu_) = 0;  // sessions, and calls that are awaited
  std::vector<std::unique_ptr<Queue>> queues_;  // destroyed first: their threads use the rest
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
