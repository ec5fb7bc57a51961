#include "server/run/file_run_store.h"

#include <functional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"

namespace hfopt::server {
namespace {

constexpr char kDeleted[] = ".deleted";  // never part of a run id

absl::Status WithRemedy(const absl::Status& status) {
  if (!absl::IsPermissionDenied(status)) return status;
  return absl::PermissionDeniedError(
      absl::StrCat(status.message(), "; let the server's user write there, or use another state directory"));
}

}  // namespace

std::string FileRunStore::JournalPath(absl::string_view run_id) const { return absl::StrCat(RunPath(run_id), "/journal"); }

std::string FileRunStore::RunsPath() const { return absl::StrCat(directory_, "/runs"); }
std::string FileRunStore::RunPath(absl::string_view run_id) const { return absl::StrCat(RunsPath(), "/", run_id); }
std::string FileRunStore::DeletedPath(absl::string_view run_id) const {
  return absl::StrCat(RunPath(run_id), kDeleted);
}

absl::Mutex& FileRunStore::FilesMutex(absl::string_view run_id) {
  const std::string_view key(run_id.data(), run_id.size());
  return files_mutexes_[std::hash<std::string_view>()(key) % files_mutexes_.size()];
}

absl::StatusOr<std::unique_ptr<FileRunStore>> FileRunStore::Open(const std::string& directory, const Log& log) {
  HFOPT_RETURN_IF_ERROR(WithRemedy(CreateDirectory(directory)));
  absl::StatusOr<std::unique_ptr<DirectoryLock>> lock = DirectoryLock::Acquire(directory);
  if (!lock.ok()) return WithRemedy(lock.status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<RunCatalogue> catalogue,
                         RunCatalogue::Open(absl::StrCat(directory, "/hfopt.db")));
  std::unique_ptr<FileRunStore> store(new FileRunStore(directory, *std::move(lock), std::move(catalogue)));
  HFOPT_RETURN_IF_ERROR(store->Recover(log));
  return store;
}

absl::Status FileRunStore::Recover(const Log& log) {
  HFOPT_RETURN_IF_ERROR(CreateDirectory(RunsPath()));
  HFOPT_RETURN_IF_ERROR(SyncDirectory(directory_));  // the names of the lock and of the database
  HFOPT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(RunsPath()));
  for (const std::string& name : names) {
    absl::string_view run_id = name;
    if (absl::ConsumeSuffix(&run_id, kDeleted)) {
      if (const absl::Status finished = FinishDeletion(run_id); !finished.ok()) {
        log(absl::StrCat("the deletion of run ", run_id, ", which had begun, cannot be finished: ", finished.message(), "; delete it again"));
      }
      continue;
    }
    if (!CheckRunId(run_id).ok()) {
      log(absl::StrCat(RunsPath(), "/", name, " is no run's, and left alone"));
      continue;
    }
    if (const absl::Status removed = Checkpoints(run_id).RemoveUnfinished(); !removed.ok()) {
      log(absl::StrCat("the files of run ", run_id, " cannot be used: ", removed.message(), "; mend that before the run is resumed"));
      continue;
    }
    HFOPT_ASSIGN_OR_RETURN(const bool known, catalogue_->Contains(run_id));
    HFOPT_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListDirectory(RunPath(run_id)));
    if (!known && !files.empty()) {
      log(absl::StrCat(RunPath(run_id), " has ", files.size(), " files, but ", directory_, "/hfopt.db does not know the run ", run_id,
                       ": was the database lost? Put a copy of it back; or give a checkpoint to a new run with hfopt params upload"));
    }
  }
  return absl::OkStatus();
}

