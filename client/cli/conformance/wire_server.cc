#include "client/cli/conformance/wire_server.h"

#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/server_builder.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "hfopt/v1/run_service.grpc.pb.h"
#include "proto/wire/chunk_frame.h"
#include "proto/wire/status.h"

namespace hfopt::conformance {

std::shared_ptr<WireSession> WireSession::Start(grpc::CallbackServerContext* context) {
  std::shared_ptr<WireSession> session(new WireSession(context));
  session->self_ = session;
  session->StartRead(&session->incoming_);
  return session;
}

void WireSession::OnReadDone(bool ok) {
  {
    absl::MutexLock lock(&mu_);
    if (!ok) {
      read_ended_ = true;
      return;
    }
    received_.push_back(std::move(incoming_));
    incoming_.Clear();
    if (paused_) {
      read_is_due_ = true;
      return;
    }
  }
  StartRead(&incoming_);
}

void WireSession::PauseReading() {
  absl::MutexLock lock(&mu_);
  paused_ = true;
}

void WireSession::ResumeReading() {
  {
    absl::MutexLock lock(&mu_);
    paused_ = false;
    if (!std::exchange(read_is_due_, false) || finished_) return;
  }
  StartRead(&incoming_);
}

absl::StatusOr<v1::SessionRequest> WireSession::Receive(absl::Time deadline) {
  grpc::ByteBuffer frame;
  {
    absl::MutexLock lock(&mu_);
    const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !received_.empty() || read_ended_; };
    if (!mu_.AwaitWithDeadline(absl::Condition(&ready), deadline))
      return absl::DeadlineExceededError("no message came");
    if (received_.empty()) return absl::UnavailableError(broken_ ? "the stream broke" : "the worker closed its half");
    frame = std::move(received_.front());
    received_.pop_front();
  }
  v1::SessionRequest message;
  if (!wire::ParseFrame(frame, &message)) {
    return absl::DataLossError("the worker sent bytes that are no hfopt.v1.SessionRequest");
  }
  return message;
}

bool WireSession::AwaitSent(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  const auto sent = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return (outgoing_.empty() && !writing_) || broken_; };
  return mu_.AwaitWithDeadline(absl::Condition(&sent), deadline) && !broken_;
}

bool WireSession::AwaitEnd(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithDeadline(absl::Condition(&read_ended_), deadline);
}

bool WireSession::open() const {
  absl::MutexLock lock(&mu_);
  return !read_ended_ && !finished_;
}

void WireSession::Send(const v1::SessionResponse& message) { Queue(wire::Frame(message)); }

void WireSession::SendBytes(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  Queue(grpc::ByteBuffer(&slice, 1));
}

void WireSession::Queue(grpc::ByteBuffer frame) {
  {
    absl::MutexLock lock(&mu_);
    if (broken_ || closing_.has_value()) return;
    outgoing_.push_back(std::move(frame));
  }
  Pump();
}

void WireSession::Close(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu_);
    if (closing_.has_value()) return;
    closing_ = status;
  }
  Pump();
}

void WireSession::Break() {
  absl::MutexLock lock(&mu_);
  if (!done_) context_->TryCancel();
}

void WireSession::Pump() {
  {
    absl::MutexLock lock(&mu_);
    if (writing_ || finished_) return;
    if (!broken_ && !outgoing_.empty()) {
      written_ = std::move(outgoing_.front());
      outgoing_.pop_front();
      writing_ = true;
    } else if (broken_ || closing_.has_value()) {
      finished_ = true;
    } else {
      return;
    }
    if (writing_) {
      StartWrite(&written_);
      return;
    }
  }
  Finish(wire::ToGrpc(closing_.value_or(absl::OkStatus())));
}

void WireSession::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) {
      broken_ = true;
      outgoing_.clear();
    }
  }
  Pump();
}

