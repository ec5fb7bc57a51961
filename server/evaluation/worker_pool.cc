#include "server/evaluation/worker_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::server {
namespace {

// Lets a mutex go for the length of a scope, also when that is left by an exception.
class Unlocked {
 public:
  explicit Unlocked(absl::Mutex& mu) : mu_(mu) { mu_.Unlock(); }
  ~Unlocked() { mu_.Lock(); }

 private:
  absl::Mutex& mu_;
};

// A worker is late with a unit when it takes this many times what is usual, and not before kLeastLateness: a request costs something, too.
constexpr double kLate = 3;
constexpr absl::Duration kLeastLateness = absl::Milliseconds(20);
// What is chance among workers of one speed, and what is not; how much an evaluation counts; and how fast is forgotten that a worker without shards
// was slow, so that it is tried again.
constexpr double kChance = 1.5;
constexpr double kNewEvaluation = 0.3;
constexpr double kForgetting = 0.05;

// More than any machine can hold; guards arithmetic.
constexpr uint64_t kMaxParameters = uint64_t{1} << 40;

bool Contains(const auto& repeated, const auto& value) {
  return std::find(repeated.begin(), repeated.end(), value) != repeated.end();
}

// Of what workers say and people are told: more has no use, and would make every answer that shows it large.
constexpr size_t kMostSignatureBytes = 4000, kMostFailureBytes = 2000, kMostMetricBytes = 100;
constexpr int kMostMetrics = 100;

absl::string_view View(const std::string& s) { return s; }

// Whether `answer` is of the kind that was asked and carries what it must.
absl::Status CheckAnswer(const v1::EvaluationRequest& request, const v1::Answer& answer,
                         const std::map<uint64_t, AnyVector>& vectors) {
  const auto check = [&](absl::string_view what, bool right_kind, double weight, int64_t parts, int64_t wanted,
                         std::initializer_list<uint64_t> transfers) -> absl::Status {
    if (!right_kind) {
      return absl::InvalidArgumentError(absl::StrCat("answer to request ", request.id(), " is not of kind ", what));
    }
    if (!(weight > 0) || !std::isfinite(weight)) {
      return absl::InvalidArgumentError(absl::StrCat(what, " answer to request ", request.id(), " has weight ", weight,
                                                     "; it must be positive: the number of examples or frames"));
    }
    if (parts != wanted) {
      return absl::InvalidArgumentError(absl::StrCat(what, " answer to request ", request.id(), " has ", parts,
                                                     " values where ", wanted, " were asked for"));
    }
    for (const uint64_t transfer : transfers) {
      if (!vectors.contains(transfer)) {
        return absl::InvalidArgumentError(absl::StrCat(what, " answer to request ", request.id(), " names transfer ",
                                                       transfer, ", which was not received before it"));
      }
    }
    return absl::OkStatus();
  };
  switch (request.kind_case()) {
    case v1::EvaluationRequest::kLosses: {
      const v1::LossesAnswer& a = answer.losses();
      const int64_t wanted = request.losses().points_size();
      if (a.metrics_size() > kMostMetrics) {
        return absl::InvalidArgumentError(absl::StrCat("an answer has ", a.metrics_size(), " metrics; allowed: up to ", kMostMetrics));
      }
      for (const v1::MetricSums& metric : a.metrics()) {
        if (metric.name().size() > kMostMetricBytes) {
          return absl::InvalidArgumentError(absl::StrCat("a metric's name has ", metric.name().size(), " bytes; allowed: up to ", kMostMetricBytes));
        }
        if (metric.sums_size() != wanted) {
          return absl::InvalidArgumentError(absl::StrCat("metric ", metric.name(), " has ", metric.sums_size(),
                                                         " values where ", wanted, " were asked for"));
        }
      }
      return check("losses", answer.has_losses(), a.weight(), a.loss_sums_size(), wanted, {});
    }
    case v1::EvaluationRequest::kGradient: {
      const v1::GradientAnswer& a = answer.gradient();
      if (answer.has_gradient() && request.gradient().second_moment() && !a.has_second_moment_transfer()) {
        return absl::InvalidArgumentError("gradient answer lacks the second moment that was asked for");
      }
      return check("gradient", answer.has_gradient(), a.weight(), a.sub_batches_size(),
                   request.gradient().sub_batches(),
                   {a.gradient_transfer(), a.has_second_moment_transfer() ? a.second_moment_transfer()
                                                                          : a.gradient_transfer()});
    }
    case v1::EvaluationRequest::kProduct:
      return check("product", answer.has_product(), answer.product().weight(), 0, 0,
                   {answer.product().product_transfer()});
    case v1::EvaluationRequest::kInitialParameters:
      return check("initial parameters", answer.has_initial_parameters(), 1, 0, 0,
                   {answer.initial_parameters().parameters_transfer()});
    case v1::EvaluationRequest::KIND_NOT_SET:
      break;
  }
  return absl::InternalError("a request without a kind was sent");
}

// The model of the first worker of a run whose record knows `expected` of it, which the worker fits.
ModelDescription Describe(const v1::Hello& hello, const ModelDescription& expected) {
  return {.num_parameters = static_cast<int64_t>(hello.num_parameters()),
          .training_examples = static_cast<int64_t>(hello.training_examples()),
          .held_out_examples = static_cast<int64_t>(hello.held_out_examples()),
          .signature = expected.signature.empty() ? hello.model_signature() : expected.signature,
          .second_moment = expected.second_moment.value_or(hello.second_moment())};
}

v1::SessionResponse CancelMessage(uint64_t id) {
  v1::SessionResponse message;
  message.mutable_cancel()->set_request_id(id);
  return message;
}

}  // namespace

