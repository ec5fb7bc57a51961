#include "client/cpp/model_worker.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/chunk_size.h"
#include "client/cpp/evaluator.h"
#include "grpcpp/client_context.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/chunk_frame.h"
#include "proto/wire/shared_segment.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::client {
namespace {

using Clock = std::chrono::steady_clock;
using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

// What the generated stub does for its own message types: EvaluationService.Session, with messages as proto/wire/chunk_frame makes them.
// (GenericStub, which moves bytes too, has no blocking calls.)
std::unique_ptr<Stream> OpenSession(grpc::Channel& channel, grpc::ClientContext& context) {
  static const std::string method = absl::StrCat("/", v1::EvaluationService::service_full_name(), "/Session");
  return std::unique_ptr<Stream>(grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
      &channel, grpc::internal::RpcMethod(method.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING), &context));
}

constexpr uint32_t kProtocolVersion = 1;

absl::Status Unreadable() {
  return absl::DataLossError("a message of the server's is no encoding of hfopt.v1.SessionResponse");
}

// How long the server may take to close a session that the worker has left.
constexpr std::chrono::seconds kFarewell(5);

// Whether dialling again cannot help.
bool IsPermanent(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kResourceExhausted:  // the model does not fit into the server
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status ModelWorkerOptions::Validate() const {
  const auto is_id = [](const std::string& id) {
    return !id.empty() && id.size() <= 63 &&
           id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
  };
  if (channel == nullptr) return absl::InvalidArgumentError("channel: is null; make one with MakeChannel(address)");
  if (!is_id(run_id)) {
    return absl::InvalidArgumentError(absl::StrCat("run_id: '", run_id, "' is not 1 to 63 of [a-z0-9-]"));
  }
  if (!is_id(worker_id)) {
    return absl::InvalidArgumentError(absl::StrCat("worker_id: '", worker_id, "' is not 1 to 63 of [a-z0-9-]"));
  }
  if (initial_backoff <= absl::ZeroDuration() || max_backoff < initial_backoff) {
    return absl::InvalidArgumentError(absl::StrCat("backoff: ", absl::FormatDuration(initial_backoff), " to ",
                                                   absl::FormatDuration(max_backoff), " is no range above zero"));
  }
  return absl::OkStatus();
}

// Three threads, one mutex:
//   - the reader dials, reads, and dials again; it alone decides how everything ends, by setting outcome_;
//   - the writer sends answers and, when it has sent nothing for a third of the lease, a renewal; as nobody else writes
//   to an open
//     session, a write needs no lock;
//   - the thread that called Run computes.
// mu_ guards what they share, and is held neither in a call of gRPC that may block nor in a call of the model.
//
// A session ends in this order: the reader sees the end of the stream, takes the session from the writer and waits
// until the writer does not use it, then asks for its status. Everything ends in this order: the reader sets outcome_
// and returns; the computing thread returns after its current model call, the writer at once; Run joins both and drops
// what was computed.
template <typename Scalar>
class ModelWorker<Scalar>::Impl {
 public:
  Impl(Model<Scalar>& model, ModelWorkerOptions options) : model_(model), options_(std::move(options)) {
    if (options_.incarnation == 0) options_.incarnation = absl::ToUnixNanos(absl::Now());
  }

  absl::StatusOr<Finished> Run();
  void Stop();

 private:
  struct Session {
    grpc::ClientContext context;
    std::unique_ptr<Stream> stream;
    v1::Welcome welcome;
    using Assembler = std::variant<wire::VectorAssembler<Scalar>, wire::VectorAssembler<wire::Bfloat16>>;
    std::map<uint64_t, Assembler> transfers;                      // the reader's
    std::shared_ptr<wire::SharedSegment> from_server;             // the reader's; null where not shared
    std::shared_ptr<wire::SharedSegment> to_server;               // likewise; constant once the session is open

    // The writer's:
    Clock::duration renewal_interval;
    std::optional<ChunkSize> chunk_size;  // set once welcomed
    Clock::time_point last_write;
    bool said_drain = false;
    bool half_closed = false;

    bool finished = false;  // the server has said so; guarded by mu_
  };

  // How a session ended, or that none came about.
  struct SessionEnd {
    absl::Status status;
    bool welcomed = false;
    std::optional<Finished> finished;
  };

  // The reader.
  void Converse();
  SessionEnd Serve();
  v1::Hello MakeHello();
  absl::Status CheckWelcome(const v1::SessionResponse& response) const;
  // Says how vectors go.
  std::string ShareMemory(Session& session);
  // Vectors in the session's shared memory are the server's to overwrite once the session has ended.
  void ForgetSharedVectors(const Session& session);
  absl::Status HandleFrame(grpc::ByteBuffer& frame, Session& session, SessionEnd& end);
  absl::Status Handle(v1::SessionResponse& response, Session& session, SessionEnd& end);
  absl::Status HandleHeader(const v1::VectorHeader& header, Session& session);
  // `copy` writes the chunk's bytes to where it is told.
  absl::Status HandleChunk(uint64_t transfer, uint64_t offset, uint64_t size, absl::FunctionRef<void(char* to)> copy,
                           Session& session);
  absl::Status HandleEvaluation(v1::EvaluationRequest& request);
  void HandleCancel(uint64_t request_id);
  void HandleRelease(const v1::Release& release);

  // The writer.
  void SendAnswersAndRenewals();
  template <typename Send>
  void Write(std::unique_lock<std::mutex>& lock, const Send& send);
  bool SendAnswer(Session& session, const Evaluated<Scalar>& answer);

  // The computing thread.
  void Compute();
  // Where an answer is computed: where the server reads it, if it can be.
  SharedVector<Scalar> NewVector();

  void Log(const std::string& line) const {
    if (options_.log) options_.log(line);
  }

  Model<Scalar>& model_;
  ModelWorkerOptions options_;
  std::optional<wire::BufferPool> buffers_;  // for what is received and answered; constant once Run has begun
  std::optional<wire::BufferPool> halves_;   // likewise, in ELEMENT_TYPE_BFLOAT16
  v1::Hello identity_;  // what Hello says of the model and the options; constant once Run has begun

  std::mutex mu_;
  std::condition_variable changed_;                    // anything below
  std::map<std::string, SharedVector<Scalar>> resident_;  // by name
  std::vector<std::string> released_;                  // linearizations at these are to be dropped
  std::deque<Evaluation<Scalar>> queue_;               // not begun
  std::optional<uint64_t> running_;                    // id of the request that is computed
  bool running_is_cancelled_ = false;
  std::list<Evaluated<Scalar>> outbox_;      // computed, not sent; the writer may be sending the front
  grpc::ClientContext* dialling_ = nullptr;  // from the dialling of a session to its end
  Session* session_ = nullptr;               // open and welcomed: the writer may use it
  bool writing_ = false;                     // the writer uses it
  bool stopping_ = false;
  std::optional<absl::StatusOr<Finished>> outcome_;
};

template <typename Scalar>
absl::StatusOr<Finished> ModelWorker<Scalar>::Impl::Run() {
  if (auto s = options_.Validate(); !s.ok()) return s;
  if (model_.num_parameters() <= 0 || model_.num_examples(DataSet::kTraining) <= 0 ||
      model_.num_examples(DataSet::kHeldOut) < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the model has ", model_.num_parameters(), " parameters, ", model_.num_examples(DataSet::kTraining),
        " training examples and ", model_.num_examples(DataSet::kHeldOut), " held-out examples; it needs some"));
  }
  identity_.set_protocol_version(kProtocolVersion);
  identity_.set_worker_id(options_.worker_id);
  identity_.set_incarnation(options_.incarnation);
  identity_.set_run_id(options_.run_id);
  identity_.set_num_parameters(model_.num_parameters());
  identity_.set_training_examples(model_.num_examples(DataSet::kTraining));
  identity_.set_held_out_examples(model_.num_examples(DataSet::kHeldOut));
  identity_.set_model_signature(model_.signature());
  identity_.add_element_types(wire::ElementTypeOf<Scalar>());
  identity_.mutable_shards()->Assign(options_.shards.begin(), options_.shards.end());
  identity_.set_second_moment(model_.has_second_moment());
  identity_.set_sub_batches(true);
  identity_.set_initial_parameters(model_.has_initial_parameters());
  identity_.set_bfloat16(std::is_same_v<Scalar, float>);

  if (options_.shared_memory) identity_.set_host(wire::HostName());
  buffers_.emplace(model_.num_parameters() * sizeof(Scalar));
  halves_.emplace(model_.num_parameters() * sizeof(wire::Bfloat16), 2);

  std::thread reader([this] { Converse(); });
  std::thread writer([this] { SendAnswersAndRenewals(); });
  Compute();
  reader.join();
  writer.join();
  return *outcome_;
}

