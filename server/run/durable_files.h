#ifndef HFOPT_SERVER_RUN_DURABLE_FILES_H_
#define HFOPT_SERVER_RUN_DURABLE_FILES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Changes of a file system that survive power loss. A file's name lives in its directory: creating, renaming and
// removing last only once the directory is synced, too. Errors are those of the system calls, with the path.
namespace hfopt::server {

absl::Status SyncDirectory(const std::string& directory);

// Creates it and its missing parents. OK when it is there already; FAILED_PRECONDITION when one of them is a file.
absl::Status CreateDirectory(const std::string& directory);

// Removes a file, or a directory with all in it. OK when there is none. Not synced.
absl::Status Remove(const std::string& path);

// Replaces what is at `to`. Not synced.
absl::Status Rename(const std::string& from, const std::string& to);

absl::StatusOr<bool> IsDirectory(const std::string& path);

// The names of the entries, sorted; empty when there is no such directory.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& directory);

// Exclusive use of a directory among the processes, and the openers in one process, that ask for it by this class. The
// kernel gives it up with the process, however that ends.
class DirectoryLock {
 public:
  // Keeps the file "lock" in `directory`. FAILED_PRECONDITION, naming the holder, when it is taken.
  static absl::StatusOr<std::unique_ptr<DirectoryLock>> Acquire(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  explicit DirectoryLock(int descriptor) : descriptor_(descriptor) {}

  int descriptor_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_DURABLE_FILES_H_