// Ids go on growing over restarts of the server, because a worker may still hold requests of the process before.
WorkerPool::WorkerPool(Options options) : options_(std::move(options)) {
  absl::MutexLock lock(&mu_);
  expected_ = options_.model;
  next_id_ = static_cast<uint64_t>(absl::ToUnixNanos(options_.now()));
}

bool WorkerPool::Worker::CanServe(int shard) const {
  return hello.shards().empty() || Contains(hello.shards(), static_cast<uint32_t>(shard));
}

double WorkerPool::Worker::Load(size_t shards) const { return static_cast<double>(shards) * (slowness < kChance ? 1 : slowness); }

absl::Time WorkerPool::LeaseEnd(const Worker& worker) const {
  // Before its Welcome a worker does not know its lease.
  if (worker.link != nullptr && !worker.welcomed) return absl::InfiniteFuture();
  return (worker.link != nullptr ? std::max(worker.welcomed_at, worker.link->last_heard()) : worker.last_heard) + options_.lease;
}

bool WorkerPool::IsAlive(const Worker& worker) const { return LeaseEnd(worker) > options_.now(); }

WorkerPool::Worker* WorkerPool::FindByLink(const WorkerLink* link) {
  for (auto& [id, worker] : workers_) {
    if (worker.link.get() == link) return &worker;
  }
  return nullptr;
}

absl::Status WorkerPool::CheckHello(const v1::Hello& hello) const {
  const auto refuse = [&](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat(options_.run_name, ": worker ", hello.worker_id(), ": ", what...));
  };
  if (hello.num_parameters() == 0) return refuse("num_parameters is 0");
  if (hello.num_parameters() > kMaxParameters) {
    return refuse("num_parameters is ", hello.num_parameters(), "; allowed: 1 to 2^40");
  }
  if (hello.training_examples() == 0) return refuse("training_examples is 0");
  if (hello.held_out_examples() == 0) return refuse("held_out_examples is 0");
  if (hello.model_signature().size() > kMostSignatureBytes) {
    return refuse("model_signature has ", hello.model_signature().size(), " bytes; allowed: up to ", kMostSignatureBytes, ". A digest will do");
  }
  if (!Contains(hello.element_types(), options_.element_type)) {
    return refuse("cannot compute in ", wire::ElementTypeName(options_.element_type), ", the element type of this run");
  }
  if (options_.bfloat16_products && !hello.bfloat16()) {
    return refuse("does not know bfloat16, in which this run has its products; use a worker that has it (Hello.bfloat16), or create the run without "
                  "bfloat16_products");
  }
  HFOPT_RETURN_IF_ERROR(CheckSecondMoment(hello));
  if (options_.sub_batches && !hello.sub_batches()) {
    return refuse("has no sub-batches, by which this run measures the noise of its gradient; use a worker that has them (Hello.sub_batches), or "
                  "create the run with samples.growth=damping or geometric and conjugate_gradient.noise_factor=0");
  }
  if (const absl::Status fits = options_.check_memory(static_cast<int64_t>(hello.num_parameters())); !fits.ok()) {
    return absl::Status(fits.code(),
                        absl::StrCat(options_.run_name, ": worker ", hello.worker_id(), ": ", fits.message()));
  }
  HFOPT_RETURN_IF_ERROR(CheckModel(hello));
  HFOPT_RETURN_IF_ERROR(CheckShards(hello));
  const auto known = workers_.find(hello.worker_id());
  // One that has gone for good may come back with a clock that is behind.
  if (known != workers_.end() && hello.incarnation() < known->second.hello.incarnation() && IsAlive(known->second)) {
    return absl::FailedPreconditionError(absl::StrCat(
        options_.run_name, ": worker ", hello.worker_id(), ": incarnation ", hello.incarnation(),
        " is older than ", known->second.hello.incarnation(),
        ", which has joined; two processes use this worker id: give each its own"));
  }
  return absl::OkStatus();
}