template <typename Scalar>
void ModelWorker<Scalar>::Impl::Stop() {
  const std::lock_guard<std::mutex> lock(mu_);
  queue_.clear();
  // An open session is left in good order by the writer; a half-open one has nothing to lose.
  if (dialling_ != nullptr && (stopping_ || session_ == nullptr)) dialling_->TryCancel();
  stopping_ = true;
  changed_.notify_all();
}

// --- The reader ---

template <typename Scalar>
void ModelWorker<Scalar>::Impl::Converse() {
  std::minstd_rand jitter(std::random_device{}());
  absl::Duration backoff = options_.initial_backoff;
  std::optional<Clock::time_point> lost_since;  // since when there has been no session that lasted
  while (true) {
    const Clock::time_point begin = Clock::now();
    SessionEnd end = Serve();
    const Clock::time_point now = Clock::now();
    if (end.welcomed && absl::FromChrono(now - begin) > options_.max_backoff) {
      lost_since.reset();
      backoff = options_.initial_backoff;
    }
    if (!lost_since) lost_since = now;
    const absl::Duration pause = backoff * std::uniform_real_distribution<double>(0.5, 1)(jitter);
    backoff = std::min(options_.max_backoff, backoff * 2);

    std::unique_lock<std::mutex> lock(mu_);
    if (end.finished) {
      outcome_ = *std::move(end.finished);
    } else if (IsPermanent(end.status)) {
      outcome_ = end.status;
    } else if (stopping_) {
      outcome_ = Finished{kDrained, "left the run as asked"};
    } else if (absl::FromChrono(now - *lost_since) + pause > options_.give_up_after) {
      outcome_ =
          absl::Status(end.status.code(), absl::StrCat("run ", options_.run_id, ": gave up, no lasting session for ",
                                                       absl::FormatDuration(options_.give_up_after),
                                                       "; the last error: ", end.status.message()));
    }
    if (outcome_) {
      changed_.notify_all();
      return;
    }
    lock.unlock();
    Log(absl::StrCat("run ", options_.run_id, ": ", end.welcomed ? "lost the session" : "no session", ": ",
                     end.status.ToString(), "; dialling again in ",
                     absl::FormatDuration(absl::Ceil(pause, absl::Milliseconds(1)))));
    PauseBeforeRetry(*options_.channel, pause, [this] {
      const std::lock_guard<std::mutex> guard(mu_);
      return stopping_;
    });
  }
}

