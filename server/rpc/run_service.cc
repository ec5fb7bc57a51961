#include "server/rpc/run_service.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"
#include "server/evaluation/out_of_memory.h"

namespace hfopt::server {
namespace {

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(wire::ToGrpc(status));
  return reactor;
}

bool HasEnded(const v1::Run& run) {
  return run.state() == v1::RUN_STATE_ENDED || run.state() == v1::RUN_STATE_FAILED;
}

// A stream that is refused before it begins.
template <typename Response>
class RefusedWriter : public grpc::ServerWriteReactor<Response> {
 public:
  explicit RefusedWriter(const absl::Status& status) { this->Finish(wire::ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// Takes the chunks of one vector, in the order of their offsets.
class Uploader final : public grpc::ServerReadReactor<v1::UploadParametersRequest> {
 public:
  using FindRun = std::function<absl::StatusOr<std::shared_ptr<Run>>(const std::string&)>;

  Uploader(const absl::Status& admitted, FindRun find_run, v1::UploadParametersResponse* response, TransferWatchdog& watchdog,
           grpc::CallbackServerContext& context)
      : find_run_(std::move(find_run)), response_(response), watched_(watchdog, context.c_call()) {
    if (admitted.ok()) {
      ReadOn();
    } else {
      Finish(wire::ToGrpc(admitted));
    }
  }

  void OnReadDone(bool ok) override {
    watched_.Moved();
    if (!ok) {
      Finish(wire::ToGrpc(CatchOutOfMemory([this] { return Complete(); })));
    } else if (absl::Status status = CatchOutOfMemory([this] { return Handle(); }); !status.ok()) {
      Finish(wire::ToGrpc(status));
    } else {
      ReadOn();
    }
  }
  void OnDone() override { delete this; }

 private:
  void ReadOn() {
    watched_.Await("no chunk of the upload has come");
    StartRead(&request_);
  }

  absl::Status Handle() {
    if (request_.has_header()) {
      if (run_ != nullptr) return absl::InvalidArgumentError("the header was sent twice");
      const v1::UploadParametersHeader& header = request_.header();
      HFOPT_ASSIGN_OR_RETURN(run_, find_run_(header.name()));
      // Before anything is allocated at a header's word.
      HFOPT_RETURN_IF_ERROR(run_->CheckInitialParameters(header.size(), header.element_type()));
      const v1::VectorHeader vector = wire::MakeHeader(0, "", header.size(), header.element_type());
      const auto open = [&](auto assembler) -> absl::Status {
        HFOPT_RETURN_IF_ERROR(assembler.status());
        assembler_.emplace(*std::move(assembler));
        return absl::OkStatus();
      };
      return header.element_type() == v1::ELEMENT_TYPE_FLOAT64
                 ? open(wire::VectorAssembler<double>::Create(vector, header.size()))
                 : open(wire::VectorAssembler<float>::Create(vector, header.size()));
    }
    if (!assembler_.has_value()) return absl::InvalidArgumentError("the first message must be the header");
    return std::visit([&](auto& a) { return a.Add(request_.chunk()); }, *assembler_);
  }

  absl::Status Complete() {
    if (!assembler_.has_value()) return absl::InvalidArgumentError("the upload ended before its header");
    HFOPT_RETURN_IF_ERROR(std::visit([](auto& a) { return a.CheckComplete(); }, *assembler_));
    HFOPT_RETURN_IF_ERROR(run_->SetInitialParameters(
        std::visit([](auto& a) -> AnyVector { return std::move(a).Take(); }, *assembler_)));
    *response_->mutable_run() = run_->Snapshot();
    return absl::OkStatus();
  }

  const FindRun find_run_;
  v1::UploadParametersResponse* const response_;
  TransferWatchdog::Stream watched_;
  v1::UploadParametersRequest request_;
  std::shared_ptr<Run> run_;
  std::optional<std::variant<wire::VectorAssembler<float>, wire::VectorAssembler<double>>> assembler_;
};

class Downloader final : public grpc::ServerWriteReactor<v1::DownloadParametersResponse> {
 public:
  using Parameters = std::variant<Vector<float>, Vector<double>>;

  Downloader(Parameters parameters, const v1::Checkpoint& meta, TransferWatchdog& watchdog, grpc::CallbackServerContext& context)
      : parameters_(std::move(parameters)), watched_(watchdog, context.c_call()) {
    v1::DownloadParametersHeader& header = *response_.mutable_header();
    header.set_size(meta.num_parameters());
    header.set_element_type(meta.element_type());
    header.set_iteration(meta.iteration());
    header.set_held_out_loss(meta.held_out_loss());
    WriteOn();
  }

  void OnWriteDone(bool ok) override {
    watched_.Moved();
    const size_t bytes = std::visit(
        [&](const auto& v) { return wire::FillChunk(v, offset_, 0, response_.mutable_chunk(), wire::kSlowLinkChunkBytes); }, parameters_);
    if (!ok || bytes == 0) {
      Finish(grpc::Status::OK);
      return;
    }
    offset_ += bytes;
    WriteOn();
  }
  void OnDone() override { delete this; }

 private:
  void WriteOn() {
    watched_.Await("what was sent of the parameters has not been read");
    StartWrite(&response_);
  }

  const Parameters parameters_;
  TransferWatchdog::Stream watched_;
  uint64_t offset_ = 0;
  v1::DownloadParametersResponse response_;
};

}  // namespace

// Pulls what is new from the run whenever it can write, so a slow reader costs one message of memory; one that does not read at all is sent away by
// the watchdog, and told the rest when it asks again. Life cycle: 1. subscribed;
// 2. Pump after each write and each change; 3. Finish when the run ended and all was told, on drain, or when the caller left; 4. OnDone.
class RunService::Watcher final : public grpc::ServerWriteReactor<v1::WatchRunResponse> {
 public:
  Watcher(RunService& service, std::shared_ptr<Run> run, uint64_t after_iteration, grpc::CallbackServerContext& context)
      : service_(service), run_(std::move(run)), watched_(service.watchdog_, context.c_call()), sent_iteration_(after_iteration) {
    subscription_ = run_->Subscribe([this] { Pump(); });
    Pump();
  }

  void OnWriteDone(bool ok) override {
    watched_.Moved();
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
      if (!ok) end_ = absl::CancelledError("the caller left");
    }
    Pump();
  }
  void OnCancel() override { End(absl::CancelledError("the caller left")); }
  void OnDone() override {
    run_->Unsubscribe(subscription_);
    {
      absl::MutexLock lock(&service_.mu_);
      service_.watchers_.erase(this);
    }
    delete this;
  }

  void End(absl::Status status) {
    {
      absl::MutexLock lock(&mu_);
      end_ = std::move(status);
    }
    Pump();
  }

 private:
  void Pump() {
    std::optional<absl::Status> end;
    {
      absl::MutexLock lock(&mu_);
      if (writing_ || finished_) return;
      end = end_;
      if (!end.has_value() && !NextEvent(end)) return;
      (end.has_value() ? finished_ : writing_) = true;
    }
    if (end.has_value()) {
      Finish(wire::ToGrpc(*end));
    } else {
      watched_.Await("the run's news have not been read");
      StartWrite(&response_);
    }
  }

  // Fills response_ and answers true; or sets `end`; or answers false: nothing is new.
  bool NextEvent(std::optional<absl::Status>& end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    // The version before the reports: a change in between is seen the next time.
    const uint64_t version = run_->state_version();
    const std::vector<v1::IterationReport> reports = run_->ReportsAfter(sent_iteration_, 1);
    if (!reports.empty()) {
      *response_.mutable_iteration() = reports[0];
      sent_iteration_ = reports[0].iteration();
      return true;
    }
    if (version == sent_version_) return EndIfTold(end);
    sent_version_ = version;
    v1::Run run = run_->Snapshot();
    told_end_ = HasEnded(run);
    // A run that iterates changes its record each time; only another state is news.
    if (run.state() == sent_state_ && run.state_detail() == sent_detail_) return EndIfTold(end);
    sent_state_ = run.state();
    sent_detail_ = run.state_detail();
    *response_.mutable_run() = std::move(run);
    return true;
  }

  // For NextEvent, when nothing is new.
  bool EndIfTold(std::optional<absl::Status>& end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (told_end_) end = absl::OkStatus();
    return told_end_;
  }

  RunService& service_;
  const std::shared_ptr<Run> run_;
  TransferWatchdog::Stream watched_;
  int64_t subscription_ = 0;
  absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
  uint64_t sent_iteration_ ABSL_GUARDED_BY(mu_);
  uint64_t sent_version_ ABSL_GUARDED_BY(mu_) = 0;
  v1::RunState sent_state_ ABSL_GUARDED_BY(mu_) = v1::RUN_STATE_UNSPECIFIED;
  std::string sent_detail_ ABSL_GUARDED_BY(mu_);
  bool told_end_ ABSL_GUARDED_BY(mu_) = false;
  v1::WatchRunResponse response_;
};

void RunService::Drain() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  for (Watcher* const watcher : watchers_) watcher->End(absl::UnavailableError("the server is shutting down"));
}

absl::Status RunService::Admit(const grpc::CallbackServerContext& context, v1::Role role) const {
  HFOPT_RETURN_IF_ERROR(access_.Check(context, role));
  absl::MutexLock lock(&mu_);
  if (draining_) return absl::UnavailableError("the server is shutting down; try again when it is back");
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Run>> RunService::Find(const grpc::CallbackServerContext& context, v1::Role role,
                                                      const std::string& name) const {
  HFOPT_RETURN_IF_ERROR(Admit(context, role));
  return runs_.Find(name);
}

grpc::ServerUnaryReactor* RunService::GetServer(grpc::CallbackServerContext* context, const v1::GetServerRequest*,
                                                v1::GetServerResponse* response) {
  const absl::StatusOr<Caller> caller = access_.Identify(*context);
  if (!caller.ok()) return Answer(context, caller.status());
  response->set_version(HFOPT_VERSION);
  response->set_protocol_version(kProtocolVersion);
  response->set_role(caller->role);
  response->set_caller(caller->name);
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* RunService::CreateRun(grpc::CallbackServerContext* context,
                                                const v1::CreateRunRequest* request, v1::CreateRunResponse* response) {
  if (absl::Status admitted = Admit(*context, v1::ROLE_OPERATOR); !admitted.ok()) return Answer(context, admitted);
  const auto run = runs_.Create(*request);
  if (run.ok()) *response->mutable_run() = (*run)->Snapshot();
  return Answer(context, run.status());
}

grpc::ServerUnaryReactor* RunService::GetRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request,
                                             v1::GetRunResponse* response) {
  const auto run = Find(*context, v1::ROLE_READER, request->name());
  if (run.ok()) *response->mutable_run() = (*run)->Snapshot();
  return Answer(context, run.status());
}

grpc::ServerUnaryReactor* RunService::ListRuns(grpc::CallbackServerContext* context,
                                               const v1::ListRunsRequest* request, v1::ListRunsResponse* response) {
  if (absl::Status admitted = Admit(*context, v1::ROLE_READER); !admitted.ok()) return Answer(context, admitted);
  if (request->page_size() < 0) {
    return Answer(context, absl::InvalidArgumentError(
                               absl::StrCat("page_size is ", request->page_size(), "; allowed: 0 (50) or more")));
  }
  const size_t size = request->page_size() == 0 ? 50 : std::min(request->page_size(), 500);
  const auto runs = runs_.List(request->page_token(), size + 1);
  for (size_t i = 0; i < std::min(size, runs.size()); ++i) *response->add_runs() = runs[i]->Snapshot();
  if (runs.size() > size) response->set_next_page_token(runs[size - 1]->id());
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* RunService::Act(grpc::CallbackServerContext* context, const std::string& name,
                                          absl::Status (Run::*action)(), v1::Run* answer) {
  const auto run = Find(*context, v1::ROLE_OPERATOR, name);
  if (!run.ok()) return Answer(context, run.status());
  const absl::Status status = ((**run).*action)();
  if (status.ok()) *answer = (*run)->Snapshot();
  return Answer(context, status);
}

grpc::ServerUnaryReactor* RunService::StartRun(grpc::CallbackServerContext* context,
                                               const v1::StartRunRequest* request, v1::StartRunResponse* response) {
  return Act(context, request->name(), &Run::Start, response->mutable_run());
}

grpc::ServerUnaryReactor* RunService::PauseRun(grpc::CallbackServerContext* context,
                                               const v1::PauseRunRequest* request, v1::PauseRunResponse* response) {
  return Act(context, request->name(), &Run::Pause, response->mutable_run());
}

grpc::ServerUnaryReactor* RunService::ResumeRun(grpc::CallbackServerContext* context,
                                                const v1::ResumeRunRequest* request, v1::ResumeRunResponse* response) {
  return Act(context, request->name(), &Run::Resume, response->mutable_run());
}

grpc::ServerUnaryReactor* RunService::CancelRun(grpc::CallbackServerContext* context,
                                                const v1::CancelRunRequest* request, v1::CancelRunResponse* response) {
  return Act(context, request->name(), &Run::Cancel, response->mutable_run());
}

grpc::ServerUnaryReactor* RunService::DeleteRun(grpc::CallbackServerContext* context,
                                                const v1::DeleteRunRequest* request, v1::DeleteRunResponse*) {
  if (absl::Status admitted = Admit(*context, v1::ROLE_OPERATOR); !admitted.ok()) return Answer(context, admitted);
  return Answer(context, runs_.Delete(request->name()));
}

grpc::ServerWriteReactor<v1::WatchRunResponse>* RunService::WatchRun(grpc::CallbackServerContext* context,
                                                                     const v1::WatchRunRequest* request) {
  auto run = Find(*context, v1::ROLE_READER, request->name());
  if (!run.ok()) return new RefusedWriter<v1::WatchRunResponse>(run.status());
  absl::MutexLock lock(&mu_);
  auto* const watcher = new Watcher(*this, *std::move(run), request->after_iteration(), *context);
  watchers_.insert(watcher);
  return watcher;
}

grpc::ServerReadReactor<v1::UploadParametersRequest>* RunService::UploadParameters(
    grpc::CallbackServerContext* context, v1::UploadParametersResponse* response) {
  return new Uploader(Admit(*context, v1::ROLE_OPERATOR), [this](const std::string& name) { return runs_.Find(name); }, response,
                      watchdog_, *context);
}

grpc::ServerWriteReactor<v1::DownloadParametersResponse>* RunService::DownloadParameters(
    grpc::CallbackServerContext* context, const v1::DownloadParametersRequest* request) {
  const auto load = [&]() -> absl::StatusOr<Checkpoint> {
    HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<Run> run, Find(*context, v1::ROLE_READER, request->name()));
    absl::StatusOr<LoadedCheckpoint> loaded =
        request->has_iteration()                                  ? runs_.store().LoadCheckpoint(run->id(), request->iteration())
        : request->version() == v1::DownloadParametersRequest::VERSION_LAST ? runs_.store().LoadLastCheckpoint(run->id())
                                                                            : runs_.store().LoadBestCheckpoint(run->id());
    // Before an iteration was accepted the last parameters are the best.
    if (absl::IsNotFound(loaded.status()) && !request->has_iteration()) loaded = runs_.store().LoadLastCheckpoint(run->id());
    if (absl::IsDataLoss(loaded.status()) && !request->has_iteration() && request->version() != v1::DownloadParametersRequest::VERSION_LAST) {
      return absl::DataLossError(absl::StrCat(loaded.status().message(), "; download the last ones instead (hfopt params download --version last)"));
    }
    HFOPT_RETURN_IF_ERROR(loaded.status());
    return std::move(loaded->checkpoint);
  };
  absl::StatusOr<Checkpoint> checkpoint = CatchOutOfMemory(load);
  if (!checkpoint.ok()) return new RefusedWriter<v1::DownloadParametersResponse>(checkpoint.status());
  return new Downloader(std::move(checkpoint->tensors.at("theta")), checkpoint->meta, watchdog_, *context);
}

}  // namespace hfopt::server
