#include "server/evaluation/worker_session.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/status.h"
#include "server/evaluation/out_of_memory.h"
#include "server/evaluation/steady_now.h"

namespace hfopt::server {
namespace {

// An answer has at most two vectors; a worker that opens many transfers wants our memory.
constexpr size_t kMaxOpenTransfers = 4;

}  // namespace

WorkerSession::WorkerSession(FindPool find_pool, TransferWatchdog& watchdog)
    : find_pool_(std::move(find_pool)),
      watchdog_(watchdog),
      read_done_([this](bool ok) {
        OnReadDone(ok);
        OnOperationDone();
      }),
      write_done_([this](bool ok) {
        OnWriteDone(ok);
        OnOperationDone();
      }),
      finish_done_([this](bool) { OnOperationDone(); }) {}

void WorkerSession::Start(const absl::Status& admitted, std::function<void()> ended) {
  ended_ = std::move(ended);
  self_ = shared_from_this();
  if (!admitted.ok()) {
    Close(admitted);
    return;
  }
  last_heard_ = absl::ToUnixNanos(SteadyNow());
  {
    absl::MutexLock lock(&mu_);
    watched_.emplace(watchdog_, context_.c_call());
    watched_->Await("the worker has not said Hello");
  }
  ReadOn();
}

// ---------------------------------------------------------------------------------------------------------------- reading

void WorkerSession::OnReadDone(bool ok) {
  if (!ok) {  // the worker closed its half, or the stream broke
    Close(absl::OkStatus());
    return;
  }
  last_heard_ = absl::ToUnixNanos(SteadyNow());
  if (!IsClosing()) {
    const absl::Status status = CatchOutOfMemory([this] { return HandleIncoming(); });
    if (!status.ok()) {
      // One that breaks the protocol is sent away, and not waited for.
      if (pool_ != nullptr) pool_->OnDrain(this);
      assemblers_.clear();
      handed_over_.clear();
      Close(status);
    }
  }
  incoming_.Clear();
  ReadOn();
}

bool WorkerSession::IsClosing() {
  absl::MutexLock lock(&mu_);
  return closing_.has_value();
}

// Also when the session is closing, to no use: a worker may not read, and so not let our last write go, before it has written.
void WorkerSession::ReadOn() {
  absl::MutexLock lock(&mu_);
  if (finished_) return;
  ++operations_;
  stream_.Read(&incoming_, &read_done_);
}

absl::Status WorkerSession::HandleIncoming() {
  if (const std::optional<wire::ChunkFrame> chunk = wire::FindChunk(incoming_); chunk.has_value() && pool_ != nullptr) {
    return HandleChunk(chunk->transfer, chunk->offset, chunk->size,
                       [&](char* to) { wire::CopyChunk(incoming_, *chunk, to); });
  }
  v1::SessionRequest message;
  if (!wire::ParseFrame(incoming_, &message)) {
    return absl::InvalidArgumentError("a message is no encoding of hfopt.v1.SessionRequest");
  }
  return Handle(message);
}

absl::Status WorkerSession::Handle(v1::SessionRequest& message) {
  if (pool_ == nullptr && !message.has_hello()) {
    return absl::InvalidArgumentError("the first message of a session must be Hello");
  }
  switch (message.message_case()) {
    case v1::SessionRequest::kHello:
      return HandleHello(message.hello());
    case v1::SessionRequest::kVectorHeader:
      return HandleHeader(message.vector_header());
    case v1::SessionRequest::kVectorChunk:
      return HandleChunk(message.vector_chunk().transfer(), message.vector_chunk().offset(),
                         message.vector_chunk().data().size(), [&](char* to) {
                           const std::string& data = message.vector_chunk().data();
                           std::memcpy(to, data.data(), data.size());
                         });
    case v1::SessionRequest::kAnswer:
      return HandleAnswer(std::move(*message.mutable_answer()));
    case v1::SessionRequest::kDrain:
      pool_->OnDrain(this);
      return absl::OkStatus();
    case v1::SessionRequest::kSharedMemoryAttached:
      return HandleAttached();
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
  HFOPT_FAILPOINT_OR_RETURN("session.hello");
  HFOPT_ASSIGN_OR_RETURN(std::shared_ptr<WorkerPool> pool, find_pool_(hello));
  pool_ = std::move(pool);  // also if memory gives out in Join: it may have this link by then
  if (const absl::Status joined = pool_->Join(hello, shared_from_this()); !joined.ok()) {
    pool_ = nullptr;
    return joined;
  }
  buffers_ = pool_->buffers();
  absl::MutexLock lock(&mu_);
  if (!closing_.has_value()) watched_->Moved();
  return absl::OkStatus();
}

absl::Status WorkerSession::HandleHeader(const v1::VectorHeader& header) {
  if (buffers_ == nullptr) return absl::InvalidArgumentError("the run has ended; nothing is received for it");
  if (assemblers_.size() + handed_over_.size() >= kMaxOpenTransfers) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxOpenTransfers, " transfers are open"));
  }
  if (assemblers_.contains(header.transfer()) || handed_over_.contains(header.transfer())) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", header.transfer(), " is open already"));
  }
  std::shared_ptr<void> memory;  // where the vector lies, if it does not come in chunks
  if (header.has_slot()) {
    if (!attached_) return absl::InvalidArgumentError("VectorHeader.slot was used without SharedMemoryAttached");
    absl::MutexLock lock(&mu_);
    HFOPT_ASSIGN_OR_RETURN(memory, to_server_->Take(header.slot()));
    HFOPT_FAILPOINT_OR_RETURN("session.receive_slot");
  }
  const auto assemble = [&]<typename Scalar>(wire::BufferPool& buffers, int64_t size) -> absl::Status {
    HFOPT_ASSIGN_OR_RETURN(auto assembler, wire::VectorAssembler<Scalar>::Create(header, size, [&](int64_t) { return buffers.GetVector<Scalar>(); }));
    assemblers_.emplace(header.transfer(), std::move(assembler));
    return absl::OkStatus();
  };
  const auto open = [&]<typename Scalar>(Scalar) -> absl::Status {
    if (memory != nullptr) {
      HFOPT_RETURN_IF_ERROR(wire::CheckHeader<Scalar>(header, buffers_->size<Scalar>()));
      handed_over_.emplace(header.transfer(), wire::SharedVector<Scalar>(std::move(memory), buffers_->size<Scalar>()));
      bytes_received_ += header.size() * sizeof(Scalar);
      return absl::OkStatus();
    }
    return assemble.template operator()<Scalar>(*buffers_, buffers_->size<Scalar>());
  };
  if (header.element_type() == v1::ELEMENT_TYPE_BFLOAT16 && pool_->bfloat16_products() && memory == nullptr) {
    constexpr size_t kMostIdle = 1;
    if (!halves_.has_value()) halves_.emplace(buffers_->size<float>() * sizeof(wire::Bfloat16), kMostIdle);
    return assemble.template operator()<wire::Bfloat16>(*halves_, buffers_->size<float>());
  }
  return pool_->element_type() == v1::ELEMENT_TYPE_FLOAT64 ? open(double{}) : open(float{});
}

