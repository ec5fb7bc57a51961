#include "client/cli/replace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace hfopt::cli {

absl::Status ReplaceFile(const std::string& path, absl::string_view content, mode_t mode) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  if (const int created = open(temporary.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, mode); created >= 0) close(created);
  std::ofstream file(temporary, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (file && std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const absl::Status status = absl::UnknownError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  std::remove(temporary.c_str());
  return status;
}

}  // namespace hfopt::cli
