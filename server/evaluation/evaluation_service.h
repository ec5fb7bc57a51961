#ifndef HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
#define HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/wire/status.h"
#include "server/evaluation/worker_session.h"

namespace hfopt::server {

// Brings each worker's session to the pool of its run, once `admit` has nothing against its caller. "Raw", because sessions frame their messages
// themselves.
class EvaluationService final
    : public v1::EvaluationService::WithRawCallbackMethod_Session<v1::EvaluationService::Service> {
 public:
  using Admit = std::function<absl::Status(const grpc::CallbackServerContext&)>;

  EvaluationService(WorkerSession::FindPool find_pool, TransferWatchdog& watchdog, Admit admit = [](const auto&) { return absl::OkStatus(); })
      : find_pool_(std::move(find_pool)), watchdog_(watchdog), admit_(std::move(admit)) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(grpc::CallbackServerContext* context) override {
    if (const absl::Status admitted = admit_(*context); !admitted.ok()) return new Refused(admitted);
    return WorkerSession::Start(find_pool_, watchdog_, *context);
  }

 private:
  struct Refused final : grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
    explicit Refused(const absl::Status& status) { Finish(wire::ToGrpc(status)); }
    void OnDone() override { delete this; }
  };

  const WorkerSession::FindPool find_pool_;
  TransferWatchdog& watchdog_;
  const Admit admit_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