absl::Status WorkerSession::HandleChunk(uint64_t transfer, uint64_t offset, uint64_t size,
                                        absl::FunctionRef<void(char* to)> copy) {
  const auto assembler = assemblers_.find(transfer);
  if (assembler == assemblers_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk of transfer ", transfer, ", which is not open"));
  }
  HFOPT_ASSIGN_OR_RETURN(char* const place,
                         std::visit([&](auto& a) { return a.Claim(transfer, offset, size); }, assembler->second));
  bytes_received_ += size;
  copy(place);
  HFOPT_FAILPOINT_OR_RETURN("session.receive_chunk");
  return absl::OkStatus();
}

AnyVector WorkerSession::Take(Assembler assembler) {
  if (auto* const halves = std::get_if<wire::VectorAssembler<wire::Bfloat16>>(&assembler)) {
    wire::SharedVector<float> vector = buffers_->GetVector<float>();
    vector.map() = std::move(*halves).Take().map().cast<float>();
    return vector;
  }
  if (auto* const floats = std::get_if<wire::VectorAssembler<float>>(&assembler)) return std::move(*floats).Take();
  return std::get<wire::VectorAssembler<double>>(std::move(assembler)).Take();
}

absl::Status WorkerSession::HandleAnswer(v1::Answer answer) {
  std::map<uint64_t, AnyVector> vectors = std::exchange(handed_over_, {});
  for (auto& [transfer, assembler] : assemblers_) {
    HFOPT_RETURN_IF_ERROR(std::visit([](auto& a) { return a.CheckComplete(); }, assembler));
    vectors.emplace(transfer, Take(std::move(assembler)));
  }
  assemblers_.clear();
  HFOPT_FAILPOINT_OR_RETURN("session.answer");
  return pool_->OnAnswer(this, std::move(answer), std::move(vectors));
}

