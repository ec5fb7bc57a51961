#ifndef HFOPT_TESTS_CLIENT_MODELS_MATCHERS_H_
#define HFOPT_TESTS_CLIENT_MODELS_MATCHERS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"

namespace hfopt::models {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& value) {
  return value.status();
}

// A Status or StatusOr with this code whose message matches, for example HasSubstr("file.npy").
MATCHER_P2(IsError, code, message, "") {
  const absl::Status& status = ToStatus(arg);
  *result_listener << status;
  return status.code() == code && testing::ExplainMatchResult(message, std::string(status.message()), result_listener);
}

MATCHER(IsOk, "") {
  *result_listener << ToStatus(arg);
  return ToStatus(arg).ok();
}

}  // namespace hfopt::models

#endif  // HFOPT_TESTS_CLIENT_MODELS_MATCHERS_H_
