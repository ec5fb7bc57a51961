#include "server/run/run.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/hessian_free.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/vector_codec.h"
#include "server/convert/checkpoint.h"
#include "server/convert/options.h"
#include "server/convert/report.h"
#include "server/evaluation/out_of_memory.h"
#include "server/run/journal.h"
#include "server/run/memory.h"

namespace hfopt::server {
namespace {

void ToProto(absl::Time time, google::protobuf::Timestamp* proto) {
  const int64_t nanos = absl::ToUnixNanos(time);
  proto->set_seconds(nanos / 1'000'000'000);
  proto->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

void Add(const v1::PhaseSeconds& summand, v1::PhaseSeconds& sum) {
  sum.set_total(sum.total() + summand.total());
  sum.set_client_compute(sum.client_compute() + summand.client_compute());
  sum.set_transport(sum.transport() + summand.transport());
  sum.set_reduction(sum.reduction() + summand.reduction());
  sum.set_server_arithmetic(sum.server_arithmetic() + summand.server_arithmetic());
  sum.set_waiting(sum.waiting() + summand.waiting());
}

// The phases of `total` seconds in which the pool's accounting went from `before` to `after`.
v1::PhaseSeconds Phases(double total, const PoolAccounting& before, const PoolAccounting& after) {
  const double evaluating = after.evaluating - before.evaluating;
  v1::PhaseSeconds seconds;
  seconds.set_total(total);
  seconds.set_waiting(after.waiting - before.waiting);
  // Workers measure with their own clocks; an evaluation cannot have computed for longer than it took.
  seconds.set_client_compute(std::min(after.client_compute - before.client_compute, evaluating));
  seconds.set_reduction(std::min(after.reducing - before.reducing, evaluating - seconds.client_compute()));
  seconds.set_transport(evaluating - seconds.client_compute() - seconds.reduction());
  seconds.set_server_arithmetic(std::max(0.0, total - evaluating - seconds.waiting()));
  return seconds;
}

// Whether a run with so many parameters fits into the server.
absl::Status CheckFits(const v1::RunOptions& run, const OptimizerOptions& optimizer, int64_t num_parameters,
                       int64_t limit_bytes) {
  return CheckMemory(optimizer, std::max(1, static_cast<int>(run.shards())), num_parameters,
                     run.element_type() == v1::ELEMENT_TYPE_FLOAT64 ? 8 : 4, limit_bytes, run.bfloat16_products());
}

// What the record of a run knows of its model: all of it once workers were there, before that its size at most.
ModelDescription KnownModel(const v1::Run& record) {
  if (!record.has_model()) {
    const uint64_t n = record.num_parameters() != 0 ? record.num_parameters() : record.options().num_parameters();
    return {.num_parameters = static_cast<int64_t>(n)};
  }
  const v1::ModelDescription& model = record.model();
  return {.num_parameters = static_cast<int64_t>(model.num_parameters()),
          .training_examples = static_cast<int64_t>(model.training_examples()),
          .held_out_examples = static_cast<int64_t>(model.held_out_examples()),
          .signature = model.signature(),
          .second_moment = model.second_moment()};
}

WorkerPool::Options PoolOptions(const v1::Run& record, const OptimizerOptions& optimizer,
                                const RunEnvironment& environment) {
  const double lease = record.options().lease_seconds();
  return {.run_name = record.name(),
          .element_type = record.options().element_type(),
          .model = KnownModel(record),
          .lease = lease > 0 ? absl::Seconds(lease) : environment.default_lease,
          .bfloat16_products = record.options().bfloat16_products(),
          .diagonal = optimizer.preconditioner.diagonal,
          .sub_batches = ExtrasFor(optimizer, /*has_second_moment=*/false).sub_batches > 0,
          .hedging = !record.options().disable_hedging(),
          .check_memory =
              [run = record.options(), optimizer, limit = environment.memory_limit_bytes](int64_t num_parameters) {
                return CheckFits(run, optimizer, num_parameters, limit);
              },
          .now = environment.now};
}

bool IsActive(v1::RunState state) {
  return state == v1::RUN_STATE_RUNNING || state == v1::RUN_STATE_WAITING_FOR_WORKERS;
}

absl::Status WrongState(const v1::Run& record, absl::string_view action, absl::string_view allowed) {
  const std::string state = v1::RunState_Name(record.state());
  return absl::FailedPreconditionError(absl::StrCat(record.name(), " cannot be ", action, ": its state is ", state,
                                                    record.state_detail().empty() ? "" : " (", record.state_detail(),
                                                    record.state_detail().empty() ? "" : ")", "; allowed: ", allowed));
}

std::optional<Termination> WallTimeTermination(double seconds, double limit) {
  if (limit == 0 || seconds < limit) return std::nullopt;
  return Termination{TerminationReason::kWallTimeBudget, absl::StrCat(seconds, " s of ", limit, " s")};
}

}  // namespace

absl::StatusOr<std::shared_ptr<Run>> Run::Open(v1::Run record, std::string request_id, RunEnvironment environment) {
  HFOPT_ASSIGN_OR_RETURN(OptimizerOptions options, OptionsFromProto(record.options().optimizer()));
  std::shared_ptr<Run> run(
      new Run(std::move(record), std::move(request_id), options, std::move(environment)));
  HFOPT_ASSIGN_OR_RETURN(auto reports, run->environment_.store->Reports(run->id_, 0, INT32_MAX));
  absl::MutexLock lock(&run->mu_);
  // A report is stored before its checkpoint, and counts after it: whether it does is found out with the checkpoint.
  std::erase_if(reports, [&](const v1::IterationReport& report) {
    return report.iteration() > run->record_.last_iteration().iteration();
  });
  run->reports_ = std::move(reports);
  if (run->record_.state() == v1::RUN_STATE_ENDED) {
    const auto reason = TerminationReasonFromProto(run->record_.termination().reason());
    v1::Finished finished;
    finished.set_reason(std::string(TerminationReasonName(reason.value_or(TerminationReason::kCancelled))));
    finished.set_detail(run->record_.termination().detail());
    run->pool_->Finish(finished);
  }
  return run;
}

Run::Run(v1::Run record, std::string request_id, OptimizerOptions options, RunEnvironment environment)
    : id_(RunIdFromName(record.name()).value_or("")),
      request_id_(std::move(request_id)),
      options_(options),
      environment_(std::move(environment)),
      pool_(std::make_shared<WorkerPool>(PoolOptions(record, options_, environment_))),
      record_(std::move(record)) {
  pool_->SetWaitingListener([this] { Notify(); });
}

Run::~Run() { Shutdown(); }

// ------------------------------------------------------------------------------------------------------- state and control

v1::Run Run::Snapshot() const {
  const std::string waiting_for = pool_->WaitingFor();
  std::vector<v1::WorkerStatus> workers = pool_->workers();
  absl::MutexLock lock(&mu_);
  v1::Run run = record_;
  if (run.state() == v1::RUN_STATE_RUNNING && !waiting_for.empty()) {
    run.set_state(v1::RUN_STATE_WAITING_FOR_WORKERS);
    run.set_state_detail(waiting_for);
  }
  for (v1::WorkerStatus& worker : workers) *run.add_workers() = std::move(worker);
  return run;
}

absl::Status Run::UpdateRecord(const std::function<void(v1::Run&)>& change) {
  {
    absl::MutexLock lock(&mu_);
    change(record_);
    ++state_version_;
  }
  absl::Status stored = StoreRecord();
  Notify();
  return stored;
}

absl::Status Run::StoreRecord() {
  v1::Run copy;
  {
    absl::MutexLock lock(&mu_);
    copy = record_;
  }
  copy.clear_workers();
  return environment_.store->PutRun(copy, request_id_);
}

// The detail is told, not stored: there is no room for it.
absl::Status Run::UntilStored(absl::FunctionRef<absl::Status()> store) {
  const auto tell = [this](const std::string& detail) {
    {
      absl::MutexLock lock(&mu_);
      record_.set_state_detail(detail);
    }
    Notify();
  };
  absl::Duration pause = environment_.first_storage_retry;
  for (bool waiting = false;; waiting = true) {
    const absl::Status status = store();
    if (!absl::IsResourceExhausted(status)) {
      if (waiting && status.ok()) environment_.log(absl::StrCat("runs/", id_, ": there is space again; goes on"));
      if (waiting) tell("");
      return status;
    }
    const std::string detail = absl::StrCat("waiting for space on the disk: ", status.message(),
                                            ". Nothing is lost; the run goes on by itself when there is space");
    if (!waiting) environment_.log(absl::StrCat("runs/", id_, ": ", detail));
    tell(detail);
    absl::MutexLock lock(&mu_);
    const auto interrupted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return intent_ != Intent::kNone; };
    if (mu_.AwaitWithTimeout(absl::Condition(&interrupted), pause)) {
      record_.clear_state_detail();
      return absl::CancelledError("the run was interrupted");
    }
    pause = std::min(2 * pause, absl::Minutes(1));
  }
}

absl::Status Run::SetRunning() {
  const v1::Run before = Snapshot();
  const absl::Status status = SetState(v1::RUN_STATE_RUNNING, "");
  if (status.ok()) return status;
  {
    absl::MutexLock lock(&mu_);
    record_.set_state(before.state());
    record_.set_state_detail(before.state_detail());
  }
  Notify();
  return status;
}

absl::Status Run::SetState(v1::RunState state, const std::string& detail) {
  environment_.log(absl::StrCat("runs/", id_, ": ", v1::RunState_Name(state).c_str(), detail.empty() ? "" : ": ", detail));
  return UpdateRecord([&](v1::Run& record) {
    record.set_state(state);
    record.set_state_detail(detail);
  });
}

void Run::Launch() {
  if (thread_.joinable()) thread_.join();  // ended by itself before
  {
    absl::MutexLock lock(&mu_);
    intent_ = Intent::kNone;
  }
  pool_->Resume();
  thread_ = std::thread([this] { Main(); });
}

void Run::StopThread(Intent intent) {
  {
    absl::MutexLock lock(&mu_);
    intent_ = intent;
  }
  pool_->Interrupt(absl::CancelledError("the run was interrupted"));
  if (thread_.joinable()) thread_.join();
}

absl::Status Run::CheckNotDeleted() const {
  if (!deleting_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("runs/", id_, " is being deleted; only DeleteRun, again, is possible"));
}

absl::Status Run::Start() {
  absl::MutexLock control(&control_mu_);
  HFOPT_RETURN_IF_ERROR(CheckNotDeleted());
  if (const v1::Run run = Snapshot(); run.state() != v1::RUN_STATE_CREATED) {
    return WrongState(run, "started", "CREATED (a paused or failed run is resumed)");
  }
  HFOPT_RETURN_IF_ERROR(SetRunning());
  Launch();
  return absl::OkStatus();
}

absl::Status Run::Resume() {
  absl::MutexLock control(&control_mu_);
  HFOPT_RETURN_IF_ERROR(CheckNotDeleted());
  if (const v1::Run run = Snapshot(); run.state() != v1::RUN_STATE_PAUSED && run.state() != v1::RUN_STATE_FAILED) {
    return WrongState(run, "resumed", "PAUSED, FAILED");
  }
  HFOPT_RETURN_IF_ERROR(SetRunning());
  Launch();
  return absl::OkStatus();
}

absl::Status Run::Pause() {
  absl::MutexLock control(&control_mu_);
  if (const v1::Run run = Snapshot(); !IsActive(run.state())) {
    return WrongState(run, "paused", "RUNNING, WAITING_FOR_WORKERS");
  }
  StopThread(Intent::kPause);
  absl::Status filed;
  {
    absl::MutexLock lock(&mu_);
    if (filed_.ok() || record_.state() != v1::RUN_STATE_PAUSED) return absl::OkStatus();
    filed = filed_;
    record_.set_state(v1::RUN_STATE_RUNNING);
    ++state_version_;
  }
  Notify();
  Launch();
  return absl::Status(filed.code(), absl::StrCat("runs/", id_, " is not paused, and goes on as before: ", filed.message()));
}

absl::Status Run::Cancel() {
  absl::MutexLock control(&control_mu_);
  HFOPT_RETURN_IF_ERROR(CheckNotDeleted());
  if (const v1::Run run = Snapshot(); run.state() == v1::RUN_STATE_ENDED) {
    return WrongState(run, "cancelled", "any but ENDED");
  }
  StopThread(Intent::kCancel);
  v1::Run before;
  {
    absl::MutexLock lock(&mu_);
    before = record_;
  }
  if (before.state() == v1::RUN_STATE_ENDED) return absl::OkStatus();  // by itself, just before
  const absl::Status ended = End({TerminationReason::kCancelled, "by CancelRun"});
  if (ended.ok()) return ended;
  {
    absl::MutexLock lock(&mu_);
    record_ = before;
    ++state_version_;
  }
  Notify();
  if (IsActive(before.state())) Launch();
  return absl::Status(ended.code(), absl::StrCat("runs/", id_, " is not cancelled, and goes on as before: ", ended.message()));
}

absl::Status Run::Delete() {
  absl::MutexLock control(&control_mu_);
  const v1::Run run = Snapshot();
  if (IsActive(run.state())) return absl::FailedPreconditionError(absl::StrCat(run.name(), " is active; pause or cancel it first"));
  if (thread_.joinable()) StopThread(Intent::kShutdown);
  deleting_ = true;
  const absl::Status deleted = environment_.store->DeleteRun(id_);
  if (!deleted.ok() && !absl::IsNotFound(deleted)) {
    {
      absl::MutexLock lock(&mu_);
      record_.set_state_detail(absl::StrCat("its deletion has begun, and failed: ", deleted.message(), "; delete it again"));
      ++state_version_;
    }
    Notify();
    return absl::Status(deleted.code(), absl::StrCat(run.name(), " is not deleted yet: ", deleted.message(), "; delete it again"));
  }
  pool_->CloseSessions(absl::NotFoundError(absl::StrCat(run.name(), " was deleted")));
  return deleted;
}

void Run::Shutdown() {
  absl::MutexLock control(&control_mu_);
  if (thread_.joinable()) StopThread(Intent::kShutdown);
}

void Run::StartIfWasRunning() {
  absl::MutexLock control(&control_mu_);
  if (IsActive(Snapshot().state())) Launch();
}

absl::Status Run::CheckInitialParameters(uint64_t size, v1::ElementType element_type) const {
  const v1::Run run = Snapshot();
  if (run.state() != v1::RUN_STATE_CREATED) return WrongState(run, "given parameters", "CREATED");
  if (element_type != run.options().element_type()) {
    return absl::InvalidArgumentError(absl::StrCat(run.name(), " computes in ",
                                                   wire::ElementTypeName(run.options().element_type()),
                                                   "; the parameters are ", wire::ElementTypeName(element_type)));
  }
  if (size == 0) return absl::InvalidArgumentError(absl::StrCat(run.name(), ": 0 parameters were uploaded"));
  const uint64_t n = run.options().num_parameters();
  if (n != 0 && n != size) {
    return absl::InvalidArgumentError(
        absl::StrCat(run.name(), " has ", n, " parameters; ", size, " were uploaded"));
  }
  return CheckFits(run.options(), options_, static_cast<int64_t>(std::min<uint64_t>(size, INT64_MAX)),
                   environment_.memory_limit_bytes);
}

absl::Status Run::SetInitialParameters(AnyVector parameters) {
  absl::MutexLock control(&control_mu_);
  HFOPT_RETURN_IF_ERROR(CheckNotDeleted());
  HFOPT_RETURN_IF_ERROR(CheckInitialParameters(Size(parameters), ElementTypeOf(parameters)));
  const std::string name = Snapshot().name();
  return std::visit(
      [&](auto& theta) -> absl::Status {
        using Scalar = typename std::decay_t<decltype(theta.map())>::Scalar;
        OptimizerState<Scalar> state;
        state.theta = theta.map();
        if (const int64_t i = FirstNonFinite<Scalar>(state.theta); i >= 0) {
          return absl::InvalidArgumentError(
              absl::StrCat(name, ": the uploaded parameters are ", state.theta[i], " at index ", i));
        }
        HFOPT_RETURN_IF_ERROR(Save(state, /*best=*/false));
        // Workers of another size cannot work on these.
        HFOPT_RETURN_IF_ERROR(UpdateRecord([&](v1::Run& r) { r.set_num_parameters(state.theta.size()); }));
        pool_->Expect({.num_parameters = state.theta.size()});
        return absl::OkStatus();
      },
      parameters);
}

// ------------------------------------------------------------------------------------------------------------- the thread

void Run::Main() {
  const absl::StatusOr<Termination> end = CatchOutOfMemory([this] {
    return Snapshot().options().element_type() == v1::ELEMENT_TYPE_FLOAT64 ? Drive<double>() : Drive<float>();
  });
  Intent intent;
  {
    absl::MutexLock lock(&mu_);
    intent = intent_;
  }
  absl::Status filed;
  if (end.ok()) {
    filed = End(*end);
  } else if (intent == Intent::kPause) {
    filed = SetState(v1::RUN_STATE_PAUSED, "");
  } else if (intent == Intent::kNone) {
    filed = SetState(v1::RUN_STATE_FAILED, std::string(end.status().message()));
  }  // Cancel files the end itself. On shutdown the stored state stays as it is: the run goes on when the server starts again.
  {
    absl::MutexLock lock(&mu_);
    filed_ = filed;
  }
  if (!filed.ok()) environment_.log(absl::StrCat("runs/", id_, ": its state could not be stored: ", filed.message()));
}

absl::Status Run::End(const Termination& termination) {
  HFOPT_FAILPOINT("run.end");
  const absl::string_view reason = TerminationReasonName(termination.reason);
  environment_.log(absl::StrCat("runs/", id_, ": ended: ", reason, ": ", termination.detail));
  absl::Status stored = UpdateRecord([&](v1::Run& record) {
    record.set_state(v1::RUN_STATE_ENDED);
    record.clear_state_detail();
    *record.mutable_termination() = TerminationToProto(termination);
  });
  if (!stored.ok() && termination.reason == TerminationReason::kCancelled) return stored;  // Cancel takes it back
  v1::Finished finished;
  finished.set_reason(std::string(reason));
  finished.set_detail(termination.detail);
  pool_->Finish(finished);
  return stored;
}

absl::StatusOr<DataLayout> Run::AwaitLayout() {
  HFOPT_ASSIGN_OR_RETURN(const ModelDescription model, pool_->AwaitWorkers());
  const v1::RunOptions options = Snapshot().options();
  const DataLayout layout{
      // At least one was there a moment ago.
      .shards = options.shards() != 0 ? static_cast<int>(options.shards()) : std::max(1, pool_->workers_present()),
      .training_examples = model.training_examples,
      .held_out_examples = model.held_out_examples};
  if (layout.shards > layout.training_examples || layout.shards > layout.held_out_examples) {
    return absl::FailedPreconditionError(
        absl::StrCat("the run has ", layout.shards, " shards, but the workers have only ", layout.training_examples,
                     " training and ", layout.held_out_examples, " held-out examples; create it with fewer shards"));
  }
  v1::RunOptions with_shards = options;
  with_shards.set_shards(layout.shards);
  HFOPT_RETURN_IF_ERROR(CheckFits(with_shards, options_, model.num_parameters, environment_.memory_limit_bytes));
  const auto describe = [&](v1::Run& record) {
    record.mutable_options()->set_shards(layout.shards);
    record.set_num_parameters(model.num_parameters);
    record.mutable_model()->set_signature(model.signature);
    record.mutable_model()->set_num_parameters(model.num_parameters);
    record.mutable_model()->set_training_examples(model.training_examples);
    record.mutable_model()->set_held_out_examples(model.held_out_examples);
    record.mutable_model()->set_second_moment(model.second_moment.value_or(false));
  };
  HFOPT_RETURN_IF_ERROR(UntilStored([&] { return UpdateRecord(describe); }));
  pool_->Expect(model);
  pool_->SetShards(layout.shards);
  HFOPT_RETURN_IF_ERROR(pool_->AwaitWorkers().status());
  return layout;
}

template <typename Scalar>
absl::Status Run::Save(const OptimizerState<Scalar>& state, bool best) {
  CheckpointView view = ViewCheckpoint(state);
  v1::RunOptions options;
  {
    absl::MutexLock lock(&mu_);
    options = record_.options();
    *view.meta.mutable_seconds() = record_.seconds();
    view.meta.set_best_held_out_loss(record_.best_held_out_loss());
    view.meta.set_best_iteration(record_.best_iteration());
  }
  const int keep = options.keep_checkpoints() != 0 ? static_cast<int>(options.keep_checkpoints())
                                                   : environment_.default_keep_checkpoints;
  return environment_.store->SaveCheckpoint(id_, view, {.best = best, .keep = keep});
}

template <typename Scalar>
absl::StatusOr<OptimizerState<Scalar>> Run::LoadOrInitialize(RemoteObjective<Scalar>& objective) {
  absl::StatusOr<LoadedCheckpoint> loaded = environment_.store->LoadLastCheckpoint(id_);
  if (absl::IsNotFound(loaded.status())) {
    // Beginning again from other parameters, while the reports tell of more, would be a lie.
    if (const uint64_t last = Snapshot().last_iteration().iteration(); last > 0) {
      return absl::DataLossError(absl::StrCat(loaded.status().message(), ", but the run has finished iteration ", last,
                                              "; put its checkpoints back there and resume the run, or create another "
                                              "run to begin anew"));
    }
    HFOPT_ASSIGN_OR_RETURN(Vector<Scalar> theta, objective.InitialParameters(Snapshot().options().seed()));
    OptimizerState<Scalar> state = InitialState<Scalar>(std::move(theta), objective.layout(), options_);
    HFOPT_RETURN_IF_ERROR(UntilStored([&] { return Save(state, /*best=*/false); }));
    return state;
  }
  HFOPT_RETURN_IF_ERROR(loaded.status());
  if (!loaded->warning.empty()) environment_.log(absl::StrCat("runs/", id_, ": ", loaded->warning));
  HFOPT_ASSIGN_OR_RETURN(OptimizerState<Scalar> state, StateFromCheckpoint<Scalar>(std::move(loaded->checkpoint)));
  if (state.theta.size() != objective.num_parameters()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the parameters stored for this run have ", state.theta.size(), " elements; the workers' model has ",
        objective.num_parameters(), "; create a run for that model, and start workers of the stored one here"));
  }
  if (state.iteration == 0) state = InitialState<Scalar>(std::move(state.theta), objective.layout(), options_);
  HFOPT_RETURN_IF_ERROR(MatchReports(state.iteration));
  return state;
}

