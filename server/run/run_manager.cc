#include "server/run/run_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/status_macros.h"
#include "google/protobuf/util/message_differencer.h"
#include "server/convert/options.h"
#include "server/run/memory.h"

namespace hfopt::server {
namespace {

// The options with every field filled in.
absl::StatusOr<v1::RunOptions> CompleteOptions(v1::RunOptions options, const RunEnvironment& environment) {
  if (options.element_type() == v1::ELEMENT_TYPE_UNSPECIFIED) options.set_element_type(v1::ELEMENT_TYPE_FLOAT32);
  if (options.element_type() != v1::ELEMENT_TYPE_FLOAT32 && options.element_type() != v1::ELEMENT_TYPE_FLOAT64) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.element_type is ", static_cast<int>(options.element_type()), "; allowed: 1 (float32), 2 (float64)"));
  }
  constexpr uint32_t kMaxShards = 100'000;
  if (options.shards() > kMaxShards) {
    return absl::InvalidArgumentError(absl::StrCat("options.shards is ", options.shards(), "; allowed: 0 to ", kMaxShards));
  }
  if (!(options.max_wall_seconds() >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.max_wall_seconds is ", options.max_wall_seconds(), "; allowed: 0 (none) or more"));
  }
  if (options.lease_seconds() == 0) options.set_lease_seconds(absl::ToDoubleSeconds(environment.default_lease));
  if (!(options.lease_seconds() >= 0.05 && options.lease_seconds() <= 86400)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.lease_seconds is ", options.lease_seconds(), "; allowed: 0 (the server's default), 0.05 to 86400"));
  }
  if (!(options.journal_seconds() >= 0 && options.journal_seconds() <= 86400)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.journal_seconds is ", options.journal_seconds(), "; allowed: 0 (no journal) to 86400"));
  }
  if (options.bfloat16_products() && options.element_type() != v1::ELEMENT_TYPE_FLOAT32) {
    return absl::InvalidArgumentError("options.bfloat16_products is true, and options.element_type float64; allowed: with float32 alone");
  }
  if (options.keep_checkpoints() == 0) options.set_keep_checkpoints(environment.default_keep_checkpoints);
  if (options.keep_checkpoints() > 1'000'000) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.keep_checkpoints is ", options.keep_checkpoints(), "; allowed: 0 (the server's default) to 1000000"));
  }
  constexpr uint32_t kDefaultRepeatEvery = 100;
  if (!options.has_repeat_every()) options.set_repeat_every(kDefaultRepeatEvery);
  HFOPT_ASSIGN_OR_RETURN(const OptimizerOptions optimizer, OptionsFromProto(options.optimizer()));
  *options.mutable_optimizer() = OptionsToProto(optimizer, options.optimizer().preset());
  if (options.num_parameters() != 0) {
    HFOPT_RETURN_IF_ERROR(CheckMemory(optimizer, std::max(1, static_cast<int>(options.shards())),
                                      static_cast<int64_t>(std::min<uint64_t>(options.num_parameters(), 1LL << 50)),
                                      options.element_type() == v1::ELEMENT_TYPE_FLOAT64 ? 8 : 4,
                                      environment.memory_limit_bytes, options.bfloat16_products()));
  }
  return options;
}

// How the completed options of a request differ from those of the run that an earlier request has made; empty when they do not. What the
// request left to the server is as the server has chosen it then: its presets may have changed since.
std::string Difference(const v1::RunOptions& requested, v1::RunOptions completed, const v1::RunOptions& existing) {
  if (requested.shards() == 0) completed.set_shards(existing.shards());
  if (requested.lease_seconds() == 0) completed.set_lease_seconds(existing.lease_seconds());
  if (!existing.has_repeat_every()) completed.clear_repeat_every();  // stored before there was such a thing
  if (requested.keep_checkpoints() == 0) completed.set_keep_checkpoints(existing.keep_checkpoints());
  const v1::OptimizerOptions::Preset preset = completed.optimizer().preset();
  *completed.mutable_optimizer() = existing.optimizer();
  completed.mutable_optimizer()->MergeFrom(requested.optimizer());
  completed.mutable_optimizer()->set_preset(preset);
  std::string difference;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&difference);
  return differencer.Compare(existing, completed) ? "" : absl::StrReplaceAll(difference, {{"\n", "; "}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunManager>> RunManager::Open(RunEnvironment environment) {
  std::unique_ptr<RunManager> manager(new RunManager(std::move(environment)));
  HFOPT_ASSIGN_OR_RETURN(std::vector<StoredRun> stored, manager->environment_.store->ListRuns());
  absl::MutexLock lock(&manager->mu_);
  for (StoredRun& s : stored) {
    const std::string name = s.run.name();
    absl::StatusOr<std::shared_ptr<Run>> run = Run::Open(std::move(s.run), std::move(s.request_id), manager->environment_);
    if (!run.ok()) {
      const std::string reason = absl::StrCat(name.c_str(), " cannot be recovered: ", run.status().message());
      manager->environment_.log(reason);
      manager->unrecovered_[RunIdFromName(name).value_or(name)] = absl::FailedPreconditionError(absl::StrCat(
          reason, "; start the server that wrote it, or a later one, or delete the run to use its id again"));
      continue;
    }
    (*run)->StartIfWasRunning();
    manager->runs_[(*run)->id()] = *std::move(run);
  }
  return manager;
}

absl::StatusOr<std::shared_ptr<Run>> RunManager::Create(const v1::CreateRunRequest& request) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(request.run_id()));
  HFOPT_ASSIGN_OR_RETURN(const v1::RunOptions options, CompleteOptions(request.options(), environment_));
  absl::MutexLock creating(&creating_);
  const absl::StatusOr<std::shared_ptr<Run>> known = Find(absl::StrCat("runs/", request.run_id().c_str()));
  if (absl::IsFailedPrecondition(known.status())) return known.status();  // stored, but not recovered
  if (known.ok()) {
    Run& run = **known;
    if (!request.request_id().empty() && request.request_id() == run.request_id()) {
      const std::string difference = Difference(request.options(), options, run.Snapshot().options());
      if (difference.empty()) return known;
      return absl::AlreadyExistsError(absl::StrCat("runs/", request.run_id().c_str(),
                                                   " was created by the same request_id with other options: ",
                                                   difference.c_str(), "choose another id, or delete it first"));
    }
    return absl::AlreadyExistsError(absl::StrCat("runs/", request.run_id().c_str(),
                                                 " exists already; choose another id, or delete it first"));
  }
  v1::Run record;
  record.set_name(absl::StrCat("runs/", request.run_id().c_str()));
  *record.mutable_options() = options;
  record.set_state(v1::RUN_STATE_CREATED);
  record.mutable_create_time()->set_seconds(absl::ToUnixSeconds(absl::Now()));
  HFOPT_RETURN_IF_ERROR(environment_.store->PutRun(record, request.request_id()));
  HFOPT_ASSIGN_OR_RETURN(std::shared_ptr<Run> run,
                         Run::Open(std::move(record), request.request_id(), environment_));
  absl::MutexLock lock(&mu_);
  runs_[request.run_id()] = run;
  return run;
}

absl::StatusOr<std::shared_ptr<Run>> RunManager::Find(absl::string_view name) const {
  HFOPT_ASSIGN_OR_RETURN(const std::string id, RunIdFromName(name));
  absl::MutexLock lock(&mu_);
  if (const auto known = unrecovered_.find(id); known != unrecovered_.end()) return known->second;
  const auto run = runs_.find(id);
  if (run == runs_.end()) {
    return absl::NotFoundError(absl::StrCat("there is no run ", name, "; ListRuns (`hfopt run list`) names those there are"));
  }
  return run->second;
}

std::vector<std::shared_ptr<Run>> RunManager::List(const std::string& after_id, size_t limit) const {
  absl::MutexLock lock(&mu_);
  std::vector<std::shared_ptr<Run>> runs;
  for (auto it = runs_.upper_bound(after_id); it != runs_.end() && runs.size() < limit; ++it) runs.push_back(it->second);
  return runs;
}

absl::Status RunManager::Delete(absl::string_view name) {
  HFOPT_ASSIGN_OR_RETURN(const std::string id, RunIdFromName(name));
  {
    absl::MutexLock creating(&creating_);
    if (absl::IsFailedPrecondition(Find(name).status())) {
      HFOPT_RETURN_IF_ERROR(environment_.store->DeleteRun(id));
      absl::MutexLock lock(&mu_);
      unrecovered_.erase(id);
      return absl::OkStatus();
    }
  }
  HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<Run> run, Find(name));
  HFOPT_RETURN_IF_ERROR(run->Delete());
  absl::MutexLock lock(&mu_);
  runs_.erase(run->id());  // its id was taken until now
  return absl::OkStatus();
}

void RunManager::Shutdown() {
  for (const std::shared_ptr<Run>& run : List("", SIZE_MAX)) {
    run->Shutdown();
    run->pool()->CloseSessions(absl::UnavailableError("the server is shutting down; dial again"));
  }
}

}  // namespace hfopt::server
