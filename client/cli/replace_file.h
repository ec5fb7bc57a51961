#ifndef HFOPT_CLIENT_CLI_REPLACE_FILE_H_
#define HFOPT_CLIENT_CLI_REPLACE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hfopt::cli {

// Writes a file; an older one of this name is replaced only once the new one is complete.
absl::Status ReplaceFile(const std::string& path, absl::string_view content);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_REPLACE_FILE_H_