// Dials and serves until the stream ends. An offence of the server against the protocol is DATA_LOSS.
template <typename Scalar>
typename ModelWorker<Scalar>::Impl::SessionEnd ModelWorker<Scalar>::Impl::Serve() {
  Session session;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) return {absl::CancelledError("stopped")};
    dialling_ = &session.context;
  }
  session.stream = OpenSession(*options_.channel, session.context);
  HFOPT_FAILPOINT("worker.hello");
  v1::SessionRequest request;
  *request.mutable_hello() = MakeHello();
  session.stream->Write(wire::Frame(request));  // a failure shows in the read

  SessionEnd end;
  absl::Status offence;
  grpc::ByteBuffer frame;
  if (session.stream->Read(&frame)) {
    v1::SessionResponse response;
    offence = wire::ParseFrame(frame, &response) ? CheckWelcome(response) : Unreadable();
    if (offence.ok()) {
      end.welcomed = true;
      session.welcome = response.welcome();
      const Clock::duration lease = absl::ToChronoNanoseconds(absl::Seconds(std::clamp(session.welcome.lease_seconds(), 0.003, 3600.)));
      session.renewal_interval = lease / 3;
      session.chunk_size.emplace(lease);
      const std::string vectors = ShareMemory(session);
      Log(absl::StrCat("run ", options_.run_id, ": in session as ", options_.worker_id, ", ", session.welcome.shards(),
                       " shards, ", vectors));
      HFOPT_FAILPOINT("worker.welcome");
      const std::lock_guard<std::mutex> lock(mu_);
      session.last_write = Clock::now();
      session_ = &session;
      changed_.notify_all();
    }
    while (offence.ok() && session.stream->Read(&frame)) offence = HandleFrame(frame, session, end);
  }
  if (!offence.ok()) {
    session.context.TryCancel();
    while (session.stream->Read(&frame)) {
    }
  }

  {
    std::unique_lock<std::mutex> lock(mu_);
    session_ = nullptr;
    ForgetSharedVectors(session);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !writing_; });
  }
  const grpc::Status status = session.stream->Finish();
  const std::lock_guard<std::mutex> lock(mu_);
  dialling_ = nullptr;
  end.status = !offence.ok() ? offence
               : status.ok() ? absl::UnavailableError("the server closed the session without a reason")
                             : wire::FromGrpc(status);
  return end;
}

