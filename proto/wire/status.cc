#include "proto/wire/status.h"

#include "absl/strings/str_cat.h"

namespace hfopt::wire {

std::string Shortened(const std::string& text, size_t most) {
  return text.size() <= most ? text : absl::StrCat(text.substr(0, most), "... (", text.size(), " bytes)");
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  constexpr size_t kMostBytes = 4000;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), Shortened(std::string(status.message()), kMostBytes));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace hfopt::wire
