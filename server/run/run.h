#ifndef HFOPT_SERVER_RUN_RUN_H_
#define HFOPT_SERVER_RUN_RUN_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/optimizer_options.h"
#include "core/optimizer_state.h"
#include "core/termination.h"
#include "hfopt/v1/run.pb.h"
#include "server/evaluation/remote_objective.h"
#include "server/evaluation/worker_pool.h"
#include "server/run/run_store.h"

namespace hfopt::server {

// What the server gives to every run.
struct RunEnvironment {
  RunStore* store = nullptr;        // outlives the runs
  absl::Duration default_lease = absl::Seconds(10);
  int default_keep_checkpoints = 2;
  int64_t memory_limit_bytes = INT64_MAX;
  absl::Duration first_storage_retry = absl::Seconds(1);  // on a full disk; grows to a minute
  std::function<absl::Time()> now = SteadyNow;
  // One line for the log.
  std::function<void(const std::string&)> log = [](const std::string&) {};
};

// One run: its record, its workers, and while it is started a thread that iterates. All that it has finished is in the store, so it can be
// stopped at any time and goes on from its last checkpoint. Thread-safe.
class Run {
 public:
  // `record` is complete and valid (CompleteOptions); new or from the store. Reports of a recovered run are read from the store.
  static absl::StatusOr<std::shared_ptr<Run>> Open(v1::Run record, std::string request_id, RunEnvironment environment);
  // Stops the thread.
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  const std::string& id() const { return id_; }
  const std::string& request_id() const { return request_id_; }
  v1::Run Snapshot() const;
  const std::shared_ptr<WorkerPool>& pool() const { return pool_; }

  // FAILED_PRECONDITION, naming the state, when the run is not in a state for it.
  absl::Status Start();   // CREATED -> waiting or running
  absl::Status Pause();   // takes effect at once; an unfinished iteration is dropped and done again. As it was when that cannot be stored
  absl::Status Resume();  // PAUSED, FAILED -> waiting or running
  absl::Status Cancel();  // -> ENDED; as it was when that cannot be stored
  // Removes what is stored of a run that is not active, and sends its workers away. When it fails nothing but another Delete is possible any more: part
  // of it may have gone.
  absl::Status Delete();
  // Whether a CREATED run can start from parameters of this size: RESOURCE_EXHAUSTED with bytes needed and allowed, INVALID_ARGUMENT with
  // both values when the run's are of another size or type.
  absl::Status CheckInitialParameters(uint64_t size, v1::ElementType element_type) const;
  // Sets the parameters that a CREATED run starts from.
  absl::Status SetInitialParameters(AnyVector parameters);

  // For the server's end: stops the thread, and leaves the stored state so that the run goes on when the server starts again.
  void Shutdown();
  // Starts a recovered run that was running when its server ended.
  void StartIfWasRunning();

  // Up to `limit` reports of iterations after `iteration`, in order.
  std::vector<v1::IterationReport> ReportsAfter(uint64_t iteration, int limit) const;

  // Calls `changed` whenever a report or the state is new, from any thread, never from within this call. It must not block or call back.
  int64_t Subscribe(std::function<void()> changed);
  // After it returns `changed` is not called any more.
  void Unsubscribe(int64_t subscription);
  // Grows with every change of state.
  uint64_t state_version() const;

 private:
  enum class Intent { kNone, kPause, kCancel, kShutdown };

  Run(v1::Run record, std::string request_id, OptimizerOptions options, RunEnvironment environment);

  void Launch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mu_);
  // Makes the thread, if there is one, end for this reason, and waits for it.
  void StopThread(Intent intent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mu_);
  // The thread: drives the run, then files how it ended.
  void Main();
  // Iterates until a termination, or an error (CANCELLED when interrupted).
  template <typename Scalar>
  absl::StatusOr<Termination> Drive();
  // The last checkpoint, or the initial parameters, which become the first checkpoint.
  template <typename Scalar>
  absl::StatusOr<OptimizerState<Scalar>> LoadOrInitialize(RemoteObjective<Scalar>& objective);
  // Makes the history end with this iteration, that of the checkpoint from which the run goes on.
  absl::Status MatchReports(uint64_t iteration);
  template <typename Scalar>
  absl::Status Save(const OptimizerState<Scalar>& state, bool best);
  // Waits for the first workers and fixes what depends on them: the model's size, the number of shards.
  absl::StatusOr<DataLayout> AwaitLayout();

  // Repeats `store` while it finds the disk full; the state's detail says so meanwhile. CANCELLED when the run is interrupted.
  absl::Status UntilStored(absl::FunctionRef<absl::Status()> store);
  absl::Status StoreRecord();
  // Sets RUNNING; on an error the state is as it was.
  absl::Status SetRunning();
  // Changes the record with `change`, stores it, and tells the subscribers. The record is changed also when it cannot be stored.
  absl::Status UpdateRecord(const std::function<void(v1::Run&)>& change);
  absl::Status SetState(v1::RunState state, const std::string& detail);
  absl::Status End(const Termination& termination);
  // FAILED_PRECONDITION once Delete has begun.
  absl::Status CheckNotDeleted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mu_);
  // Stores a finished iteration, report and checkpoint, and adds it to the history.
  template <typename Scalar>
  absl::Status File(const OptimizerState<Scalar>& state, const v1::IterationReport& report, bool best);
  // Adds a stored report to the history, and its time to the run's.
  absl::Status Publish(const v1::IterationReport& report, bool best);
  // Whether its held-out loss is the best evidence so far: on more held-out examples than any before, or lower on as many.
  bool IsBest(const v1::IterationReport& report) const;
  void Notify();

  const std::string id_;
  const std::string request_id_;
  const OptimizerOptions options_;
  const RunEnvironment environment_;
  const std::shared_ptr<WorkerPool> pool_;

  absl::Mutex control_mu_;  // serialises Start, Pause, ...; held while a thread is joined
  std::thread thread_ ABSL_GUARDED_BY(control_mu_);
  bool deleting_ ABSL_GUARDED_BY(control_mu_) = false;  // or deleted

  mutable absl::Mutex mu_;
  v1::Run record_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::IterationReport> reports_ ABSL_GUARDED_BY(mu_);
  Intent intent_ ABSL_GUARDED_BY(mu_) = Intent::kNone;
  absl::Status filed_ ABSL_GUARDED_BY(mu_);  // whether the state that the thread left could be stored
  uint64_t state_version_ ABSL_GUARDED_BY(mu_) = 1;

  absl::Mutex subscribers_mu_;  // held while subscribers are called
  std::map<int64_t, std::function<void()>> subscribers_ ABSL_GUARDED_BY(subscribers_mu_);
  int64_t next_subscription_ ABSL_GUARDED_BY(subscribers_mu_) = 1;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_RUN_H_