void WireSession::OnCancel() {
  {
    absl::MutexLock lock(&mu_);
    broken_ = true;
    outgoing_.clear();
    if (std::exchange(read_is_due_, false)) read_ended_ = true;
  }
  Pump();
}

void WireSession::OnDone() {
  std::shared_ptr<WireSession> self = std::move(self_);
  absl::MutexLock lock(&mu_);
  done_ = true;
  read_ended_ = true;
}

// ------------------------------------------------------------------------------------------------------------- the
// services

class WireServer::Sessions final
    : public v1::EvaluationService::WithRawCallbackMethod_Session<v1::EvaluationService::Service> {
 public:
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(grpc::CallbackServerContext* context) override {
    std::shared_ptr<WireSession> session = WireSession::Start(context);
    absl::MutexLock lock(&mu_);
    waiting_.push_back(session);
    return session.get();
  }
  absl::StatusOr<std::shared_ptr<WireSession>> Accept(absl::Time deadline) {
    absl::MutexLock lock(&mu_);
    const auto there = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !waiting_.empty(); };
    if (!mu_.AwaitWithDeadline(absl::Condition(&there), deadline)) return absl::DeadlineExceededError("nobody dialled");
    std::shared_ptr<WireSession> session = std::move(waiting_.front());
    waiting_.pop_front();
    return session;
  }
  bool HasWaiting() {
    absl::MutexLock lock(&mu_);
    return !waiting_.empty();
  }

 private:
  absl::Mutex mu_;
  std::deque<std::shared_ptr<WireSession>> waiting_ ABSL_GUARDED_BY(mu_);
};

class WireServer::Runs final : public v1::RunService::CallbackService {
 public:
  explicit Runs(const std::string& run_id) {
    run_.set_name(absl::StrCat("runs/", run_id));
    run_.set_state(v1::RUN_STATE_RUNNING);
  }
  void Describe(v1::ElementType element_type, int shards) {
    absl::MutexLock lock(&mu_);
    run_.mutable_options()->set_element_type(element_type);
    run_.mutable_options()->set_shards(shards);
  }
  grpc::ServerUnaryReactor* GetRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request,
                                   v1::GetRunResponse* response) override {
    absl::MutexLock lock(&mu_);
    *response->mutable_run() = run_;
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(request->name() == run_.name()
                        ? grpc::Status::OK
                        : grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("only ", run_.name(), " is here")));
    return reactor;
  }

 private:
  absl::Mutex mu_;
  v1::Run run_ ABSL_GUARDED_BY(mu_);
};

WireServer::WireServer(std::string run_id)
    : run_id_(std::move(run_id)), sessions_(std::make_unique<Sessions>()), runs_(std::make_unique<Runs>(run_id_)) {}

absl::StatusOr<std::unique_ptr<WireServer>> WireServer::Listen(const std::string& address, const std::string& run_id) {
  std::unique_ptr<WireServer> server(new WireServer(run_id));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // As hfopt-server: workers ping every 30 s, also without calls.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.RegisterService(server->sessions_.get());
  builder.RegisterService(server->runs_.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address,
                                               ": the address is in use or not one of this machine's; choose another"));
  }
  server->address_ =
      absl::StartsWith(address, "unix:") ? address : absl::StrCat(address.substr(0, address.rfind(':') + 1), port);
  return server;
}

WireServer::~WireServer() {
  if (server_ == nullptr) return;
  DropWaiting();
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

void WireServer::Describe(v1::ElementType element_type, int shards) { runs_->Describe(element_type, shards); }

absl::StatusOr<std::shared_ptr<WireSession>> WireServer::Accept(absl::Time deadline) {
  return sessions_->Accept(deadline);
}

bool WireServer::HasWaiting() const { return sessions_->HasWaiting(); }

void WireServer::DropWaiting() {
  while (auto session = sessions_->Accept(absl::InfinitePast()).value_or(nullptr)) session->Break();
}

}  // namespace hfopt::conformance
