#include "proto/wire/status.h"

#include "gtest/gtest.h"

namespace hfopt::wire {
namespace {

TEST(Status, KeepsEveryCodeAndItsMessageBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "run \"an4\" not found");
    const grpc::Status sent = ToGrpc(status);
    EXPECT_EQ(sent.error_code(), code);
    EXPECT_EQ(sent.error_message(), "run \"an4\" not found");
    EXPECT_EQ(FromGrpc(sent), status);
  }
}

TEST(Status, KeepsOk) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

}  // namespace
}  // namespace hfopt::wire
