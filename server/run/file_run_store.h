#ifndef HFOPT_SERVER_RUN_FILE_RUN_STORE_H_
#define HFOPT_SERVER_RUN_FILE_RUN_STORE_H_

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "server/run/checkpoint_directory.h"
#include "server/run/durable_files.h"
#include "server/run/run_catalogue.h"
#include "server/run/run_store.h"

namespace hfopt::server {

// A RunStore in a directory:
//
//     lock                                        held while a server uses the directory; contains its process id
//     hfopt.db                                    SQLite: the catalogue and the reports
//     runs/<run id>/checkpoint-<n>.safetensors    after iteration n
//     runs/<run id>/best.safetensors              one of them, or one that is no longer kept
//     runs/<run id>/journal                       answers of the iteration under way, for runs that ask for it
//     runs/<run id>.deleted/                      a run whose deletion was cut off; Open finishes it
//
// Checkpoint files are whole at any time and may be copied away while a server runs; those ending in .tmp are
// unfinished, and Open removes them. The database is copied with `sqlite3 hfopt.db .backup`.
class FileRunStore final : public RunStore {
 public:
  using Log = std::function<void(const std::string&)>;

  // Creates the directory if it is missing. FAILED_PRECONDITION, naming directory and process id, when another server
  // uses it. What is wrong with the files of one run alone, and files that belong to none, are told to `log`.
  static absl::StatusOr<std::unique_ptr<FileRunStore>> Open(const std::string& directory, const Log& log = [](const std::string&) {});

  absl::Status PutRun(const v1::Run& run, absl::string_view request_id) override;
  absl::StatusOr<std::vector<StoredRun>> ListRuns() override;
  absl::Status DeleteRun(absl::string_view run_id) override;
  absl::Status AppendReport(absl::string_view run_id, const v1::IterationReport& report) override;
  absl::StatusOr<std::vector<v1::IterationReport>> Reports(absl::string_view run_id, uint64_t after_iteration,
                                                           int limit) override;
  absl::Status SaveCheckpoint(absl::string_view run_id, const CheckpointView& checkpoint,
                              const SaveOptions& options) override;
  absl::StatusOr<LoadedCheckpoint> LoadLastCheckpoint(absl::string_view run_id) override;
  absl::StatusOr<LoadedCheckpoint> LoadBestCheckpoint(absl::string_view run_id) override;
  absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(absl::string_view run_id, uint64_t iteration) override;
  std::string JournalPath(absl::string_view run_id) const override;

 private:
  FileRunStore(std::string directory, std::unique_ptr<DirectoryLock> lock, std::unique_ptr<RunCatalogue> catalogue)
      : directory_(std::move(directory)), lock_(std::move(lock)), catalogue_(std::move(catalogue)) {}

  // Ends what a crash cut off.
  absl::Status Recover(const Log& log);
  // The second half of a deletion: `run_id`'s files are at DeletedPath already.
  absl::Status FinishDeletion(absl::string_view run_id);

  std::string RunsPath() const;
  std::string RunPath(absl::string_view run_id) const;
  std::string DeletedPath(absl::string_view run_id) const;
  CheckpointDirectory Checkpoints(absl::string_view run_id) const { return CheckpointDirectory(RunPath(run_id)); }

  // Guards the files of this run, and of a few others: cheaper than a mutex for each run there ever was.
  absl::Mutex& FilesMutex(absl::string_view run_id);

  const std::string directory_;
  const std::unique_ptr<DirectoryLock> lock_;
  const std::unique_ptr<RunCatalogue> catalogue_;
  std::array<absl::Mutex, 64> files_mutexes_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_FILE_RUN_STORE_H_
