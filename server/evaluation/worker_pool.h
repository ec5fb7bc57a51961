#ifndef HFOPT_SERVER_EVALUATION_WORKER_POOL_H_
#define HFOPT_SERVER_EVALUATION_WORKER_POOL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/optimizer_options.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "hfopt/v1/run.pb.h"
#include "server/evaluation/named_vector.h"
#include "server/evaluation/steady_now.h"
#include "server/evaluation/worker_link.h"

namespace hfopt::server {

// The only version of the worker's conversation so far.
inline constexpr uint32_t kProtocolVersion = 1;

// What the workers of a run agree on. Zero and empty: not known yet.
struct ModelDescription {
  int64_t num_parameters = 0;
  int64_t training_examples = 0;
  int64_t held_out_examples = 0;
  std::string signature;
  std::optional<bool> second_moment;  // whether its first worker offers second moments

  friend bool operator==(const ModelDescription&, const ModelDescription&) = default;
};

// The work for one logical shard: a request (its id is filled in by the pool) and the vectors it names.
struct Unit {
  int shard = 0;
  v1::EvaluationRequest request;
  std::vector<NamedVectorPtr> vectors;
};

struct UnitAnswer {
  int shard = 0;
  v1::Answer answer;
  std::map<uint64_t, AnyVector> vectors;  // by transfer
  std::string worker_id;
  uint64_t incarnation = 0;
};

// Where the wall time of evaluations went, in seconds, and what they moved. Totals.
struct PoolAccounting {
  double evaluating = 0;      // in Evaluate, while all shards were served
  double client_compute = 0;  // of the slowest worker of each evaluation
  double reducing = 0;        // in what takes the answers, once all had come
  double waiting = 0;         // for a worker that serves some shard
  int64_t reissued = 0;       // requests sent again because their worker was lost or failed
  int64_t hedged = 0;         // requests asked of a second worker because the first was late
};

// The workers of one run, and who computes what. Shards stay with their worker while it lives (what it computed at a point is worth
// keeping), move off lost workers, and are spread over new ones when Rebalance() is called, by how fast each has been.
//
// A worker that is late with a shard, by the times that others took in the same evaluation, does not hold up the run where another that can serve the
// shard has nothing to do: that one is asked too, the answer that comes first counts, and the shard is then its worker's (Dean and Barroso, The tail
// at scale, CACM 2013, hedged requests).
//
// Sessions call from the threads of their queues (Join, OnAnswer, ...), which never wait; the run's thread calls Evaluate, which does. Thread-safe. Lock
// order: the pool's mutex before a link's, which only guards its queue; a link calls the pool with no lock held.
class WorkerPool {
 public:
  struct Options {
    std::string run_name;  // "runs/an4", for messages
    v1::ElementType element_type = v1::ELEMENT_TYPE_FLOAT32;
    ModelDescription model;  // what the run's record knows of it
    absl::Duration lease = absl::Seconds(10);
    // What workers have to be able to do, and to say in Hello.
    bool bfloat16_products = false;
    DiagonalMode diagonal = DiagonalMode::kNone;
    bool sub_batches = false;
    bool hedging = true;  // idle workers are asked for what others are late with
    // RESOURCE_EXHAUSTED when a run with so many parameters does not fit into the server.
    std::function<absl::Status(int64_t num_parameters)> check_memory = [](int64_t) { return absl::OkStatus(); };
    // Whether workers of this machine, by its name, are offered shared memory; empty: none are.
    std::string host = wire::HostName();
    std::function<absl::Time()> now = SteadyNow;
  };
  explicit WorkerPool(Options options);
  v1::ElementType element_type() const { return options_.element_type; }
  bool bfloat16_products() const { return options_.bfloat16_products; }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // --- Called by sessions.

  // Admits a worker and sends it Welcome and whatever it should release or drop. An older session of the same worker is closed.
  // INVALID_ARGUMENT or FAILED_PRECONDITION when it does not fit the run, with both values; RESOURCE_EXHAUSTED when its model does not fit
  // into the server's memory. Nothing of a vector's size is allocated for a worker before it was admitted.
  absl::Status Join(const v1::Hello& hello, std::shared_ptr<WorkerLink> link);
  // An answer with all its vectors. Unknown ids (late or second answers) are dropped. INVALID_ARGUMENT when it is not an answer to what
  // was asked; the session ends then.
  absl::Status OnAnswer(const WorkerLink* link, v1::Answer answer, std::map<uint64_t, AnyVector> vectors);
  void OnDrain(const WorkerLink* link);
  // The stream broke. The worker keeps its shards until its lease ends.
  void OnDisconnected(const WorkerLink* link);

