#ifndef HFOPT_CLIENT_CLI_REPLACE_FILE_H_
#define HFOPT_CLIENT_CLI_REPLACE_FILE_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hfopt::cli {

// OK where a file may be put in the place of what is there; INVALID_ARGUMENT when that is a device, a pipe or a directory.
absl::Status CheckReplaceable(const std::string& path);

// Writes a file; an older one of this name is replaced only once the new one is complete, and the new one belongs to its
// owner where that is allowed. `mode` is that of a new file, less the umask.
absl::Status ReplaceFile(const std::string& path, absl::string_view content, mode_t mode = 0666);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_REPLACE_FILE_H_