absl::Status FileRunStore::PutRun(const v1::Run& run, absl::string_view request_id) {
  HFOPT_ASSIGN_OR_RETURN(const std::string run_id, RunIdFromName(run.name()));
  absl::MutexLock lock(&FilesMutex(run_id));
  HFOPT_ASSIGN_OR_RETURN(const bool known, catalogue_->Contains(run_id));
  HFOPT_ASSIGN_OR_RETURN(const bool deleted, IsDirectory(DeletedPath(run_id)));
  if (known && deleted) {
    return absl::FailedPreconditionError(absl::StrCat("the deletion of run ", run_id, " has begun; delete it again: at the next start the server would"));
  }
  if (!known) {
    // Left by a deletion that could not remove all. At the next Open it would take the new run along.
    if (deleted) HFOPT_RETURN_IF_ERROR(FinishDeletion(run_id));
    HFOPT_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListDirectory(RunPath(run_id)));
    if (!files.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(RunPath(run_id), " has ", files.size(), " files, but ",
                                                        directory_, "/hfopt.db does not know the run ", run_id,
                                                        "; move the directory away, or take another run id. The new "
                                                        "run can begin from a checkpoint there: hfopt params upload"));
    }
  }
  return catalogue_->Put(run_id, run, request_id);
}

absl::StatusOr<std::vector<StoredRun>> FileRunStore::ListRuns() { return catalogue_->List(); }

// Renaming the directory is the point of no return: from there on, Recover would finish the deletion.
absl::Status FileRunStore::DeleteRun(absl::string_view run_id) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  absl::MutexLock lock(&FilesMutex(run_id));
  HFOPT_ASSIGN_OR_RETURN(const bool known, catalogue_->Contains(run_id));
  if (!known) return absl::NotFoundError(absl::StrCat("run ", run_id, " is not in the catalogue"));
  HFOPT_RETURN_IF_ERROR(CreateDirectory(RunPath(run_id)));  // a run without checkpoints is deleted no differently
  HFOPT_RETURN_IF_ERROR(Remove(DeletedPath(run_id)));
  HFOPT_RETURN_IF_ERROR(Rename(RunPath(run_id), DeletedPath(run_id)));
  return FinishDeletion(run_id);
}

absl::Status FileRunStore::FinishDeletion(absl::string_view run_id) {
  HFOPT_RETURN_IF_ERROR(SyncDirectory(RunsPath()));
  HFOPT_RETURN_IF_ERROR(catalogue_->Delete(run_id));
  HFOPT_RETURN_IF_ERROR(Remove(DeletedPath(run_id)));
  return SyncDirectory(RunsPath());
}

absl::Status FileRunStore::AppendReport(absl::string_view run_id, const v1::IterationReport& report) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  return catalogue_->AppendReport(run_id, report);
}

absl::StatusOr<std::vector<v1::IterationReport>> FileRunStore::Reports(absl::string_view run_id,
                                                                       uint64_t after_iteration, int limit) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  return catalogue_->Reports(run_id, after_iteration, limit);
}

absl::Status FileRunStore::SaveCheckpoint(absl::string_view run_id, const CheckpointView& checkpoint,
                                          const SaveOptions& options) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  absl::MutexLock lock(&FilesMutex(run_id));
  return Checkpoints(run_id).Save(checkpoint, options);
}

absl::StatusOr<LoadedCheckpoint> FileRunStore::LoadLastCheckpoint(absl::string_view run_id) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  absl::ReaderMutexLock lock(&FilesMutex(run_id));
  return Checkpoints(run_id).LoadLast();
}

absl::StatusOr<LoadedCheckpoint> FileRunStore::LoadBestCheckpoint(absl::string_view run_id) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  absl::ReaderMutexLock lock(&FilesMutex(run_id));
  return Checkpoints(run_id).LoadBest();
}

absl::StatusOr<LoadedCheckpoint> FileRunStore::LoadCheckpoint(absl::string_view run_id, uint64_t iteration) {
  HFOPT_RETURN_IF_ERROR(CheckRunId(run_id));
  absl::ReaderMutexLock lock(&FilesMutex(run_id));
  return Checkpoints(run_id).Load(iteration);
}

}  // namespace hfopt::server
