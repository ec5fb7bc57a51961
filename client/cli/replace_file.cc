#include "client/cli/replace_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace hfopt::cli {

absl::Status CheckReplaceable(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::file_status there = std::filesystem::status(path, ignored);
  if (!std::filesystem::exists(there) || std::filesystem::is_regular_file(there)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path, " is there, and is no file that could be replaced; name another"));
}

absl::Status ReplaceFile(const std::string& path, absl::string_view content, mode_t mode) {
  if (const absl::Status status = CheckReplaceable(path); !status.ok()) return status;
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  if (const int created = open(temporary.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, mode); created >= 0) close(created);
  struct stat old {};
  if (stat(path.c_str(), &old) == 0 && chown(temporary.c_str(), old.st_uid, old.st_gid) != 0) errno = 0;  // only root can, and need not
  std::ofstream file(temporary, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (file && std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const absl::Status status = absl::UnknownError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  std::remove(temporary.c_str());
  return status;
}

}  // namespace hfopt::cli
