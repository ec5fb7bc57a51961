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

TEST(Status, CutsAMessageThatWouldNotFitIntoHeaders) {
  const grpc::Status cut = ToGrpc(absl::InternalError(std::string(100'000, 'x')));
  EXPECT_LT(cut.error_message().size(), 4100u);
  EXPECT_EQ(cut.error_message().substr(4000), "... (100000 bytes)");
}

}  // namespace
}  // namespace hfopt::wire