absl::Status WorkerPool::CheckShards(const v1::Hello& hello) const {
  if (shards_ == 0) return absl::OkStatus();  // checked once they are fixed
  for (const uint32_t shard : hello.shards()) {
    if (shard < static_cast<uint32_t>(shards_)) continue;
    return absl::InvalidArgumentError(absl::StrCat(options_.run_name, ": worker ", hello.worker_id(), ": has shard ",
                                                   shard, ", but this run has ", shards_, " shards: 0 to ",
                                                   shards_ - 1));
  }
  return absl::OkStatus();
}

absl::Status WorkerPool::CheckModel(const v1::Hello& hello) const {
  const ModelDescription& m = model_.has_value() ? *model_ : expected_;
  const auto differs = [&](absl::string_view field, auto theirs, auto ours) {
    return absl::InvalidArgumentError(
        absl::StrCat(options_.run_name, ": worker ", hello.worker_id(), ": ", field, " is ", theirs,
                     ", but the model of this run has ", ours,
                     "; start the worker with this run's model and data, or create a run of its own for it"));
  };
  const auto is_other = [](uint64_t theirs, int64_t ours) { return ours != 0 && theirs != static_cast<uint64_t>(ours); };
  if (is_other(hello.num_parameters(), m.num_parameters)) {
    return differs("num_parameters", hello.num_parameters(), m.num_parameters);
  }
  if (is_other(hello.training_examples(), m.training_examples)) {
    return differs("training_examples", hello.training_examples(), m.training_examples);
  }
  if (is_other(hello.held_out_examples(), m.held_out_examples)) {
    return differs("held_out_examples", hello.held_out_examples(), m.held_out_examples);
  }
  if (!hello.model_signature().empty() && !m.signature.empty() && hello.model_signature() != m.signature) {
    return differs("model_signature", View(hello.model_signature()), View(m.signature));
  }
  return absl::OkStatus();
}

absl::Status WorkerPool::CheckSecondMoment(const v1::Hello& hello) const {
  const ModelDescription& m = model_.has_value() ? *model_ : expected_;
  if (hello.second_moment() || !UsesSecondMoment(options_.diagonal, m.second_moment.value_or(false))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      options_.run_name, ": worker ", hello.worker_id(), ": has no second moments, which this run's preconditioner.diagonal needs",
      options_.diagonal == DiagonalMode::kSquaredGradientsIfOffered ? ", because its first worker had them" : "",
      "; use a worker that has them (Hello.second_moment), or create the run with preconditioner.diagonal=none"));
}

void WorkerPool::Expect(const ModelDescription& model) {
  absl::MutexLock lock(&mu_);
  expected_ = model;
  model_.reset();
  for (auto& [id, worker] : workers_) {
    if (worker.link == nullptr) continue;
    absl::Status fits = CheckModel(worker.hello);
    if (fits.ok()) fits = CheckSecondMoment(worker.hello);
    if (!fits.ok()) {
      SendAway(worker, fits);
    } else if (!model_.has_value()) {
      model_ = Describe(worker.hello, expected_);
    }
  }
  changed_.SignalAll();
}

std::shared_ptr<WorkerLink> WorkerPool::Detach(Worker& worker) {
  worker.last_heard = std::max(worker.welcomed_at, worker.link->last_heard());
  worker.past_bytes_sent += worker.link->bytes_sent();
  worker.past_bytes_received += worker.link->bytes_received();
  worker.shared_memory = worker.link->shared_memory();
  worker.held.clear();
  return std::exchange(worker.link, nullptr);
}

void WorkerPool::SendAway(Worker& worker, const absl::Status& why) {
  Detach(worker)->Close(why);
  worker.last_heard = absl::InfinitePast();
  Unassign(worker.hello.worker_id());
}