template <typename Scalar>
v1::Hello ModelWorker<Scalar>::Impl::MakeHello() {
  v1::Hello hello = identity_;
  const std::lock_guard<std::mutex> lock(mu_);
  for (const auto& [name, vector] : resident_) hello.add_held_vectors(name);
  for (const Evaluated<Scalar>& e : outbox_) hello.add_pending_requests(e.answer.request_id());
  if (running_ && !running_is_cancelled_) hello.add_pending_requests(*running_);
  for (const Evaluation<Scalar>& e : queue_) hello.add_pending_requests(e.request.id());
  return hello;
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::CheckWelcome(const v1::SessionResponse& response) const {
  if (!response.has_welcome()) return absl::DataLossError("the server's first message is no Welcome");
  const v1::Welcome& welcome = response.welcome();
  if (welcome.element_type() != wire::ElementTypeOf<Scalar>()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the run uses ", wire::ElementTypeName(welcome.element_type()), ", but this worker computes in ",
                     wire::ElementTypeName(wire::ElementTypeOf<Scalar>()), "; start it for the run's element type"));
  }
  if (!(welcome.lease_seconds() > 0)) {
    return absl::DataLossError(absl::StrCat("Welcome.lease_seconds is ", welcome.lease_seconds(), ", not above 0"));
  }
  return absl::OkStatus();
}