  // --- Called by the run's thread.

  // What the run's record knows of the model from now on: workers of another one are sent away and refused, also when none of this model is
  // left. What it does not know is fixed by the first worker, and forgotten when the last one has gone.
  void Expect(const ModelDescription& model);

  // Fixes the number of logical shards. Before this, workers join and wait for their Welcome; those with shards that are none are sent away.
  void SetShards(int shards);

  // Waits until a worker is present and, if shards are set, all are served. CANCELLED after Interrupt.
  absl::StatusOr<ModelDescription> AwaitWorkers();

  // Takes the answers in the order of the units, each as soon as it and all before it are there, so that what is done with one overlaps
  // with the computing and moving of the next. An error ends the evaluation.
  using TakeAnswer = absl::FunctionRef<absl::Status(UnitAnswer answer)>;

  // Has every unit computed. Blocks while shards are not served. Units of lost workers are given to others. Errors: CANCELLED after
  // Interrupt; a model's own failure, when no other worker can do better; what `take` returned.
  absl::Status Evaluate(std::vector<Unit> units, TakeAnswer take);

  // Spreads the shards evenly over the workers that can serve them; to be called where moving a shard costs little.
  void Rebalance();

  // Tells every worker that holds them.
  void Release(const std::vector<std::string>& names);

  // --- Called by anyone.

  // Makes waiting calls return `reason`, and later ones too, until Resume().
  void Interrupt(absl::Status reason);
  void Resume();
  // Tells the workers that the run has ended, and closes their sessions. New ones are refused.
  void Finish(const v1::Finished& finished);
  // Closes all sessions, for example because the server drains: the workers dial again.
  void CloseSessions(const absl::Status& status);

  // Where sessions get the memory for vectors that they receive; null before a worker has joined.
  std::shared_ptr<wire::BufferPool> buffers() const;

  // Memory for a vector of n elements that is sent to workers: shared with those of this machine, if there are any.
  template <typename Scalar>
  wire::SharedVector<Scalar> NewVector(int64_t n) const {
    return {NewBlock(n * sizeof(Scalar)), n};
  }

  // "1 of 2 shards served; waiting for shard 1"; empty when nothing is waited for.
  std::string WaitingFor() const;
  // Called from the run's thread, without locks held, when the answer of WaitingFor has changed. Set once, before the first wait.
  void SetWaitingListener(std::function<void()> listener) { waiting_listener_ = std::move(listener); }

  // All that have joined since the server started, also those that have left after an answer.
  std::vector<v1::WorkerStatus> workers() const;
  // Those that are connected and mean to stay.
  int workers_present() const;
  PoolAccounting accounting() const;
  // Re-examines the leases: for clocks that do not wake waiting threads.
  void CheckLeases();

 private:
  struct Worker {
    v1::Hello hello;
    std::shared_ptr<WorkerLink> link;  // null while disconnected
    bool welcomed = false;
    absl::Time welcomed_at = absl::InfinitePast();  // when its lease began, which it did not know before
    bool draining = false;
    std::set<std::string> held;  // names of vectors, sent or stated
    std::set<int> shards;        // that it owns
    uint64_t answers = 0;
    double compute_seconds = 0;
    uint64_t past_bytes_sent = 0, past_bytes_received = 0;  // of earlier links
    absl::Time last_heard;                                  // as of the end of the last link
    bool shared_memory = false;                             // likewise
    absl::Time last_answer = absl::InfinitePast();
    // Its time for a unit over the median of all, averaged over evaluations; 1 when nothing is known.
    double slowness = 1;

