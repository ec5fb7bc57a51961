#include "client/cli/exit_code.h"

namespace hfopt::cli {

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kUsage;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnavailable;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kPrecondition;
    case absl::StatusCode::kAlreadyExists:
      return kAlreadyExists;
    case absl::StatusCode::kResourceExhausted:
      return kExhausted;
    case absl::StatusCode::kDataLoss:
      return kDataLoss;
    case absl::StatusCode::kCancelled:
      return kInterrupted;
    default:
      return kFailed;
  }
}

std::string ExitCodeHelp() {
  return R"(Exit codes:
    0  done
    1  failed; the message says why
    2  wrong usage: an option or its value
    3  not found: a run, a file, a checkpoint
    4  unavailable: no server answers, or not in time
    5  not now: the state of the run, or a missing right, forbids it
    6  exists already
    7  does not fit: memory or disk
    8  damaged data
  130  interrupted)";
}

}  // namespace hfopt::cli
