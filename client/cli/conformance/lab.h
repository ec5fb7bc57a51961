#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_LAB_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_LAB_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/conformance/dialogue.h"
#include "client/cli/conformance/wire_server.h"
#include "client/cli/conformance/worker_under_test.h"

namespace hfopt::conformance {

struct LabOptions {
  // Of vectors; unspecified: float64 where the worker offers it.
  v1::ElementType element_type = v1::ELEMENT_TYPE_UNSPECIFIED;
  uint64_t seed = 1;      // of the initial parameters and all directions
  Vector parameters;      // where derivatives are looked at; empty: near the model's initial parameters
  int64_t examples = 64;  // of a window, at most
  absl::Duration timeout = absl::Seconds(60);  // for an answer, and for a worker to dial
  // How long the suite listens where it expects that nothing is said.
  absl::Duration quiet = absl::Milliseconds(300);
  absl::Duration lease = absl::Milliseconds(600);  // where the renewal is looked at
};

// What the cases share: the worker, the session that they use one after the other, and where and how the model is
// looked at.
class Lab {
 public:
  Lab(WireServer& server, WorkerUnderTest& worker, LabOptions options);

  WireServer& server() { return server_; }
  WorkerUnderTest& worker() { return worker_; }
  const LabOptions& options() const { return options_; }

  // Waits end with CANCELLED once this asks to stop.
  void set_stop_token(std::stop_token stop) { stop_ = std::move(stop); }

  // The session in use. Where none is open, the next one of the worker is welcomed; a worker that the suite starts and
  // that has ended, or has to wait long before it dials again, is started anew.
  absl::StatusOr<Dialogue*> Session();
  // Takes the session from the cases that follow.
  std::unique_ptr<Dialogue> TakeSession() { return std::move(session_); }
  void KeepSession(std::unique_ptr<Dialogue> session) { session_ = std::move(session); }
  void HangUp() { session_.reset(); }
  // Of the session in use, if there is one.
  void ReleaseResidents() {
    if (session_ != nullptr) session_->ReleaseResidents();
  }

  // Starts the worker anew and waits for its Hello.
  absl::StatusOr<std::unique_ptr<Dialogue>> FreshHello();
  // Waits for the next Hello of the worker that runs.
  absl::StatusOr<std::unique_ptr<Dialogue>> NextHello();
  // Whether a session is opened before `deadline`.
  bool Dials(absl::Time deadline);
  void Welcome(Dialogue& dialogue, absl::Duration lease = absl::Hours(1));
  // What a worker does after the suite has broken the protocol: it ends its process (not by a signal), or dials again;
  // the next session is welcomed and kept. The error says what it does instead, for example answer request `id`.
  absl::StatusOr<std::string> AwaitFarewell(std::unique_ptr<Dialogue> dialogue, uint64_t id = 0);

  // The element type of the session, known once there was one.
  v1::ElementType element_type() const { return element_type_; }
  bool float64() const { return element_type_ == v1::ELEMENT_TYPE_FLOAT64; }
  // `double_limit` in float64, else `single_limit`.
  double limit(double double_limit, double single_limit) const { return float64() ? double_limit : single_limit; }

  // Logical shards of the run, and the one of which windows are taken.
  uint32_t shards() const { return shards_; }
  uint32_t shard() const { return shard_; }
  bool has_all_shards() const { return has_all_shards_; }
  int64_t ShardBegin(bool held_out, uint32_t shard, uint32_t shards) const;
  int64_t ShardSize(bool held_out, uint32_t shard, uint32_t shards) const;
  // A window of the shard: at most `count` examples from `begin` on, so that it does not wrap if it need not.
  Window Training(int64_t count, int64_t begin = 0) const;
  Window Training() const { return Training(options_.examples); }

  // Points near the initial parameters (0, 1, ...), all different; directions with entries of size 1. Of the session's
  // element type.
  absl::StatusOr<Vector> Theta(int k);
  Vector Direction(int k) const;
  // The size of the steps that lead from one point to another.
  double step() const { return step_; }

 private:
  absl::Status LearnFrom(const v1::Hello& hello);

  WireServer& server_;
  WorkerUnderTest& worker_;
  const LabOptions options_;
  std::unique_ptr<Dialogue> session_;
  int redials_ = 0;  // of the process that runs
  v1::ElementType element_type_ = v1::ELEMENT_TYPE_UNSPECIFIED;
  v1::Hello hello_;
  uint32_t shards_ = 3, shard_ = 0;
  bool has_all_shards_ = true;
  Vector theta_;
  double step_ = 0;
  std::stop_token stop_;
};

// Independent normal numbers, the same on every machine.
Vector NormalVector(int64_t n, uint64_t seed);

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_LAB_H_
