#include "server/evaluation/worker_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/wire/status.h"
#include "server/evaluation/out_of_memory.h"

namespace hfopt::server {
namespace {

// An answer has at most two vectors; a worker that opens many transfers wants our memory.
constexpr size_t kMaxOpenTransfers = 4;

}  // namespace

WorkerSession* WorkerSession::Start(FindPool find_pool) {
  std::shared_ptr<WorkerSession> session(new WorkerSession(std::move(find_pool)));
  session->self_ = session;
  session->StartRead(&session->incoming_);
  return session.get();
}

WorkerSession::WorkerSession(FindPool find_pool)
    : find_pool_(std::move(find_pool)), last_heard_(absl::ToUnixNanos(absl::Now())) {}

// ---------------------------------------------------------------------------------------------------------------- reading

void WorkerSession::OnReadDone(bool ok) {
  if (!ok) {  // the worker closed its half, or the stream broke
    Close(absl::OkStatus());
    return;
  }
  last_heard_ = absl::ToUnixNanos(absl::Now());
  if (absl::Status status = CatchOutOfMemory([this] { return Handle(incoming_); }); !status.ok()) {
    // One that breaks the protocol is sent away, and not waited for.
    if (pool_ != nullptr) pool_->OnDrain(this);
    Close(std::move(status));
    return;
  }
  StartRead(&incoming_);
}

absl::Status WorkerSession::Handle(const v1::SessionRequest& message) {
  if (pool_ == nullptr && !message.has_hello()) {
    return absl::InvalidArgumentError("the first message of a session must be Hello");
  }
  switch (message.message_case()) {
    case v1::SessionRequest::kHello:
      return HandleHello(message.hello());
    case v1::SessionRequest::kVectorHeader:
      return HandleHeader(message.vector_header());
    case v1::SessionRequest::kVectorChunk:
      return HandleChunk(message.vector_chunk());
    case v1::SessionRequest::kAnswer:
      return HandleAnswer(message.answer());
    case v1::SessionRequest::kDrain:
      pool_->OnDrain(this);
      return absl::OkStatus();
    case v1::SessionRequest::kLeaseRenewal:
    case v1::SessionRequest::MESSAGE_NOT_SET:  // of a later protocol version
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status WorkerSession::HandleHello(const v1::Hello& hello) {
  if (pool_ != nullptr) return absl::InvalidArgumentError("Hello was sent twice in one session");
  if (hello.protocol_version() != kProtocolVersion) {
    return absl::InvalidArgumentError(absl::StrCat("Hello.protocol_version is ", hello.protocol_version(),
                                                   "; this server speaks ", kProtocolVersion,
                                                   ": use a worker and a server of one release"));
  }
  if (hello.worker_id().empty() || hello.worker_id().size() > 63 ||
      hello.worker_id().find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") != std::string::npos) {
    return absl::InvalidArgumentError("Hello.worker_id must be 1 to 63 characters of [a-z0-9-]");
  }
  HFOPT_ASSIGN_OR_RETURN(std::shared_ptr<WorkerPool> pool, find_pool_(hello));
  num_parameters_ = static_cast<int64_t>(hello.num_parameters());
  element_type_ = pool->element_type();
  HFOPT_RETURN_IF_ERROR(pool->Join(hello, shared_from_this()));
  pool_ = std::move(pool);
  return absl::OkStatus();
}

absl::Status WorkerSession::HandleHeader(const v1::VectorHeader& header) {
  if (assemblers_.size() >= kMaxOpenTransfers) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxOpenTransfers, " transfers are open"));
  }
  if (assemblers_.contains(header.transfer())) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", header.transfer(), " is open already"));
  }
  const auto open = [&](auto assembler) -> absl::Status {
    if (!assembler.ok()) return assembler.status();
    assemblers_.emplace(header.transfer(), *std::move(assembler));
    return absl::OkStatus();
  };
  if (element_type_ == v1::ELEMENT_TYPE_FLOAT64) {
    return open(wire::VectorAssembler<double>::Create(header, num_parameters_));
  }
  return open(wire::VectorAssembler<float>::Create(header, num_parameters_));
}

