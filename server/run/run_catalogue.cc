#include "server/run/run_catalogue.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "sqlite3.h"

namespace hfopt::server {
namespace {

constexpr int kSchemaVersion = 1;
constexpr char kSchema[] = R"(
  BEGIN IMMEDIATE;
  CREATE TABLE runs (run_id TEXT PRIMARY KEY, request_id TEXT NOT NULL, run BLOB NOT NULL) STRICT;
  CREATE TABLE reports (
    run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
    iteration INTEGER NOT NULL,
    report BLOB NOT NULL,
    PRIMARY KEY (run_id, iteration)) STRICT;
  PRAGMA user_version = 1;
  COMMIT;
)";
// FULL: a commit in the write-ahead log reaches the disk before it returns. NORMAL would lose the last ones with the
// power.
constexpr char kSettings[] = R"(
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = FULL;
  PRAGMA foreign_keys = ON;
)";
constexpr int kBusyMilliseconds = 5000;  // for a person's sqlite3 shell on the same file

// " (12 bytes free)"; empty when that cannot be found out.
std::string FreeSpace(const std::string& path) {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path, error);
  return error ? "" : absl::StrCat(" (", space.available, " bytes free)");
}

constexpr uint64_t kMaxIteration = std::numeric_limits<int64_t>::max();

}  // namespace