template <typename Scalar>
std::string ModelWorker<Scalar>::Impl::ShareMemory(Session& session) {
  using wire::SharedSegment;
  if (!session.welcome.has_shared_memory()) return "vectors through gRPC";
  const v1::SharedMemory& offer = session.welcome.shared_memory();
  const size_t bytes = identity_.num_parameters() * sizeof(Scalar);
  if (offer.to_worker().slot_bytes() != bytes || offer.to_server().slot_bytes() != bytes) {
    return "vectors through gRPC, the shared memory that was offered is for vectors of another size";
  }
  const auto attach = [](const v1::SharedSegment& segment,
                         SharedSegment::Peer peer) -> absl::StatusOr<std::shared_ptr<SharedSegment>> {
    HFOPT_FAILPOINT_OR_RETURN("worker.attach");
    return SharedSegment::Attach(segment, peer);
  };
  auto from_server = attach(offer.to_worker(), SharedSegment::Peer::kReads);
  auto to_server = attach(offer.to_server(), SharedSegment::Peer::kWrites);
  for (const auto* segment : {&from_server, &to_server}) {
    if (!segment->ok()) {
      return absl::StrCat("vectors through gRPC, shared memory cannot be had: ", segment->status().message());
    }
  }
  session.from_server = *std::move(from_server);
  session.to_server = *std::move(to_server);
  v1::SessionRequest attached;
  attached.mutable_shared_memory_attached();
  session.stream->Write(wire::Frame(attached));  // the session is not open to the writer yet
  return "vectors through shared memory";
}

template <typename Scalar>
void ModelWorker<Scalar>::Impl::ForgetSharedVectors(const Session& session) {
  if (session.from_server == nullptr) return;
  for (auto resident = resident_.begin(); resident != resident_.end();) {
    if (session.from_server->SlotOf(resident->second.bytes()).has_value()) {
      released_.push_back(resident->first);
      resident = resident_.erase(resident);
    } else {
      ++resident;
    }
  }
}