absl::Status WorkerPool::Join(const v1::Hello& hello, std::shared_ptr<WorkerLink> link) {
  absl::MutexLock lock(&mu_);
  if (finished_.has_value()) {
    link->Send(WelcomeMessage());
    v1::SessionResponse message;
    *message.mutable_finished() = *finished_;
    link->Send(std::move(message));
    link->Close(absl::OkStatus());
    return absl::OkStatus();
  }
  HFOPT_RETURN_IF_ERROR(CheckHello(hello));
  if (!model_.has_value()) {
    model_ = Describe(hello, expected_);
    const size_t element_size = options_.element_type == v1::ELEMENT_TYPE_FLOAT64 ? sizeof(double) : sizeof(float);
    buffers_ = std::make_shared<wire::BufferPool>(model_->num_parameters * element_size);
    to_workers_ = nullptr;
  }
  ForgetStrangers();
  Worker& worker = workers_[hello.worker_id()];
  if (worker.link != nullptr) {
    Detach(worker)->Close(absl::FailedPreconditionError(
        absl::StrCat("replaced by a newer session of worker ", hello.worker_id())));
  }
  worker.hello = hello;
  worker.link = std::move(link);
  worker.draining = false;
  worker.welcomed = false;

  // Reconcile: what it holds and computes decides what is sent again.
  worker.held = {hello.held_vectors().begin(), hello.held_vectors().end()};
  for (auto& [id, pending] : pending_) {
    if (!Contains(hello.pending_requests(), id)) pending.asked.erase(hello.worker_id());
  }
  if (shards_ > 0) WelcomeWorker(worker);
  changed_.SignalAll();
  return absl::OkStatus();
}

v1::SessionResponse WorkerPool::WelcomeMessage() const {
  v1::SessionResponse message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_protocol_version(kProtocolVersion);
  welcome.set_element_type(options_.element_type);
  welcome.set_shards(std::max(shards_, 1));
  welcome.set_lease_seconds(absl::ToDoubleSeconds(options_.lease));
  return message;
}

std::optional<v1::SharedMemory> WorkerPool::ShareMemory(Worker& worker) {
  if (options_.host.empty() || worker.hello.host() != options_.host) return std::nullopt;
  // Slots cost nothing before they are used. To workers: theta, the directions kept, and what comes before the old ones have gone. To the
  // server: an answer of each shard, two with the second moment, and what waits to be sent.
  constexpr uint32_t kSlotsToWorkers = 8;
  const uint32_t slots_to_server = static_cast<uint32_t>(std::min(2 * shards_ + 2, 500));
  using wire::SharedSegment;
  if (to_workers_ == nullptr) {
    auto segment = SharedSegment::Create(buffers_->bytes(), kSlotsToWorkers, SharedSegment::Peer::kReads);
    if (!segment.ok()) return std::nullopt;
    to_workers_ = *std::move(segment);
  }
  auto to_server = SharedSegment::Create(buffers_->bytes(), slots_to_server, SharedSegment::Peer::kWrites);
  if (!to_server.ok()) return std::nullopt;
  v1::SharedMemory memory;
  *memory.mutable_to_worker() = to_workers_->Describe();
  *memory.mutable_to_server() = (*to_server)->Describe();
  worker.link->UseSharedMemory(to_workers_, *std::move(to_server));
  return memory;
}

void WorkerPool::WelcomeWorker(Worker& worker) {
  worker.welcomed = true;
  worker.welcomed_at = options_.now();
  v1::SessionResponse welcome = WelcomeMessage();
  if (auto memory = ShareMemory(worker)) *welcome.mutable_welcome()->mutable_shared_memory() = *std::move(memory);
  worker.link->Send(std::move(welcome));

  v1::SessionResponse release;
  for (auto name = worker.held.begin(); name != worker.held.end();) {
    if (live_.contains(*name)) {
      ++name;
    } else {
      release.mutable_release()->add_vectors(*name);
      name = worker.held.erase(name);
    }
  }
  if (release.has_release()) worker.link->Send(std::move(release));
  for (const uint64_t id : worker.hello.pending_requests()) {
    const auto pending = pending_.find(id);
    if (pending == pending_.end() || !pending->second.asked.contains(worker.hello.worker_id())) {
      worker.link->Send(CancelMessage(id));
    }
  }
}

void WorkerPool::SetShards(int shards) {
  absl::MutexLock lock(&mu_);
  shards_ = shards;
  for (auto& [id, worker] : workers_) {
    if (worker.link == nullptr) continue;
    if (const absl::Status fits = CheckShards(worker.hello); !fits.ok()) {
      SendAway(worker, fits);
    } else if (!worker.welcomed) {
      WelcomeWorker(worker);
    }
  }
  changed_.SignalAll();
}

