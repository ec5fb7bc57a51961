#include "server/server_options.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ServerOptions, ListensOnLoopbackByDefault) {
  EXPECT_TRUE(ServerOptions().Validate().ok());
  EXPECT_TRUE(ServerOptions().is_local());
}

TEST(ServerOptions, RefusesAPublicAddressUnlessInsecureIsTyped) {
  for (const char* address : {"0.0.0.0:1", "[::]:1", "example.org:7447", "10.0.0.1:7447"}) {
    ServerOptions options{.address = address};
    EXPECT_THAT(std::string(options.Validate().message()), HasSubstr("--insecure")) << address;
    options.insecure = true;
    EXPECT_TRUE(options.Validate().ok()) << address;
  }
  for (const char* address : {"127.0.0.1:0", "localhost:1", "[::1]:1", "unix:/tmp/s"}) {
    EXPECT_TRUE(ServerOptions{.address = address}.Validate().ok()) << address;
  }
}

TEST(ServerOptions, APublicAddressTakesEncryptionAndAuthentication) {
  const ServerOptions tls{.address = "0.0.0.0:1", .tls_cert = "c", .tls_key = "k"};
  EXPECT_THAT(std::string(tls.Validate().message()), AllOf(HasSubstr("not asked who they are"), HasSubstr("--tokens"), HasSubstr("--insecure")));
  const ServerOptions token{.address = "0.0.0.0:1", .tokens = "t"};
  EXPECT_THAT(std::string(token.Validate().message()), AllOf(HasSubstr("not encrypted"), HasSubstr("--tls-cert"), HasSubstr("--insecure")));
  ServerOptions both = tls;
  both.tokens = "t";
  EXPECT_TRUE(both.Validate().ok());
  both.tokens = "";
  both.tls_client_ca = "a";
  EXPECT_TRUE(both.Validate().ok());
  EXPECT_THAT(std::string(ServerOptions{.tls_client_ca = "a"}.Validate().message()), HasSubstr("--tls-cert"));
}

TEST(ServerOptions, ANameThatBeginsLikeLoopbackIsPublic) {
  for (const char* address : {"127.example.org:1", "127.0.0.1.example.org:1", "localhost.example.org:1", "[::1].example.org:1"}) {
    EXPECT_FALSE(ServerOptions{.address = address}.is_local()) << address;
  }
}

TEST(ServerOptions, NamesTheBadValue) {
  EXPECT_THAT(std::string(ServerOptions{.address = "here"}.Validate().message()), HasSubstr("\"here\""));
  for (const char* port : {"99999", "65536", "-1", "", "http", "12x", "4294967297"}) {
    const absl::Status refused = ServerOptions{.address = absl::StrCat("127.0.0.1:", port)}.Validate();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << port;
    EXPECT_THAT(std::string(refused.message()),
                AllOf(HasSubstr(absl::StrCat("\"", port, "\"")), HasSubstr("0 (chosen by the system) to 65535")));
  }
  for (const char* address : {"127.0.0.1:65535", "unix:/tmp/s:99999"}) {
    EXPECT_TRUE(ServerOptions{.address = address}.Validate().ok()) << address;
  }
  EXPECT_THAT(std::string(ServerOptions{.health_address = "1:99999"}.Validate().message()), HasSubstr("--health-address"));
  EXPECT_THAT(std::string(ServerOptions{.address = "unix:"}.Validate().message()), HasSubstr("unix:PATH"));
  EXPECT_THAT(std::string(ServerOptions{.lease_seconds = 0}.Validate().message()), HasSubstr("--lease is 0"));
  EXPECT_THAT(std::string(ServerOptions{.transfer_idle_seconds = 0}.Validate().message()), HasSubstr("--transfer-idle is 0 s; allowed: 0.05"));
  EXPECT_THAT(std::string(ServerOptions{.keep_checkpoints = 0}.Validate().message()), HasSubstr("--keep-checkpoints"));
  EXPECT_THAT(std::string(ServerOptions{.memory_limit_mib = -1}.Validate().message()), HasSubstr("--memory-limit"));
}

}  // namespace
}  // namespace hfopt::server
