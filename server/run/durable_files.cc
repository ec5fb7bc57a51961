#include "server/run/durable_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/status_macros.h"

namespace hfopt::server {
namespace {

namespace fs = std::filesystem;

absl::Status StatusOf(const std::error_code& error, const std::string& path, absl::string_view what) {
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(), absl::StrCat(path, ": cannot ", what));
}

}  // namespace

absl::Status SyncDirectory(const std::string& directory) {
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat(directory, ": cannot open"));
  // EINVAL: a file system that has nothing to sync in a directory.
  const int error = fsync(descriptor) == 0 || errno == EINVAL ? 0 : errno;
  close(descriptor);
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat(directory, ": cannot sync"));
  return absl::OkStatus();
}

absl::Status CreateDirectory(const std::string& directory) {
  HFOPT_ASSIGN_OR_RETURN(const bool exists, IsDirectory(directory));
  if (exists) return absl::OkStatus();
  if (std::error_code ignored; fs::exists(directory, ignored)) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " is a file, and a directory is needed there; move it away, or use another directory"));
  }
  const std::string parent = fs::path(directory).parent_path();
  if (!parent.empty()) HFOPT_RETURN_IF_ERROR(CreateDirectory(parent));
  std::error_code error;
  fs::create_directory(directory, error);
  HFOPT_RETURN_IF_ERROR(StatusOf(error, directory, "create the directory"));
  return SyncDirectory(parent.empty() ? "." : parent);
}

absl::Status Remove(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return StatusOf(error, path, "remove");
}

absl::Status Rename(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  return StatusOf(error, to, absl::StrCat("rename ", fs::path(from).filename().string(), " to it"));
}

absl::StatusOr<bool> IsDirectory(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return false;
  HFOPT_RETURN_IF_ERROR(StatusOf(error, path, "look at"));
  return status.type() == fs::file_type::directory;
}

absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename());
  }
  HFOPT_RETURN_IF_ERROR(StatusOf(error, directory, "list"));
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::unique_ptr<DirectoryLock>> DirectoryLock::Acquire(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/lock");
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  std::unique_ptr<DirectoryLock> lock(new DirectoryLock(descriptor));
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot lock"));
    char holder[32] = "";
    const ssize_t size = pread(descriptor, holder, sizeof(holder), 0);
    return absl::FailedPreconditionError(absl::StrCat(
        "state directory ", directory, " is used by the server with process id ",
        absl::string_view(holder, std::max<ssize_t>(size, 0)), "; stop that one, or use another directory"));
  }
  const std::string pid = absl::StrCat(getpid());
  if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, pid.data(), pid.size(), 0) < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot write"));
  }
  return lock;
}

DirectoryLock::~DirectoryLock() { close(descriptor_); }

}  // namespace hfopt::server