absl::Status WorkerPool::OnAnswer(const WorkerLink* link, v1::Answer answer, std::map<uint64_t, AnyVector> vectors) {
  absl::MutexLock lock(&mu_);
  Worker* const worker = FindByLink(link);
  if (worker == nullptr) return absl::OkStatus();  // of a session that was replaced
  const auto it = pending_.find(answer.request_id());
  if (it == pending_.end()) return absl::OkStatus();
  Pending& pending = it->second;
  const std::string& worker_id = worker->hello.worker_id();
  const auto asked = pending.asked.find(worker_id);
  if (asked == pending.asked.end()) return absl::OkStatus();

  v1::EvaluationRequest request = pending.unit->request;
  request.set_id(answer.request_id());
  if (answer.has_failure()) {
    const auto code = static_cast<absl::StatusCode>(answer.failure().code());
    Fail(pending, worker_id, absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                               absl::StrCat("could not answer: ", wire::Shortened(answer.failure().message(), kMostFailureBytes))));
    return absl::OkStatus();
  }
  if (absl::Status status = CheckAnswer(request, answer, vectors); !status.ok()) {
    Fail(pending, worker_id, status);
    return status;
  }
  const absl::Time now = options_.now();
  unit_times_[worker_id].push_back(now - BeginOf(*worker, asked->second));
  worker->last_answer = now;
  for (const auto& [other, since] : pending.asked) {
    if (other == worker_id) continue;
    // It was late, or asked because the other was: the race is over.
    Worker& loser = workers_.at(other);
    unit_times_[other].push_back(now - BeginOf(loser, since));
    if (loser.link != nullptr) loser.link->Send(CancelMessage(it->first));
    Assign(pending.unit->shard, worker);
  }
  ++worker->answers;
  worker->compute_seconds += answer.compute_seconds();
  evaluation_seconds_[worker_id] += answer.compute_seconds();
  answers_[pending.index] = UnitAnswer{pending.unit->shard, std::move(answer), std::move(vectors), worker_id, worker->hello.incarnation()};
  pending_.erase(it);
  changed_.SignalAll();
  return absl::OkStatus();
}

void WorkerPool::Fail(Pending& pending, const std::string& worker_id, const absl::Status& why) {
  const int shard = pending.unit->shard;
  pending.asked.erase(worker_id);
  pending.failed_on.insert(worker_id);
  Assign(shard, nullptr);
  if (pending.asked.empty() && OwnerOf(shard, pending.failed_on) == nullptr) {
    failure_ = absl::Status(
        why.code(), absl::StrCat(options_.run_name, ": shard ", shard, ": worker ", worker_id, ": ", why.message()));
  }
  changed_.SignalAll();
}

void WorkerPool::OnDrain(const WorkerLink* link) {
  absl::MutexLock lock(&mu_);
  Worker* const worker = FindByLink(link);
  if (worker == nullptr) return;
  worker->draining = true;
  Disown(*worker);
  changed_.SignalAll();
}

void WorkerPool::OnDisconnected(const WorkerLink* link) {
  absl::MutexLock lock(&mu_);
  Worker* const worker = FindByLink(link);
  if (worker == nullptr) return;
  Detach(*worker);
  // One that said goodbye is not waited for.
  if (worker->draining) {
    worker->last_heard = absl::InfinitePast();
    Unassign(worker->hello.worker_id());
  }
  if (std::none_of(workers_.begin(), workers_.end(), [](const auto& w) { return w.second.link != nullptr; })) {
    model_.reset();
  }
  changed_.SignalAll();
}

void WorkerPool::Assign(int shard, Worker* owner) {
  Worker*& current = owners_[shard];
  if (current != nullptr) current->shards.erase(shard);
  current = owner;
  if (owner != nullptr) owner->shards.insert(shard);
}

void WorkerPool::Disown(Worker& worker) {
  while (!worker.shards.empty()) Assign(*worker.shards.begin(), nullptr);
}

WorkerPool::Worker* WorkerPool::OwnerOf(int shard, const std::set<std::string>& excluded) {
  const auto usable = [&](const std::string& id, const Worker& worker) {
    return IsAlive(worker) && !worker.draining && worker.CanServe(shard) && !excluded.contains(id);
  };
  if (const auto owner = owners_.find(shard); owner != owners_.end() && owner->second != nullptr) {
    if (usable(owner->second->hello.worker_id(), *owner->second)) return owner->second;
  }
  // The connected worker that would have done first; the first by id among equals.
  Worker* best = nullptr;
  double best_load = 0;
  for (auto& [id, worker] : workers_) {
    if (worker.link == nullptr || !usable(id, worker)) continue;
    const double load = worker.Load(1 + worker.shards.size());
    if (best == nullptr || load < best_load) {
      best = &worker;
      best_load = load;
    }
  }
  if (best != nullptr) Assign(shard, best);
  return best;
}

