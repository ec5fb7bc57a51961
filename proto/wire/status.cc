#include "proto/wire/status.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace hfopt::wire {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  constexpr size_t kMostBytes = 4000;
  std::string message(status.message());
  if (message.size() > kMostBytes) message = absl::StrCat(message.substr(0, kMostBytes), "... (", message.size(), " bytes)");
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace hfopt::wire
