#ifndef HFOPT_SERVER_RPC_EVALUATION_SERVICE_H_
#define HFOPT_SERVER_RPC_EVALUATION_SERVICE_H_

#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/run/run_manager.h"

namespace hfopt::server {

// Brings each worker's session to the pool of its run.
class EvaluationService final : public v1::EvaluationService::CallbackService {
 public:
  explicit EvaluationService(RunManager& runs) : runs_(runs) {}

  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* context) override;

 private:
  RunManager& runs_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RPC_EVALUATION_SERVICE_H_
