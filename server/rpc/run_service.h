#ifndef HFOPT_SERVER_RPC_RUN_SERVICE_H_
#define HFOPT_SERVER_RPC_RUN_SERVICE_H_

#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "hfopt/v1/run_service.grpc.pb.h"
#include "server/access/access_control.h"
#include "server/evaluation/transfer_watchdog.h"
#include "server/run/run_manager.h"

namespace hfopt::server {

// Thin handlers: proto/hfopt/v1/run_service.proto says what each call does, RunManager and Run do it.
class RunService final : public v1::RunService::CallbackService {
 public:
  RunService(RunManager& runs, const AccessControl& access, TransferWatchdog& watchdog) : runs_(runs), access_(access), watchdog_(watchdog) {}

  // Ends the streams of watchers, which would otherwise hold up the server's shutdown, and refuses calls from now on.
  void Drain();

  grpc::ServerUnaryReactor* GetServer(grpc::CallbackServerContext* context, const v1::GetServerRequest* request,
                                      v1::GetServerResponse* response) override;
  grpc::ServerUnaryReactor* CreateRun(grpc::CallbackServerContext* context, const v1::CreateRunRequest* request,
                                      v1::CreateRunResponse* response) override;
  grpc::ServerUnaryReactor* GetRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request,
                                   v1::GetRunResponse* response) override;
  grpc::ServerUnaryReactor* ListRuns(grpc::CallbackServerContext* context, const v1::ListRunsRequest* request,
                                     v1::ListRunsResponse* response) override;
  grpc::ServerUnaryReactor* StartRun(grpc::CallbackServerContext* context, const v1::StartRunRequest* request,
                                     v1::StartRunResponse* response) override;
  grpc::ServerUnaryReactor* PauseRun(grpc::CallbackServerContext* context, const v1::PauseRunRequest* request,
                                     v1::PauseRunResponse* response) override;
  grpc::ServerUnaryReactor* ResumeRun(grpc::CallbackServerContext* context, const v1::ResumeRunRequest* request,
                                      v1::ResumeRunResponse* response) override;
  grpc::ServerUnaryReactor* CancelRun(grpc::CallbackServerContext* context, const v1::CancelRunRequest* request,
                                      v1::CancelRunResponse* response) override;
  grpc::ServerUnaryReactor* DeleteRun(grpc::CallbackServerContext* context, const v1::DeleteRunRequest* request,
                                      v1::DeleteRunResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchRunResponse>* WatchRun(grpc::CallbackServerContext* context,
                                                           const v1::WatchRunRequest* request) override;
  grpc::ServerReadReactor<v1::UploadParametersRequest>* UploadParameters(
      grpc::CallbackServerContext* context, v1::UploadParametersResponse* response) override;
  grpc::ServerWriteReactor<v1::DownloadParametersResponse>* DownloadParameters(
      grpc::CallbackServerContext* context, const v1::DownloadParametersRequest* request) override;

 private:
  class Watcher;

  // What every handler asks first: OK when the caller has the role that the call takes. UNAVAILABLE while draining.
  absl::Status Admit(const grpc::CallbackServerContext& context, v1::Role role) const;
  // The named run, for a caller of this role.
  absl::StatusOr<std::shared_ptr<Run>> Find(const grpc::CallbackServerContext& context, v1::Role role, const std::string& name) const;
  // Runs an operator's action on the named run, answers its new state, and ends the call.
  grpc::ServerUnaryReactor* Act(grpc::CallbackServerContext* context, const std::string& name,
                                absl::Status (Run::*action)(), v1::Run* run);

  RunManager& runs_;
  const AccessControl& access_;
  TransferWatchdog& watchdog_;
  mutable absl::Mutex mu_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  std::set<Watcher*> watchers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RPC_RUN_SERVICE_H_