template <typename Scalar>
SharedVector<Scalar> ModelWorker<Scalar>::Impl::NewVector() {
  std::shared_ptr<wire::SharedSegment> segment;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (session_ != nullptr) segment = session_->to_server;
  }
  if (segment != nullptr) {
    if (std::shared_ptr<void> slot = segment->Acquire()) return {std::move(slot), model_.num_parameters()};
  }
  return buffers_->GetVector<Scalar>();
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::HandleFrame(grpc::ByteBuffer& frame, Session& session, SessionEnd& end) {
  if (const std::optional<wire::ChunkFrame> chunk = wire::FindChunk(frame)) {
    const auto copy = [&](char* to) { wire::CopyChunk(frame, *chunk, to); };
    return HandleChunk(chunk->transfer, chunk->offset, chunk->size, copy, session);
  }
  v1::SessionResponse response;
  if (!wire::ParseFrame(frame, &response)) return Unreadable();
  return Handle(response, session, end);
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::Handle(v1::SessionResponse& response, Session& session, SessionEnd& end) {
  switch (response.message_case()) {
    case v1::SessionResponse::kVectorHeader:
      return HandleHeader(response.vector_header(), session);
    case v1::SessionResponse::kVectorChunk: {
      const v1::VectorChunk& chunk = response.vector_chunk();
      const auto copy = [&](char* to) { std::memcpy(to, chunk.data().data(), chunk.data().size()); };
      return HandleChunk(chunk.transfer(), chunk.offset(), chunk.data().size(), copy, session);
    }
    case v1::SessionResponse::kEvaluation:
      return HandleEvaluation(*response.mutable_evaluation());
    case v1::SessionResponse::kCancel:
      HandleCancel(response.cancel().request_id());
      return absl::OkStatus();
    case v1::SessionResponse::kRelease:
      HandleRelease(response.release());
      return absl::OkStatus();
    case v1::SessionResponse::kFinished: {
      end.finished = Finished{response.finished().reason(), response.finished().detail()};
      HFOPT_FAILPOINT("worker.finished");
      const std::lock_guard<std::mutex> lock(mu_);
      session.finished = true;
      changed_.notify_all();
      return absl::OkStatus();
    }
    case v1::SessionResponse::kWelcome:
      return absl::DataLossError("a second Welcome in one session");
    case v1::SessionResponse::MESSAGE_NOT_SET:  // of a later version
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::HandleHeader(const v1::VectorHeader& header, Session& session) {
  if (header.name().empty()) {
    return absl::DataLossError(absl::StrCat("transfer ", header.transfer(), ": the vector has no name"));
  }
  if (session.transfers.count(header.transfer()) > 0) {
    return absl::DataLossError(absl::StrCat("transfer ", header.transfer(), ": begun twice"));
  }
  if (header.has_slot()) {
    if (session.from_server == nullptr) {
      return absl::DataLossError(absl::StrCat("transfer ", header.transfer(), ": in memory that is not shared"));
    }
    const absl::Status fits = wire::CheckHeader<Scalar>(header, model_.num_parameters());
    if (!fits.ok()) return absl::DataLossError(fits.message());
    absl::StatusOr<std::shared_ptr<void>> slot = session.from_server->Look(header.slot());
    if (!slot.ok()) return absl::DataLossError(slot.status().message());
    HFOPT_FAILPOINT("worker.receive_slot");
    const std::lock_guard<std::mutex> lock(mu_);
    resident_[header.name()] = {*std::move(slot), model_.num_parameters()};
    return absl::OkStatus();
  }
  const auto open = [&]<typename Element>(wire::BufferPool& buffers, Element) -> absl::Status {
    auto assembler = wire::VectorAssembler<Element>::Create(header, identity_.num_parameters(), [&](int64_t) { return buffers.GetVector<Element>(); });
    if (!assembler.ok()) return absl::DataLossError(assembler.status().message());
    session.transfers.emplace(header.transfer(), *std::move(assembler));
    return absl::OkStatus();
  };
  const bool halves = identity_.bfloat16() && header.element_type() == v1::ELEMENT_TYPE_BFLOAT16;
  return halves ? open(*halves_, wire::Bfloat16()) : open(*buffers_, Scalar());
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::HandleChunk(uint64_t transfer_id, uint64_t offset, uint64_t size,
                                                    absl::FunctionRef<void(char* to)> copy, Session& session) {
  const auto transfer = session.transfers.find(transfer_id);
  if (transfer == session.transfers.end()) {
    return absl::DataLossError(absl::StrCat("transfer ", transfer_id, ": chunk without a VectorHeader before it"));
  }
  const absl::StatusOr<char*> place = std::visit([&](auto& a) { return a.Claim(transfer_id, offset, size); }, transfer->second);
  if (!place.ok()) return absl::DataLossError(place.status().message());
  copy(*place);
  HFOPT_FAILPOINT("worker.receive_chunk");
  if (!std::visit([](const auto& a) { return a.complete(); }, transfer->second)) return absl::OkStatus();
  const std::string name = std::visit([](const auto& a) { return a.name(); }, transfer->second);
  SharedVector<Scalar> vector;
  if (auto* const whole = std::get_if<wire::VectorAssembler<Scalar>>(&transfer->second)) {
    vector = std::move(*whole).Take();
  } else {
    vector = buffers_->GetVector<Scalar>();
    vector.map() = std::get<wire::VectorAssembler<wire::Bfloat16>>(std::move(transfer->second)).Take().map().template cast<Scalar>();
  }
  session.transfers.erase(transfer);
  const std::lock_guard<std::mutex> lock(mu_);
  resident_[name] = std::move(vector);
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status ModelWorker<Scalar>::Impl::HandleEvaluation(v1::EvaluationRequest& request) {
  HFOPT_FAILPOINT("worker.request");
  const std::lock_guard<std::mutex> lock(mu_);
  const uint64_t id = request.id();
  const bool known =
      running_ == id ||
      std::any_of(queue_.begin(), queue_.end(), [&](const auto& e) { return e.request.id() == id; }) ||
      std::any_of(outbox_.begin(), outbox_.end(), [&](const auto& e) { return e.answer.request_id() == id; });
  if (running_ == id) running_is_cancelled_ = false;  // cancelled, and then wanted after all
  if (known || stopping_) return absl::OkStatus();
  Evaluation<Scalar> evaluation;
  for (const std::string& name : VectorNames(request)) {
    const auto found = resident_.find(name);
    if (found == resident_.end()) {
      return absl::DataLossError(absl::StrCat("request ", id, " names the vector ", absl::BytesToHexString(name),
                                              ", which is not here: it was never sent or has been released"));
    }
    evaluation.vectors.insert(*found);
  }
  evaluation.request = std::move(request);
  queue_.push_back(std::move(evaluation));
  changed_.notify_all();
  return absl::OkStatus();
}

template <typename Scalar>
void ModelWorker<Scalar>::Impl::HandleCancel(uint64_t request_id) {
  const std::lock_guard<std::mutex> lock(mu_);
  if (running_ == request_id) running_is_cancelled_ = true;
  const auto queued = std::find_if(queue_.begin(), queue_.end(),
                                   [&](const Evaluation<Scalar>& e) { return e.request.id() == request_id; });
  if (queued != queue_.end()) queue_.erase(queued);
  // The front of the outbox may be on its way; the server drops it by its id.
  const auto computed = std::find_if(std::next(outbox_.begin(), writing_ && !outbox_.empty() ? 1 : 0), outbox_.end(),
                                     [&](const Evaluated<Scalar>& e) { return e.answer.request_id() == request_id; });
  if (computed != outbox_.end()) outbox_.erase(computed);
}

template <typename Scalar>
void ModelWorker<Scalar>::Impl::HandleRelease(const v1::Release& release) {
  const std::lock_guard<std::mutex> lock(mu_);
  for (const std::string& name : release.vectors()) {
    resident_.erase(name);
    released_.push_back(name);
  }
  changed_.notify_all();
}

// --- The writer ---

template <typename Scalar>
void ModelWorker<Scalar>::Impl::SendAnswersAndRenewals() {
  v1::SessionRequest message;
  message.mutable_lease_renewal();
  const grpc::ByteBuffer renewal = wire::Frame(message);
  message.mutable_drain();
  const grpc::ByteBuffer drain = wire::Frame(message);
  std::unique_lock<std::mutex> lock(mu_);
  while (!outcome_) {
    if (session_ == nullptr) {
      changed_.wait(lock);
      continue;
    }
    Session& session = *session_;
    const Clock::time_point renewal_time = session.last_write + session.renewal_interval;
    if (session.half_closed) {
      // Everything is said; the server has to close.
      if (!changed_.wait_until(lock, session.last_write + kFarewell, [&] { return session_ != &session; })) {
        session.context.TryCancel();
        session_ = nullptr;
      }
    } else if (session.finished || (session.said_drain && !running_ && outbox_.empty())) {
      session.half_closed = true;
      Write(lock, [&] { return session.stream->WritesDone(); });
    } else if (stopping_ && !session.said_drain) {
      session.said_drain = true;
      Write(lock, [&] { return session.stream->Write(drain); });
    } else if (!outbox_.empty()) {
      // Elements of a list stay where they are while others are added, or cancelled.
      Write(lock, [&, &answer = outbox_.front()] { return SendAnswer(session, answer); });
      // An answer cut off by a broken stream is sent again in the next session.
      if (session_ == &session) outbox_.pop_front();
    } else if (Clock::now() >= renewal_time) {
      Write(lock, [&] { return session.stream->Write(renewal); });
    } else {
      changed_.wait_until(lock, renewal_time);
    }
  }
}

// Calls `send` without the lock. When it fails, or the reader saw the end of the stream meanwhile, session_ is null
// afterwards.
template <typename Scalar>
template <typename Send>
void ModelWorker<Scalar>::Impl::Write(std::unique_lock<std::mutex>& lock, const Send& send) {
  Session& session = *session_;
  writing_ = true;
  lock.unlock();
  const bool sent = send();
  lock.lock();
  writing_ = false;
  session.last_write = Clock::now();
  if (!sent) session_ = nullptr;
  changed_.notify_all();
}

template <typename Scalar>
bool ModelWorker<Scalar>::Impl::SendAnswer(Session& session, const Evaluated<Scalar>& answer) {
  HFOPT_FAILPOINT("worker.answer");
  v1::SessionRequest message;
  for (const auto& [transfer, vector] : answer.vectors) {
    *message.mutable_vector_header() = wire::MakeHeader(transfer, "", vector.size(), wire::ElementTypeOf<Scalar>());
    if (session.to_server != nullptr) {
      if (const std::optional<uint32_t> slot = session.to_server->SlotOf(vector.bytes())) {
        session.to_server->HandOver(*slot);
        HFOPT_FAILPOINT("worker.send_slot");
        message.mutable_vector_header()->set_slot(*slot);
        if (!session.stream->Write(wire::Frame(message))) return false;
        continue;
      }
    }
    absl::Span<const char> bytes(vector.bytes(), vector.num_bytes());
    std::shared_ptr<const void> holder = vector.holder();
    if (answer.bfloat16) {
      SharedVector<wire::Bfloat16> halves = halves_->GetVector<wire::Bfloat16>();
      halves.map() = vector.map().template cast<wire::Bfloat16>();
      message.mutable_vector_header()->set_element_type(v1::ELEMENT_TYPE_BFLOAT16);
      bytes = {halves.bytes(), halves.num_bytes()};
      holder = halves.holder();
    }
    if (!session.stream->Write(wire::Frame(message))) return false;
    for (size_t offset = 0; offset < bytes.size();) {
      const absl::Span<const char> chunk = bytes.subspan(offset, session.chunk_size->bytes());
      HFOPT_FAILPOINT("worker.send_chunk");
      const Clock::time_point begin = Clock::now();
      if (!session.stream->Write(wire::FrameChunk(transfer, offset, chunk, holder))) return false;
      session.chunk_size->Sent(chunk.size(), Clock::now() - begin);
      offset += chunk.size();
    }
  }
  HFOPT_FAILPOINT("worker.uploaded");
  *message.mutable_answer() = answer.answer;
  if (!session.stream->Write(wire::Frame(message))) return false;
  HFOPT_FAILPOINT("worker.answered");
  return true;
}

// --- The computing thread ---

template <typename Scalar>
void ModelWorker<Scalar>::Impl::Compute() {
  Evaluator<Scalar> evaluator(model_, options_.shards, options_.max_linearizations, [this] { return NewVector(); });
  std::unique_lock<std::mutex> lock(mu_);
  while (true) {
    changed_.wait(lock, [this] { return outcome_ || !released_.empty() || !queue_.empty(); });
    if (outcome_) return;
    if (!released_.empty()) {
      const std::vector<std::string> released = std::exchange(released_, {});
      lock.unlock();
      for (const std::string& name : released) evaluator.Release(name);
      lock.lock();
      continue;
    }
    std::optional<Evaluation<Scalar>> evaluation = std::move(queue_.front());
    queue_.pop_front();
    running_ = evaluation->request.id();
    running_is_cancelled_ = false;
    lock.unlock();
    Evaluated<Scalar> evaluated = evaluator.Evaluate(*evaluation);
    lock.lock();
    // A request that was queued before a vector was released or its session broke brings back what was dropped then: it goes before the
    // next one, which may name a vector of the same content in other memory.
    for (const auto& [name, vector] : evaluation->vectors) {
      const auto resident = resident_.find(name);
      if (resident == resident_.end() || resident->second.bytes() != vector.bytes()) released_.push_back(name);
    }
    evaluation.reset();
    running_.reset();
    if (!running_is_cancelled_) outbox_.push_back(std::move(evaluated));
    changed_.notify_all();
  }
}

template <typename Scalar>
ModelWorker<Scalar>::ModelWorker(Model<Scalar>& model, ModelWorkerOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}

template <typename Scalar>
ModelWorker<Scalar>::~ModelWorker() = default;

template <typename Scalar>
absl::StatusOr<Finished> ModelWorker<Scalar>::Run() {
  return impl_->Run();
}

template <typename Scalar>
void ModelWorker<Scalar>::Stop() {
  impl_->Stop();
}

template class ModelWorker<float>;
template class ModelWorker<double>;

}  // namespace hfopt::client