    bool CanServe(int shard) const;
    // What `shards` shards cost, in units of what one costs a usual worker. Differences that may be chance are none.
    double Load(size_t shards) const;
  };
  struct Pending {
    const Unit* unit = nullptr;
    size_t index = 0;
    std::map<std::string, absl::Time> asked = {};  // the workers that compute it, and since when; two when the first was late
    std::set<std::string> failed_on = {};
    bool issued_before = false;
  };

  absl::Time LeaseEnd(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsAlive(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int CountPresent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::shared_ptr<void> NewBlock(size_t bytes) const;
  // Sets up shared memory with a worker of this machine and describes it. Empty where there is none.
  std::optional<v1::SharedMemory> ShareMemory(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Worker* FindByLink(const WorkerLink* link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckHello(const v1::Hello& hello) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckShards(const v1::Hello& hello) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckSecondMoment(const v1::Hello& hello) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckModel(const v1::Hello& hello) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes the link from a worker, which is then known as one that has gone.
  std::shared_ptr<WorkerLink> Detach(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends the session of a worker that does not fit the run; its shards go to others at once.
  void SendAway(Worker& worker, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::SessionResponse WelcomeMessage() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WelcomeWorker(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Gives a shard to a worker, or to none: null.
  void Assign(int shard, Worker* owner) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes all shards from a worker.
  void Disown(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The worker for a shard, choosing one if need be; null when nobody can.
  Worker* OwnerOf(int shard, const std::set<std::string>& excluded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Dispatch(uint64_t id, Pending& pending, Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The median of the times that units of the running evaluation took; nothing before half of them have been answered.
  std::optional<absl::Duration> UsualTime() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Since when a worker has been at one of its units: it takes them one after the other.
  absl::Time BeginOf(const Worker& worker, absl::Time asked) const { return std::max(asked, worker.last_answer); }
  // Has idle workers compute what others are late with. Answers when the next one will be late.
  absl::Time HedgeLate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Learns from the evaluation that ends how fast workers are.
  void UpdateSlowness() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // A worker cannot answer: another one is asked, and when there is none left the evaluation fails.
  void Fail(Pending& pending, const std::string& worker_id, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes requests and shards from workers whose lease has ended.
  void DropLostWorkers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Those that have left without an answer: there may be any number, with a new name each.
  void ForgetStrangers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unassign(const std::string& worker_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Waits for a change, the end of a lease, `deadline`, or at most a second.
  void WaitForChange(absl::Time deadline = absl::InfiniteFuture()) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Records what is waited for, and books the time since `since`, which it sets to now.
  void UpdateWaiting(std::string waiting, absl::Time& since) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string DescribeUnserved() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Forgets the running evaluation; workers are told.
  void AbandonEvaluation() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  std::function<void()> waiting_listener_;

  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  absl::Status interrupted_ ABSL_GUARDED_BY(mu_);
  std::optional<v1::Finished> finished_ ABSL_GUARDED_BY(mu_);
  ModelDescription expected_ ABSL_GUARDED_BY(mu_);              // by the run's record
  std::optional<ModelDescription> model_ ABSL_GUARDED_BY(mu_);  // of the workers there are
  std::shared_ptr<wire::BufferPool> buffers_ ABSL_GUARDED_BY(mu_);  // of blocks for num_parameters elements
  std::shared_ptr<wire::SharedSegment> to_workers_ ABSL_GUARDED_BY(mu_);  // once a worker of this machine has joined
  int shards_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, Worker> workers_ ABSL_GUARDED_BY(mu_);  // by id
  std::map<int, Worker*> owners_ ABSL_GUARDED_BY(mu_);          // by shard; null: nobody's. Changed by Assign alone
  std::set<std::string> live_ ABSL_GUARDED_BY(mu_);             // names in use by the run
  uint64_t next_id_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Pending> pending_ ABSL_GUARDED_BY(mu_);
  std::vector<std::optional<UnitAnswer>> answers_ ABSL_GUARDED_BY(mu_);
  // Of the running evaluation, by worker: seconds that it says it computed, and times that its units took.
  std::map<std::string, double> evaluation_seconds_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::vector<absl::Duration>> unit_times_ ABSL_GUARDED_BY(mu_);
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::string waiting_for_ ABSL_GUARDED_BY(mu_);
  PoolAccounting accounting_ ABSL_GUARDED_BY(mu_);
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_WORKER_POOL_H_
