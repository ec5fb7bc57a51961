#ifndef HFOPT_CLIENT_CLI_EXIT_CODE_H_
#define HFOPT_CLIENT_CLI_EXIT_CODE_H_

#include <string>

#include "absl/status/status.h"

namespace hfopt::cli {

// How hfopt and hfopt-worker end: promised to scripts.
enum ExitCode {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kNotFound = 3,
  kUnavailable = 4,
  kPrecondition = 5,
  kAlreadyExists = 6,
  kExhausted = 7,
  kDataLoss = 8,
  kInterrupted = 130,  // as shells report SIGINT
};

ExitCode ExitCodeOf(const absl::Status& status);

// The table of exit codes, for --help.
std::string ExitCodeHelp();

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_EXIT_CODE_H_