absl::Status Run::MatchReports(uint64_t iteration) {
  uint64_t published = 0;
  {
    absl::MutexLock lock(&mu_);
    // Iterations whose checkpoint is gone or damaged are done again, with the same result.
    while (!reports_.empty() && reports_.back().iteration() > iteration) reports_.pop_back();
    if (!reports_.empty()) published = reports_.back().iteration();
    if (record_.last_iteration().iteration() > iteration) {
      record_.clear_last_iteration();
      if (!reports_.empty()) *record_.mutable_last_iteration() = reports_.back();
    }
  }
  // An iteration whose checkpoint was the last thing that a server did.
  HFOPT_ASSIGN_OR_RETURN(const std::vector<v1::IterationReport> later,
                         environment_.store->Reports(id_, published, INT32_MAX));
  for (const v1::IterationReport& report : later) {
    if (report.iteration() <= iteration) HFOPT_RETURN_IF_ERROR(Publish(report, IsBest(report)));
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Run::File(const OptimizerState<Scalar>& state, const v1::IterationReport& report, bool best) {
  // If the power fails between report and checkpoint, the iteration is done again and its report replaced; the other way round the report would be
  // lost.
  HFOPT_RETURN_IF_ERROR(UntilStored([&] { return environment_.store->AppendReport(id_, report); }));
  HFOPT_FAILPOINT_OR_RETURN("run.report");
  HFOPT_RETURN_IF_ERROR(UntilStored([&] { return Save(state, best); }));
  HFOPT_FAILPOINT_OR_RETURN("run.checkpoint");
  HFOPT_RETURN_IF_ERROR(Publish(report, best));
  HFOPT_FAILPOINT("run.published");
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<Termination> Run::Drive() {
  HFOPT_ASSIGN_OR_RETURN(const DataLayout layout, AwaitLayout());
  const v1::Run record = Snapshot();
  RemoteObjective<Scalar> objective(absl::StrCat("runs/", id_), *pool_, record.num_parameters(), layout,
                                    {.repeat_every = record.options().repeat_every(),
                                     .bfloat16_products = record.options().bfloat16_products(),
                                     .second_moment = record.model().second_moment()});
  HFOPT_ASSIGN_OR_RETURN(OptimizerState<Scalar> state, LoadOrInitialize<Scalar>(objective));
  std::optional<Journal> journal;
  std::optional<JournaledObjective<Scalar>> journaled;
  if (const double seconds = Snapshot().options().journal_seconds(); seconds > 0) {
    const auto log = [this](const std::string& line) { environment_.log(absl::StrCat("runs/", id_, ": ", line)); };
    journal.emplace(Journal::Options{environment_.store->JournalPath(id_), absl::Seconds(seconds), log, environment_.now}, state.iteration);
    journaled.emplace(objective, *journal);
  }
  Objective<Scalar>& asked = journaled.has_value() ? static_cast<Objective<Scalar>&>(*journaled) : objective;
  PoolAccounting before = pool_->accounting();
  absl::Time start = environment_.now();
  double seconds = Snapshot().seconds().total();

  // `state` is put on the disk while the next one is computed from it; what `filing` is of ends before the next one begins, and before this function.
  std::future<absl::Status> filing;
  const auto filed = [&filing] { return filing.valid() ? filing.get() : absl::OkStatus(); };
  while (true) {
    std::optional<Termination> end = CheckTermination(state, layout, options_.stop);
    if (!end.has_value()) end = WallTimeTermination(seconds, record.options().max_wall_seconds());
    if (end.has_value()) {
      HFOPT_RETURN_IF_ERROR(filed());
      return *end;
    }

    absl::StatusOr<Iteration<Scalar>> next = Iterate<Scalar>(state, asked, options_);
    HFOPT_RETURN_IF_ERROR(filed());
    HFOPT_RETURN_IF_ERROR(next.status());
    state = std::move(next->state);
    if (journal.has_value() && journal->replayed() > 0) {
      environment_.log(absl::StrCat("runs/", id_, ": iteration ", state.iteration, " went on after ", journal->replayed(), " answers of its journal"));
    }

    v1::IterationReport report = ReportToProto(next->report, layout.training_examples);
    const PoolAccounting after = pool_->accounting();
    const absl::Time now = environment_.now();
    *report.mutable_seconds() = Phases(absl::ToDoubleSeconds(now - start), before, after);
    seconds += report.seconds().total();
    report.set_reissued(static_cast<uint32_t>(after.reissued - before.reissued));
    report.set_hedged(static_cast<uint32_t>(after.hedged - before.hedged));
    ToProto(now, report.mutable_end_time());
    start = now;
    before = after;
    filing = std::async(std::launch::async, [this, &state, report, best = IsBest(report)] {
      absl::Status status = File(state, report, best);
      if (!status.ok()) pool_->Interrupt(status);  // the next iteration would come to nothing
      return status;
    });
    if (journal.has_value()) {  // of the iteration before, whose answers are of use until its end is on the disk
      HFOPT_RETURN_IF_ERROR(filed());
      journal->Begin(state.iteration);
    }
  }
}

bool Run::IsBest(const v1::IterationReport& report) const {
  absl::MutexLock lock(&mu_);
  for (const v1::IterationReport& other : reports_) {
    if (other.held_out_examples() > report.held_out_examples()) return false;
    if (other.held_out_examples() == report.held_out_examples() && other.held_out_loss() <= report.held_out_loss()) {
      return false;
    }
  }
  return true;
}

absl::Status Run::Publish(const v1::IterationReport& report, bool best) {
  {
    absl::MutexLock lock(&mu_);
    reports_.push_back(report);
    *record_.mutable_last_iteration() = report;
    Add(report.seconds(), *record_.mutable_seconds());
    if (best) {
      record_.set_best_held_out_loss(report.held_out_loss());
      record_.set_best_iteration(report.iteration());
    }
  }
  absl::Status stored = UntilStored([this] { return StoreRecord(); });
  Notify();
  return stored;
}

// ---------------------------------------------------------------------------------------------------------------- watching

std::vector<v1::IterationReport> Run::ReportsAfter(uint64_t iteration, int limit) const {
  absl::MutexLock lock(&mu_);
  auto first = std::upper_bound(reports_.begin(), reports_.end(), iteration,
                                [](uint64_t i, const v1::IterationReport& report) { return i < report.iteration(); });
  const auto count = std::min<int64_t>(limit, reports_.end() - first);
  return {first, first + count};
}

uint64_t Run::state_version() const {
  absl::MutexLock lock(&mu_);
  return state_version_;
}

int64_t Run::Subscribe(std::function<void()> changed) {
  absl::MutexLock lock(&subscribers_mu_);
  subscribers_[next_subscription_] = std::move(changed);
  return next_subscription_++;
}

void Run::Unsubscribe(int64_t subscription) {
  absl::MutexLock lock(&subscribers_mu_);
  subscribers_.erase(subscription);
}

void Run::Notify() {
  {
    absl::MutexLock lock(&mu_);
    ++state_version_;
  }
  absl::MutexLock lock(&subscribers_mu_);
  for (const auto& [id, changed] : subscribers_) changed();
}

}  // namespace hfopt::server
