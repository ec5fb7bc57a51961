#ifndef HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
#define HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_

#include <utility>

#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "server/evaluation/worker_session.h"

namespace hfopt::server {

// Brings each worker's session to the pool of its run. "Raw", because sessions frame their messages themselves.
class EvaluationService final
    : public v1::EvaluationService::WithRawCallbackMethod_Session<v1::EvaluationService::Service> {
 public:
  explicit EvaluationService(WorkerSession::FindPool find_pool) : find_pool_(std::move(find_pool)) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(grpc::CallbackServerContext*) override {
    return WorkerSession::Start(find_pool_);
  }

 private:
  const WorkerSession::FindPool find_pool_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_EVALUATION_SERVICE_H_