absl::Status WorkerSession::HandleChunk(const v1::VectorChunk& chunk) {
  const auto assembler = assemblers_.find(chunk.transfer());
  if (assembler == assemblers_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk of transfer ", chunk.transfer(), ", which is not open"));
  }
  bytes_received_ += chunk.data().size();
  return std::visit([&](auto& a) { return a.Add(chunk); }, assembler->second);
}

absl::Status WorkerSession::HandleAnswer(const v1::Answer& answer) {
  std::map<uint64_t, AnyVector> vectors;
  for (auto& [transfer, assembler] : assemblers_) {
    HFOPT_RETURN_IF_ERROR(std::visit([](auto& a) { return a.CheckComplete(); }, assembler));
    vectors.emplace(transfer, std::visit([](auto& a) -> AnyVector { return std::move(a).Take(); }, assembler));
  }
  assemblers_.clear();
  return pool_->OnAnswer(this, answer, std::move(vectors));
}

// ---------------------------------------------------------------------------------------------------------------- writing

void WorkerSession::Send(v1::SessionResponse message) {
  {
    absl::MutexLock lock(&mu_);
    if (broken_ || closing_.has_value()) return;
    outgoing_.emplace_back(std::move(message));
  }
  Pump();
}

void WorkerSession::SendVector(NamedVectorPtr vector) {
  {
    absl::MutexLock lock(&mu_);
    if (broken_ || closing_.has_value()) return;
    outgoing_.emplace_back(OutgoingVector{.vector = std::move(vector), .transfer = next_transfer_++});
  }
  Pump();
}

void WorkerSession::Close(absl::Status status) {
  {
    absl::MutexLock lock(&mu_);
    if (!closing_.has_value()) {
      closing_ = std::move(status);
      if (!closing_->ok()) outgoing_.clear();  // of no use to a worker that is sent away
    }
  }
  Pump();
}

void WorkerSession::Pump() {
  bool write = false;
  grpc::Status end;
  {
    absl::MutexLock lock(&mu_);
    if (writing_ || finished_) return;
    if (!broken_ && !outgoing_.empty()) {
      if (auto* message = std::get_if<v1::SessionResponse>(&outgoing_.front())) {
        response_ = std::move(*message);
        outgoing_.pop_front();
      } else {
        auto& out = std::get<OutgoingVector>(outgoing_.front());
        const AnyVector& vector = out.vector->vector;
        if (!out.header_sent) {
          out.header_sent = true;
          *response_.mutable_vector_header() =
              wire::MakeHeader(out.transfer, out.vector->name, Size(vector), ElementTypeOf(vector));
        } else {
          const size_t bytes = std::visit(
              [&](const auto& v) { return wire::FillChunk(v, out.offset, out.transfer, response_.mutable_vector_chunk()); },
              vector);
          out.offset += bytes;
          bytes_sent_ += bytes;
          const uint64_t total = Size(vector) * (element_type_ == v1::ELEMENT_TYPE_FLOAT64 ? 8 : 4);
          if (out.offset >= total) outgoing_.pop_front();
        }
      }
      write = true;
      writing_ = true;
    } else if (closing_.has_value() || broken_) {
      finished_ = true;
      end = wire::ToGrpc(closing_.value_or(absl::OkStatus()));
    } else {
      return;
    }
  }
  if (write) {
    StartWrite(&response_);
  } else {
    Finish(end);
  }
}

void WorkerSession::OnWriteDone(bool ok) {
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

void WorkerSession::OnCancel() {
  {
    absl::MutexLock lock(&mu_);
    broken_ = true;
    outgoing_.clear();
  }
  Pump();
}

void WorkerSession::OnDone() {
  if (pool_ != nullptr) pool_->OnDisconnected(this);
  self_.reset();
}

}  // namespace hfopt::server
