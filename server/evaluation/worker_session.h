#ifndef HFOPT_SERVER_EVALUATION_WORKER_SESSION_H_
#define HFOPT_SERVER_EVALUATION_WORKER_SESSION_H_

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"
#include "grpcpp/support/byte_buffer.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "proto/wire/chunk_frame.h"
#include "proto/wire/vector_codec.h"
#include "server/evaluation/transfer_watchdog.h"
#include "server/evaluation/worker_link.h"
#include "server/evaluation/worker_pool.h"

namespace hfopt::server {

// The tag of an operation in a completion queue: what its end, with success or without, sets off.
using Completion = std::function<void(bool ok)>;

// One worker's stream of SessionRequests and SessionResponses, framed by proto/wire/chunk_frame. It moves bytes and passes complete answers to the
// pool. What its operations set off comes from the one thread of its completion queue; sends come from any.
//
// Life cycle: 1. A call of EvaluationService.Session fills context() and stream(). 2. Start (reads Hello). 3. Hello finds the pool and joins it.
// 4. Messages. 5. Either side ends: the pool by Close, the worker by closing its half or vanishing, or a message that breaks the protocol.
// 6. OnDone, once no operation is under way: the pool is told, and the session lets go of itself.
class WorkerSession final : public WorkerLink, public std::enable_shared_from_this<WorkerSession> {
 public:
  using Stream = grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  // The pool of a run; NOT_FOUND, with what to do, when there is none.
  using FindPool = std::function<absl::StatusOr<std::shared_ptr<WorkerPool>>(const v1::Hello&)>;

  WorkerSession(FindPool find_pool, TransferWatchdog& watchdog);
  // A call that has come is served or, unless it was admitted, refused. The session owns itself until its stream is done, which `ended` is told then.
  void Start(const absl::Status& admitted, std::function<void()> ended);

  grpc::ServerContext& context() { return context_; }
  Stream& stream() { return stream_; }

  // WorkerLink.
  void Send(v1::SessionResponse message) override;
  void SendVector(NamedVectorPtr vector) override;
  void UseSharedMemory(std::shared_ptr<wire::SharedSegment> to_worker,
                       std::shared_ptr<wire::SharedSegment> to_server) override;
  bool shared_memory() const override { return attached_; }
  void Close(absl::Status status) override;
  absl::Time last_heard() const override { return absl::FromUnixNanos(last_heard_.load()); }
  uint64_t bytes_sent() const override { return bytes_sent_; }
  uint64_t bytes_received() const override { return bytes_received_; }

 private:
  using Assembler = std::variant<wire::VectorAssembler<float>, wire::VectorAssembler<double>, wire::VectorAssembler<wire::Bfloat16>>;

  // Ends of operations, of which one of each kind is under way at most.
  void OnReadDone(bool ok);
  void OnWriteDone(bool ok);
  // Of every operation: the last one ends the session.
  void OnOperationDone();
  void OnDone();

  absl::Status HandleIncoming();
  absl::Status Handle(v1::SessionRequest& message);
  absl::Status HandleHello(const v1::Hello& hello);
  absl::Status HandleHeader(const v1::VectorHeader& header);
  // What a complete transfer has brought, in the element type of the run.
  AnyVector Take(Assembler assembler);
  // `copy` writes the chunk's bytes to where it is told.
  absl::Status HandleChunk(uint64_t transfer, uint64_t offset, uint64_t size, absl::FunctionRef<void(char* to)> copy);
  absl::Status HandleAnswer(v1::Answer answer);
  absl::Status HandleAttached();
  bool IsClosing();
  void ReadOn();

  // Starts the next write or the end, unless one is under way.
  void Pump();

  const FindPool find_pool_;
  TransferWatchdog& watchdog_;
  grpc::ServerContext context_;
  Stream stream_{&context_};
  Completion read_done_, write_done_, finish_done_;
  std::function<void()> ended_;
  std::shared_ptr<WorkerSession> self_;  // until OnDone

  // Of the queue's thread.
  grpc::ByteBuffer incoming_;
  std::shared_ptr<WorkerPool> pool_;  // set by Hello
  std::shared_ptr<wire::BufferPool> buffers_;  // of the run; null when it had ended before any worker came
  // By transfer: those that come in chunks, and those that lie in shared memory, which are complete.
  std::map<uint64_t, Assembler> assemblers_;
  std::optional<wire::BufferPool> halves_;  // for vectors of ELEMENT_TYPE_BFLOAT16, once there was one
  std::map<uint64_t, AnyVector> handed_over_;

  std::atomic<int64_t> last_heard_;
  std::atomic<uint64_t> bytes_sent_ = 0, bytes_received_ = 0;
  std::atomic<bool> attached_ = false;

  // What waits to be written: messages, and vectors of which part may have gone already.
  struct OutgoingVector {
    NamedVectorPtr vector;
    uint64_t transfer = 0;
    uint64_t offset = 0;
    bool header_sent = false;
  };
  absl::Mutex mu_;
  std::optional<TransferWatchdog::Stream> watched_ ABSL_GUARDED_BY(mu_);  // before Hello and after the end; until OnDone
  std::shared_ptr<wire::SharedSegment> to_worker_ ABSL_GUARDED_BY(mu_), to_server_ ABSL_GUARDED_BY(mu_);  // null where not shared
  std::deque<std::variant<v1::SessionResponse, OutgoingVector>> outgoing_ ABSL_GUARDED_BY(mu_);
  uint64_t next_transfer_ ABSL_GUARDED_BY(mu_) = 1;
  int operations_ ABSL_GUARDED_BY(mu_) = 0;  // under way
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // nothing more can be written
  std::optional<absl::Status> closing_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_WORKER_SESSION_H_