void WorkerPool::Rebalance() {
  absl::MutexLock lock(&mu_);
  std::vector<Worker*> workers;
  for (auto& [id, worker] : workers_) {
    if (worker.shards.empty()) worker.slowness += kForgetting * (1 - worker.slowness);
    if (worker.link != nullptr && IsAlive(worker) && !worker.draining) workers.push_back(&worker);
  }
  // The busiest worker gives a shard to the one that has done first with it, if that is before the busiest would have, until no shard moves. A worker
  // of whose shards none can go there lets the next busiest give.
  const auto load = [](const Worker* worker) { return worker->Load(worker->shards.size()); };
  const auto load_with_one_more = [](const Worker* worker) { return worker->Load(worker->shards.size() + 1); };
  for (bool moved = true; moved;) {
    moved = false;
    std::stable_sort(workers.begin(), workers.end(), [&](const Worker* a, const Worker* b) { return load(a) > load(b); });
    double least = std::numeric_limits<double>::infinity();
    for (const Worker* worker : workers) least = std::min(least, load_with_one_more(worker));
    for (Worker* const from : workers) {
      if (moved || least >= load(from)) break;
      Worker* best = nullptr;
      int best_shard = 0;
      for (Worker* const to : workers) {
        if (to == from || load_with_one_more(to) >= (best != nullptr ? load_with_one_more(best) : load(from))) continue;
        const auto shard = std::find_if(from->shards.begin(), from->shards.end(), [&](int shard) { return to->CanServe(shard); });
        if (shard == from->shards.end()) continue;
        best = to;
        best_shard = *shard;
      }
      if (best == nullptr) continue;
      Assign(best_shard, best);
      moved = true;
    }
  }
}

void WorkerPool::Dispatch(uint64_t id, Pending& pending, Worker& worker) {
  const absl::Time now = options_.now();
  for (const NamedVectorPtr& vector : pending.unit->vectors) {
    if (worker.held.insert(vector->name).second) worker.link->SendVector(vector);
  }
  v1::SessionResponse message;
  *message.mutable_evaluation() = pending.unit->request;
  message.mutable_evaluation()->set_id(id);
  worker.link->Send(std::move(message));
  HFOPT_FAILPOINT("evaluation.dispatch");
  if (!pending.asked.empty()) {
    ++accounting_.hedged;
  } else if (pending.issued_before) {
    ++accounting_.reissued;
  }
  pending.asked[worker.hello.worker_id()] = now;
  pending.issued_before = true;
}

