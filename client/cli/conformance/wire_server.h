#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_WIRE_SERVER_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_WIRE_SERVER_H_

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "hfopt/v1/evaluation_service.pb.h"

namespace hfopt::conformance {

// One stream of EvaluationService.Session as it lies on the wire, without manners of its own: a script says what is
// sent and when it is read. Thread-safe; the calls that wait say so.
class WireSession final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  static std::shared_ptr<WireSession> Start(grpc::CallbackServerContext* context);

  // Queues a message; the second form any bytes, also such as are no message. After the end of the stream: nothing.
  void Send(const v1::SessionResponse& message);
  void SendBytes(const std::string& bytes);

  // Waits for the worker's next message. DEADLINE_EXCEEDED; UNAVAILABLE when there will be none, because the worker
  // closed its half or the stream broke; DATA_LOSS when it is no SessionRequest.
  absl::StatusOr<v1::SessionRequest> Receive(absl::Time deadline);
  // Waits until gRPC has taken all that was sent. False at the deadline, or when the stream broke.
  bool AwaitSent(absl::Time deadline);
  // Waits until the worker has closed its half or the stream broke, whatever else it says before.
  bool AwaitEnd(absl::Time deadline);

  // Messages that have arrived can still be received.
  void PauseReading();
  void ResumeReading();

  // Ends the stream once all is sent.
  void Close(const absl::Status& status);
  // Ends it now, in the middle of what is being sent, as a broken connection would.
  void Break();

  // Whether messages can still come.
  bool open() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit WireSession(grpc::CallbackServerContext* context) : context_(context) {}
  void Queue(grpc::ByteBuffer frame);
  void Pump();

  grpc::CallbackServerContext* const context_;
  std::shared_ptr<WireSession> self_;  // until gRPC has done with it
  grpc::ByteBuffer incoming_, written_;

  mutable absl::Mutex mu_;
  std::deque<grpc::ByteBuffer> received_ ABSL_GUARDED_BY(mu_);
  std::deque<grpc::ByteBuffer> outgoing_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  bool read_is_due_ ABSL_GUARDED_BY(mu_) = false;  // put off by the pause
  bool read_ended_ ABSL_GUARDED_BY(mu_) = false;   // half-closed or broken
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> closing_ ABSL_GUARDED_BY(mu_);
};

// Listens for workers, and describes the run "runs/{run_id}" to those that ask RunService for it.
class WireServer {
 public:
  // UNAVAILABLE when nobody can listen there. Port 0: chosen by the system.
  static absl::StatusOr<std::unique_ptr<WireServer>> Listen(const std::string& address, const std::string& run_id);
  ~WireServer();

  const std::string& address() const { return address_; }
  const std::string& run_id() const { return run_id_; }

  // What the run's options say from now on.
  void Describe(v1::ElementType element_type, int shards);

  // Waits for the next stream that a worker opens. DEADLINE_EXCEEDED.
  absl::StatusOr<std::shared_ptr<WireSession>> Accept(absl::Time deadline);
  // Whether Accept would not wait.
  bool HasWaiting() const;
  // Cancels the streams that nobody has accepted.
  void DropWaiting();

 private:
  class Sessions;
  class Runs;
  WireServer(std::string run_id);

  const std::string run_id_;
  std::string address_;
  std::unique_ptr<Sessions> sessions_;
  std::unique_ptr<Runs> runs_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_WIRE_SERVER_H_