// A prepared statement: bind all parameters, in order, then step through the rows.
class RunCatalogue::Statement {
 public:
  Statement(RunCatalogue& catalogue, const char* sql) : catalogue_(catalogue) {
    sqlite3_prepare_v2(catalogue.db_, sql, -1, &statement_, nullptr);
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Text(absl::string_view text) {
    sqlite3_bind_text64(statement_, ++bound_, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    return *this;
  }
  Statement& Blob(const std::string& bytes) {
    // Zero bytes are an empty blob, not NULL: a message may have no field set.
    sqlite3_bind_blob64(statement_, ++bound_, bytes.c_str(), bytes.size(), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& Integer(int64_t number) {
    sqlite3_bind_int64(statement_, ++bound_, number);
    return *this;
  }

  // True when there is a(nother) row.
  absl::StatusOr<bool> Step(absl::string_view what) {
    const int code = statement_ == nullptr ? SQLITE_ERROR : sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return catalogue_.Error(what);
  }
  absl::Status Run(absl::string_view what) { return Step(what).status(); }

  int64_t Number(int column) const { return sqlite3_column_int64(statement_, column); }
  // Valid until the next step.
  absl::string_view Bytes(int column) const {
    const auto* bytes = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    return {bytes, static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
  }

 private:
  RunCatalogue& catalogue_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

absl::StatusOr<std::unique_ptr<RunCatalogue>> RunCatalogue::Open(const std::string& path) {
  std::unique_ptr<RunCatalogue> catalogue(new RunCatalogue(path));
  HFOPT_RETURN_IF_ERROR(catalogue->Prepare());
  return catalogue;
}

RunCatalogue::~RunCatalogue() { sqlite3_close(db_); }

absl::Status RunCatalogue::Prepare() {
  absl::MutexLock lock(&mutex_);
  // The mutex is ours, so SQLite needs none.
  constexpr int kFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path_.c_str(), &db_, kFlags, nullptr) != SQLITE_OK) return Error("open");
  sqlite3_busy_timeout(db_, kBusyMilliseconds);
  HFOPT_RETURN_IF_ERROR(Execute(kSettings));

  int64_t version = 0;
  {
    Statement statement(*this, "PRAGMA user_version");
    HFOPT_RETURN_IF_ERROR(statement.Step("open").status());
    version = statement.Number(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path_, ": has schema version ", version,
                                                      "; this server reads up to ", kSchemaVersion,
                                                      "; use the server that wrote it, or a later one"));
  }
  return version == kSchemaVersion ? absl::OkStatus() : Execute(kSchema);
}

absl::Status RunCatalogue::Execute(const char* sql) {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus() : Error("open");
}

absl::Status RunCatalogue::Error(absl::string_view what) const {
  const std::string message = absl::StrCat(path_, ": cannot ", what, ": ", sqlite3_errmsg(db_));
  switch (sqlite3_errcode(db_) & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(absl::StrCat(message, FreeSpace(path_), "; free space on its file system"));
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(
          absl::StrCat(message, "; let the server's user write to the file and its directory"));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(message, "; close the other program that uses it"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(
          absl::StrCat(message,
                       "; put back a copy of it. Without one, move it and the directory runs beside it away, create the "
                       "runs anew, and give each its parameters, which the checkpoints hold whatever became of this "
                       "file: hfopt params upload ID runs/ID/best.safetensors"));
    case SQLITE_IOERR:
      return absl::InternalError(absl::StrCat(message, "; look after the disk, its quota and its space"));
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<bool> RunCatalogue::Contains(absl::string_view run_id) {
  absl::MutexLock lock(&mutex_);
  return Statement(*this, "SELECT 1 FROM runs WHERE run_id = ?").Text(run_id).Step("look up a run");
}

absl::Status RunCatalogue::Put(absl::string_view run_id, const v1::Run& run, absl::string_view request_id) {
  absl::MutexLock lock(&mutex_);
  HFOPT_FAILPOINT_OR_RETURN("catalogue.write");
  // Not INSERT OR REPLACE, which deletes the old row, and with it the reports.
  return Statement(*this,
                   "INSERT INTO runs (run_id, request_id, run) VALUES (?, ?, ?)"
                   " ON CONFLICT (run_id) DO UPDATE SET request_id = excluded.request_id, run = excluded.run")
      .Text(run_id)
      .Text(request_id)
      .Blob(run.SerializeAsString())
      .Run("store a run");
}

absl::StatusOr<std::vector<StoredRun>> RunCatalogue::List() {
  absl::MutexLock lock(&mutex_);
  std::vector<StoredRun> runs;
  Statement statement(*this, "SELECT run_id, request_id, run FROM runs ORDER BY run_id");
  while (true) {
    HFOPT_ASSIGN_OR_RETURN(const bool more, statement.Step("list runs"));
    if (!more) return runs;
    StoredRun& stored = runs.emplace_back();
    stored.request_id = std::string(statement.Bytes(1));
    const absl::string_view bytes = statement.Bytes(2);
    if (!stored.run.ParseFromArray(bytes.data(), bytes.size())) {
      return absl::DataLossError(absl::StrCat(path_, ": the ", bytes.size(), " bytes of run ", statement.Bytes(0),
                                              " are no hfopt.v1.Run; put back a copy of the file"));
    }
  }
}

absl::Status RunCatalogue::Delete(absl::string_view run_id) {
  absl::MutexLock lock(&mutex_);
  HFOPT_FAILPOINT_OR_RETURN("catalogue.write");
  return Statement(*this, "DELETE FROM runs WHERE run_id = ?").Text(run_id).Run("delete a run");
}

absl::Status RunCatalogue::AppendReport(absl::string_view run_id, const v1::IterationReport& report) {
  if (report.iteration() > kMaxIteration) {
    return absl::InvalidArgumentError(
        absl::StrCat("report.iteration is ", report.iteration(), "; allowed: up to ", kMaxIteration));
  }
  absl::MutexLock lock(&mutex_);
  HFOPT_FAILPOINT_OR_RETURN("catalogue.write");
  const absl::Status status =
      Statement(*this, "INSERT OR REPLACE INTO reports (run_id, iteration, report) VALUES (?, ?, ?)")
          .Text(run_id)
          .Integer(report.iteration())
          .Blob(report.SerializeAsString())
          .Run("store a report");
  if (!status.ok() && sqlite3_extended_errcode(db_) == SQLITE_CONSTRAINT_FOREIGNKEY) {
    return absl::NotFoundError(absl::StrCat("run ", run_id, " is not in the catalogue"));
  }
  return status;
}

absl::StatusOr<std::vector<v1::IterationReport>> RunCatalogue::Reports(absl::string_view run_id,
                                                                       uint64_t after_iteration, int limit) {
  if (limit < 1) return absl::InvalidArgumentError(absl::StrCat("limit is ", limit, "; allowed: at least 1"));
  absl::MutexLock lock(&mutex_);
  std::vector<v1::IterationReport> reports;
  Statement statement(*this,
                      "SELECT report FROM reports WHERE run_id = ? AND iteration > ? ORDER BY iteration LIMIT ?");
  statement.Text(run_id).Integer(std::min(after_iteration, kMaxIteration)).Integer(limit);
  while (true) {
    HFOPT_ASSIGN_OR_RETURN(const bool more, statement.Step("read reports"));
    if (!more) return reports;
    const absl::string_view bytes = statement.Bytes(0);
    if (!reports.emplace_back().ParseFromArray(bytes.data(), bytes.size())) {
      return absl::DataLossError(absl::StrCat(path_, ": a report of run ", run_id,
                                              " is no hfopt.v1.IterationReport; put back a copy of the file"));
    }
  }
}

}  // namespace hfopt::server