std::optional<absl::Duration> WorkerPool::UsualTime() const {
  std::vector<absl::Duration> times;
  for (const auto& [id, of_worker] : unit_times_) times.insert(times.end(), of_worker.begin(), of_worker.end());
  if (times.empty() || 2 * times.size() < answers_.size()) return std::nullopt;
  const auto middle = times.begin() + (times.size() - 1) / 2;  // of two speeds alike, the faster one is what is possible
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

absl::Time WorkerPool::HedgeLate() {
  const std::optional<absl::Duration> usual = UsualTime();
  if (!options_.hedging || !usual.has_value()) return absl::InfiniteFuture();
  const absl::Duration allowed = std::max(kLate * *usual, kLeastLateness);
  std::set<std::string> busy;
  for (const auto& [id, pending] : pending_) {
    for (const auto& [worker_id, since] : pending.asked) busy.insert(worker_id);
  }
  const absl::Time now = options_.now();
  absl::Time next = absl::InfiniteFuture();
  // What a late worker would come to last is what another may well have done first.
  for (auto it = pending_.rbegin(); it != pending_.rend(); ++it) {
    auto& [id, pending] = *it;
    if (pending.asked.size() != 1) continue;
    const auto& [late_id, since] = *pending.asked.begin();
    const absl::Time late = BeginOf(workers_.at(late_id), since) + allowed;
    if (late > now) {
      next = std::min(next, late);
      continue;
    }
    Worker* helper = nullptr;  // that would have done first with the shard as its own, which it will be if it wins
    double least = 0;
    for (auto& [idle_id, idle] : workers_) {
      const bool can_help = idle.link != nullptr && idle.welcomed && !idle.draining && IsAlive(idle) && !busy.contains(idle_id) &&
                            idle.CanServe(pending.unit->shard) && !pending.failed_on.contains(idle_id) && idle.slowness < kLate;
      const double load = idle.Load(1 + idle.shards.size());
      if (!can_help || (helper != nullptr && load >= least)) continue;
      helper = &idle;
      least = load;
    }
    if (helper == nullptr) continue;
    Dispatch(id, pending, *helper);
    busy.insert(helper->hello.worker_id());
  }
  return next;
}

void WorkerPool::UpdateSlowness() {
  const std::optional<absl::Duration> usual = UsualTime();
  if (!usual.has_value() || *usual <= absl::ZeroDuration() || unit_times_.size() < 2) return;
  for (const auto& [id, times] : unit_times_) {
    const auto worker = workers_.find(id);
    if (worker == workers_.end()) continue;  // was late, left without an answer, and has been forgotten
    absl::Duration sum;
    for (const absl::Duration time : times) sum += time;
    const double ratio = absl::FDivDuration(sum / static_cast<int64_t>(times.size()), *usual);
    double& slowness = worker->second.slowness;
    // One that was late is known at once; the rest is averaged.
    slowness = ratio >= kLate ? std::max(slowness, ratio) : slowness + kNewEvaluation * (ratio - slowness);
  }
}

void WorkerPool::Unassign(const std::string& worker_id) {
  Disown(workers_.at(worker_id));
  for (auto& [id, pending] : pending_) {
    pending.asked.erase(worker_id);
  }
}

void WorkerPool::DropLostWorkers() {
  for (auto& [id, worker] : workers_) {
    if (IsAlive(worker)) continue;
    if (worker.link != nullptr) {
      Detach(worker)->Close(absl::DeadlineExceededError(
          absl::StrCat("worker ", id, " was silent for more than its lease of ", absl::FormatDuration(options_.lease))));
    }
    Unassign(id);
  }
}

void WorkerPool::ForgetStrangers() {
  std::erase_if(workers_, [this](const auto& entry) {
    const auto& [id, worker] = entry;
    if (worker.link != nullptr || worker.answers > 0 || IsAlive(worker)) return false;
    Unassign(id);
    return true;
  });
}

std::string WorkerPool::DescribeUnserved() {
  if (shards_ == 0) return CountPresent() > 0 ? "" : "no worker has joined yet";
  std::vector<int> unserved;
  for (int shard = 0; shard < shards_; ++shard) {
    const Worker* const owner = OwnerOf(shard, {});
    if (owner == nullptr || owner->link == nullptr) unserved.push_back(shard);
  }
  if (unserved.empty()) return "";
  constexpr size_t kMostNamed = 10;
  const size_t named = std::min(unserved.size(), kMostNamed);
  return absl::StrCat(shards_ - unserved.size(), " of ", shards_, " shards served; waiting for a worker with shard ",
                      absl::StrJoin(unserved.begin(), unserved.begin() + named, ", "),
                      unserved.size() > named ? ", ..." : "");
}

void WorkerPool::UpdateWaiting(std::string waiting, absl::Time& since) {
  const absl::Time now = options_.now();
  (waiting_for_.empty() ? accounting_.evaluating : accounting_.waiting) += absl::ToDoubleSeconds(now - since);
  since = now;
  if (waiting == waiting_for_) return;
  waiting_for_ = std::move(waiting);
  if (!waiting_listener_) return;
  mu_.Unlock();
  waiting_listener_();
  mu_.Lock();
}

void WorkerPool::WaitForChange(absl::Time deadline) {
  absl::Duration timeout = std::min(absl::Seconds(1), deadline - options_.now());
  for (const auto& [id, worker] : workers_) {
    const absl::Duration left = LeaseEnd(worker) - options_.now();
    if (left > absl::ZeroDuration()) timeout = std::min(timeout, left);
  }
  changed_.WaitWithTimeout(&mu_, std::max(timeout, absl::Milliseconds(1)));
}

absl::StatusOr<ModelDescription> WorkerPool::AwaitWorkers() {
  absl::MutexLock lock(&mu_);
  absl::Time since = options_.now();
  while (true) {
    if (!interrupted_.ok()) return interrupted_;
    DropLostWorkers();
    UpdateWaiting(DescribeUnserved(), since);
    if (!interrupted_.ok()) return interrupted_;
    // The listener was told without the lock: the last worker may have gone meanwhile.
    if (waiting_for_.empty() && model_.has_value()) return *model_;
    WaitForChange();
  }
}

absl::Status WorkerPool::Evaluate(std::vector<Unit> units, TakeAnswer take) {
  absl::MutexLock lock(&mu_);
  // However this ends, also by an exception, no request stays that points to `units`.
  const absl::Cleanup forget = [this] { AbandonEvaluation(); };
  failure_ = absl::OkStatus();
  evaluation_seconds_.clear();
  unit_times_.clear();
  answers_.assign(units.size(), std::nullopt);
  for (size_t i = 0; i < units.size(); ++i) {
    for (const NamedVectorPtr& vector : units[i].vectors) live_.insert(vector->name);
    pending_[next_id_++] = {.unit = &units[i], .index = i};
  }
  absl::Time since = options_.now();
  size_t taken = 0;
  while (true) {
    DropLostWorkers();
    for (auto& [id, pending] : pending_) {
      if (!pending.asked.empty()) continue;
      Worker* const owner = OwnerOf(pending.unit->shard, pending.failed_on);
      if (owner != nullptr && owner->link != nullptr && owner->welcomed) Dispatch(id, pending, *owner);
    }
    UpdateWaiting(pending_.empty() ? "" : DescribeUnserved(), since);
    if (!interrupted_.ok()) return interrupted_;
    if (!failure_.ok()) return failure_;
    if (taken == units.size()) break;
    if (!answers_[taken].has_value()) {
      WaitForChange(HedgeLate());
      continue;
    }
    UnitAnswer answer = *std::exchange(answers_[taken], std::nullopt);
    const bool all_have_answered = pending_.empty();
    const absl::Time begin = options_.now();
    {
      const Unlocked unlocked(mu_);
      HFOPT_RETURN_IF_ERROR(take(std::move(answer)));
    }
    if (all_have_answered) accounting_.reducing += absl::ToDoubleSeconds(options_.now() - begin);
    ++taken;
  }
  UpdateSlowness();
  double slowest = 0;
  for (const auto& [id, seconds] : evaluation_seconds_) slowest = std::max(slowest, seconds);
  accounting_.client_compute += slowest;
  return absl::OkStatus();
}

void WorkerPool::AbandonEvaluation() {
  for (const auto& [id, pending] : pending_) {
    for (const auto& [worker_id, since] : pending.asked) {
      Worker& worker = workers_.at(worker_id);
      if (worker.link != nullptr) worker.link->Send(CancelMessage(id));
    }
  }
  pending_.clear();
  answers_.clear();
}

void WorkerPool::Release(const std::vector<std::string>& names) {
  absl::MutexLock lock(&mu_);
  for (const std::string& name : names) live_.erase(name);
  for (auto& [id, worker] : workers_) {
    v1::SessionResponse message;
    for (const std::string& name : names) {
      if (worker.held.erase(name) > 0) message.mutable_release()->add_vectors(name);
    }
    if (message.has_release() && worker.link != nullptr) worker.link->Send(std::move(message));
  }
}

void WorkerPool::Interrupt(absl::Status reason) {
  absl::MutexLock lock(&mu_);
  interrupted_ = std::move(reason);
  changed_.SignalAll();
}

void WorkerPool::Resume() {
  absl::MutexLock lock(&mu_);
  interrupted_ = absl::OkStatus();
}

void WorkerPool::Finish(const v1::Finished& finished) {
  absl::MutexLock lock(&mu_);
  finished_ = finished;
  for (auto& [id, worker] : workers_) {
    if (worker.link == nullptr) continue;
    v1::SessionResponse message;
    *message.mutable_finished() = finished;
    worker.link->Send(std::move(message));
    worker.link->Close(absl::OkStatus());
  }
}

void WorkerPool::CloseSessions(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  for (auto& [id, worker] : workers_) {
    if (worker.link != nullptr) worker.link->Close(status);
  }
}

std::shared_ptr<void> WorkerPool::NewBlock(size_t bytes) const {
  absl::MutexLock lock(&mu_);
  if (buffers_ == nullptr || buffers_->bytes() != bytes) return wire::BufferPool(bytes, 0).Get();
  std::shared_ptr<void> slot = to_workers_ != nullptr ? to_workers_->Acquire() : nullptr;
  return slot != nullptr ? slot : buffers_->Get();
}

std::shared_ptr<wire::BufferPool> WorkerPool::buffers() const {
  absl::MutexLock lock(&mu_);
  return buffers_;
}

std::string WorkerPool::WaitingFor() const {
  absl::MutexLock lock(&mu_);
  return waiting_for_;
}

std::vector<v1::WorkerStatus> WorkerPool::workers() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::WorkerStatus> statuses;
  for (const auto& [id, worker] : workers_) {
    v1::WorkerStatus status;
    status.set_worker_id(id);
    status.set_connected(worker.link != nullptr);
    status.mutable_shards()->Assign(worker.shards.begin(), worker.shards.end());
    status.set_answers(worker.answers);
    status.set_compute_seconds(worker.compute_seconds);
    status.set_shared_memory(worker.link != nullptr ? worker.link->shared_memory() : worker.shared_memory);
    status.set_bytes_sent(worker.past_bytes_sent + (worker.link ? worker.link->bytes_sent() : 0));
    status.set_bytes_received(worker.past_bytes_received + (worker.link ? worker.link->bytes_received() : 0));
    statuses.push_back(std::move(status));
  }
  return statuses;
}

int WorkerPool::CountPresent() const {
  return static_cast<int>(std::count_if(workers_.begin(), workers_.end(), [](const auto& entry) {
    return entry.second.link != nullptr && !entry.second.draining;
  }));
}

int WorkerPool::workers_present() const {
  absl::MutexLock lock(&mu_);
  return CountPresent();
}

PoolAccounting WorkerPool::accounting() const {
  absl::MutexLock lock(&mu_);
  return accounting_;
}

void WorkerPool::CheckLeases() {
  absl::MutexLock lock(&mu_);
  changed_.SignalAll();
}

}  // namespace hfopt::server
