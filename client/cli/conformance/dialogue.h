#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_DIALOGUE_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_DIALOGUE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/conformance/wire_server.h"
#include "hfopt/v1/evaluation_service.pb.h"

namespace hfopt::conformance {

// All arithmetic of the suite is in double. On the wire, elements are of the session's element type; vectors that are
// asked about must consist of such numbers (see Dialogue::Rounded).
using Vector = Eigen::VectorXd;

// The examples of a question.
struct Window {
  bool held_out = false;
  uint32_t shard = 0;
  uint32_t shards = 1;
  uint64_t begin = 0;
  uint64_t count = 0;
};

// base + sum of coefficient * vector.
struct Point {
  Vector base;
  std::vector<std::pair<double, Vector>> terms;
  Point(Vector base, std::vector<std::pair<double, Vector>> terms = {})  // NOLINT: a vector is a point
      : base(std::move(base)), terms(std::move(terms)) {}
};

// An answer with the vectors that came before it, by transfer.
struct Reply {
  v1::Answer answer;
  std::map<uint64_t, Vector> vectors;
  std::map<uint64_t, v1::ElementType> types;  // as which they came
};

struct GradientReply {
  double loss = 0;
  double weight = 0;
  Vector gradient;
  Vector second_moment;                                // empty unless asked for
  std::vector<std::pair<double, double>> sub_batches;  // squared norm, weight
};

struct ProductReply {
  double weight = 0;
  Vector product;
};

// How a vector is cut for its way to the worker.
struct Cut {
  size_t chunk_bytes = 1 << 20;
  bool backwards = false;
  bool bfloat16 = false;  // the numbers are rounded to it
};

// One session with a worker, from its Hello on: keeps its vectors, asks, and holds every message of the worker against
// the protocol. What breaks it is a FAILED_PRECONDITION that says how. Waits are limited by `timeout`:
// DEADLINE_EXCEEDED.
class Dialogue {
 public:
  // `hello` has been read from the session.
  Dialogue(std::shared_ptr<WireSession> session, v1::Hello hello, absl::Duration timeout)
      : session_(std::move(session)), hello_(std::move(hello)), timeout_(timeout) {}
  ~Dialogue() { session_->Break(); }
  Dialogue(const Dialogue&) = delete;
  Dialogue& operator=(const Dialogue&) = delete;

  const v1::Hello& hello() const { return hello_; }
  WireSession& wire() { return *session_; }
  bool float64() const { return welcome_.element_type() == v1::ELEMENT_TYPE_FLOAT64; }
  size_t element_bytes() const { return float64() ? 8 : 4; }
  int64_t num_parameters() const { return hello_.num_parameters(); }
  absl::Duration timeout() const { return timeout_; }
  const v1::Welcome& welcome() const { return welcome_; }

  void Welcome(v1::ElementType element_type, int shards, absl::Duration lease);
  void Send(const v1::SessionResponse& message) { session_->Send(message); }

  // The nearest numbers of the session's element type.
  Vector Rounded(const Vector& vector) const;
  std::string Encode(const Vector& vector) const;
  static std::string EncodeBfloat16(const Vector& vector);

  // Sends the vector under a name that was never used before, and answers the name.
  std::string Upload(const Vector& vector, const Cut& cut = {});
  // The parts of an upload: header, and the bytes from `begin` to `end`.
  v1::SessionResponse Header(uint64_t transfer, const std::string& name) const;
  v1::SessionResponse Chunk(uint64_t transfer, const std::string& bytes, size_t begin, size_t end) const;
  std::string NewName();
  uint64_t NewTransfer() { return next_transfer_++; }
  // The name of a vector of this content that the worker has; sends it if need be.
  std::string Resident(const Vector& vector);
  void Release(const std::vector<std::string>& names);
  // All that was sent by Resident.
  void ReleaseResidents();

  // Requests without an id. Vectors are sent first.
  v1::EvaluationRequest LossesRequest(const std::vector<Point>& points, const Window& window);
  v1::EvaluationRequest GradientRequest(const Point& point, const Window& window, uint32_t sub_batches = 0,
                                        bool second_moment = false);
  v1::EvaluationRequest ProductRequest(const Point& point, const Vector& direction, const Window& window);
  static v1::EvaluationRequest InitialParametersRequest(uint64_t seed);

  // Sends a request under a new id, which is answered; the second form under the id that it has.
  uint64_t Post(v1::EvaluationRequest request);
  void PostAs(const v1::EvaluationRequest& request);
  // Its answer will come without being asked for again: the worker's Hello said so.
  void Expect(const v1::EvaluationRequest& request) { pending_[request.id()] = request; }
  // Waits for the answer, which may be a Failure. Answers to other requests that come meanwhile are kept for their own
  // call.
  absl::StatusOr<Reply> Await(uint64_t id);
  absl::StatusOr<Reply> Ask(const v1::EvaluationRequest& request) { return Await(Post(request)); }
  // Ids that are posted and not answered.
  const std::map<uint64_t, v1::EvaluationRequest>& pending() const { return pending_; }

  // The questions. A Failure of the model's is an INTERNAL error here.
  absl::StatusOr<v1::LossesAnswer> Losses(const std::vector<Point>& points, const Window& window);
  absl::StatusOr<double> Loss(const Point& point, const Window& window);
  absl::StatusOr<GradientReply> Gradient(const Point& point, const Window& window, uint32_t sub_batches = 0,
                                         bool second_moment = false);
  absl::StatusOr<ProductReply> Product(const Point& point, const Vector& direction, const Window& window);
  absl::StatusOr<Vector> InitialParameters(uint64_t seed);

  // Reads one message of the worker and holds it against the protocol. DEADLINE_EXCEEDED; UNAVAILABLE after the end of
  // the stream.
  absl::StatusOr<v1::SessionRequest> Read(absl::Time deadline);
  // Reads whatever comes until then. OK when nothing was wrong with it.
  absl::Status ReadUntil(absl::Time deadline);
  // The longest time between two messages of the worker's so far, the wait that goes on included.
  absl::Duration LongestSilence() const { return std::max(longest_silence_, absl::Now() - last_heard_); }
  void ForgetSilence();
  bool said_drain() const { return said_drain_; }

 private:
  struct Incoming {
    v1::ElementType type;
    Vector numbers;
    std::vector<bool> there;  // by element
    size_t missing = 0;
  };

  absl::Status Check(const v1::SessionRequest& message);
  absl::Status CheckHeader(const v1::VectorHeader& header);
  absl::Status CheckChunk(const v1::VectorChunk& chunk);
  absl::Status CheckAnswer(const v1::Answer& answer);
  absl::Status CheckResult(const v1::EvaluationRequest& request, const v1::Answer& answer) const;
  void Fill(const Window& window, v1::EvaluationRequest& request) const;
  void Fill(const Point& point, v1::Point& message);

  const std::shared_ptr<WireSession> session_;
  const v1::Hello hello_;
  const absl::Duration timeout_;
  v1::Welcome welcome_;

  uint64_t next_transfer_ = 1;
  std::set<std::string> resident_;  // names that Resident has sent
  std::map<uint64_t, v1::EvaluationRequest> pending_;
  std::map<uint64_t, Incoming> incoming_;
  std::map<uint64_t, Reply> arrived_;        // and not awaited yet
  std::map<uint64_t, size_t> fingerprints_;  // of what was answered, for holding second answers against the first
  absl::Time last_heard_ = absl::Now();
  absl::Duration longest_silence_ = absl::ZeroDuration();
  bool said_drain_ = false;
};

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_DIALOGUE_H_