absl::Status WorkerSession::HandleAttached() {
  absl::MutexLock lock(&mu_);
  if (to_worker_ == nullptr) return absl::InvalidArgumentError("SharedMemoryAttached was sent, but no memory was offered");
  attached_ = true;
  to_server_->CloseDescriptor();
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------------------------- writing

void WorkerSession::UseSharedMemory(std::shared_ptr<wire::SharedSegment> to_worker,
                                    std::shared_ptr<wire::SharedSegment> to_server) {
  absl::MutexLock lock(&mu_);
  to_worker_ = std::move(to_worker);
  to_server_ = std::move(to_server);
}

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
      if (watched_.has_value()) watched_->Await("the worker has not read that its session is over");
      if (!closing_->ok()) outgoing_.clear();  // of no use to a worker that is sent away
    }
  }
  Pump();
}

void WorkerSession::Pump() {
  std::optional<grpc::ByteBuffer> frame;
  grpc::Status end;
  {
    absl::MutexLock lock(&mu_);
    if (writing_ || finished_) return;
    if (!broken_ && !outgoing_.empty()) {
      if (auto* message = std::get_if<v1::SessionResponse>(&outgoing_.front())) {
        frame = wire::Frame(*message);
        outgoing_.pop_front();
      } else {
        auto& out = std::get<OutgoingVector>(outgoing_.front());
        const AnyVector& vector = out.vector->vector;
        if (!out.header_sent) {
          out.header_sent = true;
          v1::SessionResponse message;
          *message.mutable_vector_header() =
              wire::MakeHeader(out.transfer, out.vector->name, Size(vector), out.vector->chunk_type());
          const std::optional<uint32_t> slot = attached_ ? to_worker_->SlotOf(Bytes(vector).data()) : std::nullopt;
          if (slot.has_value()) {
            HFOPT_FAILPOINT("session.send_slot");
            message.mutable_vector_header()->set_slot(*slot);
            message.mutable_vector_header()->set_element_type(ElementTypeOf(vector));
            bytes_sent_ += Bytes(vector).size();
            outgoing_.pop_front();
          }
          frame = wire::Frame(message);
        } else {
          const absl::Span<const char> bytes = out.vector->chunk_bytes();
          const absl::Span<const char> chunk = bytes.subspan(out.offset, wire::kMaxChunkBytes);
          HFOPT_FAILPOINT("session.send_chunk");
          frame = wire::FrameChunk(out.transfer, out.offset, chunk, out.vector);
          out.offset += chunk.size();
          bytes_sent_ += chunk.size();
          if (out.offset == bytes.size()) outgoing_.pop_front();
        }
      }
      writing_ = true;
    } else if (closing_.has_value() || broken_) {
      finished_ = true;
      end = wire::ToGrpc(closing_.value_or(absl::OkStatus()));
    } else {
      return;
    }
    ++operations_;
  }
  // gRPC takes the end while a read is under way, which then ends without success; OnDone comes after both.
  if (frame.has_value()) {
    stream_.Write(*frame, &write_done_);
  } else {
    stream_.Finish(end, &finish_done_);
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
  const absl::Status status = CatchOutOfMemory([this] {
    Pump();
    return absl::OkStatus();
  });
  if (!status.ok()) Close(status);  // or nothing would write on
}

void WorkerSession::OnOperationDone() {
  {
    absl::MutexLock lock(&mu_);
    if (--operations_ > 0 || !finished_) return;
  }
  OnDone();
}

void WorkerSession::OnDone() {
  {
    absl::MutexLock lock(&mu_);
    watched_.reset();
  }
  if (pool_ != nullptr) pool_->OnDisconnected(this);
  ended_();
  self_.reset();
}

}  // namespace hfopt::server
