#ifndef HFOPT_SERVER_RUN_RUN_CATALOGUE_H_
#define HFOPT_SERVER_RUN_RUN_CATALOGUE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/run/run_store.h"

struct sqlite3;

namespace hfopt::server {

// The runs and their iteration reports, in one SQLite file (write-ahead log, synced at every commit). Messages are
// stored as bytes, so a field added to them needs no migration. The functions promise what those of RunStore do; run
// ids are taken as they are.
class RunCatalogue {
 public:
  // Creates the file if it is missing. FAILED_PRECONDITION when a later version wrote it.
  static absl::StatusOr<std::unique_ptr<RunCatalogue>> Open(const std::string& path);
  ~RunCatalogue();

  absl::StatusOr<bool> Contains(absl::string_view run_id);
  absl::Status Put(absl::string_view run_id, const v1::Run& run, absl::string_view request_id);
  absl::StatusOr<std::vector<StoredRun>> List();
  // With its reports. OK when there is none.
  absl::Status Delete(absl::string_view run_id);

  absl::Status AppendReport(absl::string_view run_id, const v1::IterationReport& report);
  absl::StatusOr<std::vector<v1::IterationReport>> Reports(absl::string_view run_id, uint64_t after_iteration,
                                                           int limit);

 private:
  explicit RunCatalogue(std::string path) : path_(std::move(path)) {}

  absl::Status Prepare();
  absl::Status Execute(const char* sql) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Error(absl::string_view what) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  class Statement;

  const std::string path_;
  absl::Mutex mutex_;
  sqlite3* db_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_RUN_CATALOGUE_H_
