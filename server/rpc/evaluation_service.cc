#include "server/rpc/evaluation_service.h"

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "server/evaluation/worker_session.h"

namespace hfopt::server {

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* EvaluationService::Session(
    grpc::CallbackServerContext*) {
  return WorkerSession::Start([this](const v1::Hello& hello) -> absl::StatusOr<std::shared_ptr<WorkerPool>> {
    HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<Run> run, runs_.Find(absl::StrCat("runs/", hello.run_id().c_str())));
    return run->pool();
  });
}

}  // namespace hfopt::server
