#include "client/cpp/channel.h"

#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "tests/client/cpp/socket_address.h"

namespace hfopt::client {
namespace {

TEST(IsLocalTarget, KnowsLoopbackAndUnixSockets) {
  for (const char* local : {"localhost", "localhost:7600", "127.0.0.1:7600", "[::1]:7600", "unix:/run/hfopt.sock",
                            "unix-abstract:hfopt", "dns:///localhost:7600", "ipv4:127.0.0.1:7600", "ipv6:[::1]:7600"}) {
    EXPECT_TRUE(IsLocalTarget(local)) << local;
  }
  for (const char* remote : {"", "hfopt.example.org:7600", "localhost.example.org:7600", "10.0.0.1:7600",
                             "dns:///hfopt:7600", "[2001:db8::1]:7600", "127.example.org:7600", "127.0.0.1.example.org"}) {
    EXPECT_FALSE(IsLocalTarget(remote)) << remote;
  }
}

TEST(MakeChannel, SendsNoTokenInPlaintextToAnotherMachineUnlessItIsTyped) {
  ChannelSecurity security{.token = "secret"};
  for (const char* address : {"hfopt.example.org:1", "10.0.0.1:1", "127.example.org:1"}) {
    const absl::Status refused = MakeChannel(address, security).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << address;
    EXPECT_NE(refused.message().find("plaintext"), absl::string_view::npos);
    EXPECT_EQ(refused.message().find("secret"), absl::string_view::npos);
  }
  EXPECT_TRUE(MakeChannel("127.0.0.1:1", security).ok());
  EXPECT_TRUE(MakeChannel("unix:/tmp/s", security).ok());
  security.insecure = true;
  EXPECT_TRUE(MakeChannel("10.0.0.1:1", security).ok());
  EXPECT_TRUE(MakeChannel("10.0.0.1:1", ChannelSecurity{.tls = true, .token = "secret"}).ok());
}

TEST(MakeChannel, NamesTheFileThatCannotBeUsed) {
  EXPECT_EQ(MakeChannel("127.0.0.1:1", ChannelSecurity{.ca_file = "/no/ca.pem"}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MakeChannel("127.0.0.1:1", ChannelSecurity{.token_file = "/no/token"}).status().code(), absl::StatusCode::kNotFound);
  const absl::Status no_tls = MakeChannel("127.0.0.1:1", ChannelSecurity{.cert_file = "c", .key_file = "k"}).status();
  EXPECT_NE(no_tls.message().find("--ca"), absl::string_view::npos) << no_tls;
}

TEST(PauseBeforeRetry, EndsOnceAServerIsThere) {
  const std::string address = SocketAddress();
  const auto channel = MakeChannel(address);
  v1::EvaluationService::Service service;
  std::unique_ptr<grpc::Server> server;
  PauseBeforeRetry(*channel, absl::Hours(1), [&] {
    if (server == nullptr && channel->GetState(false) == GRPC_CHANNEL_TRANSIENT_FAILURE) {
      grpc::ServerBuilder builder;
      builder.RegisterService(&service);
      builder.AddListeningPort(address, grpc::InsecureServerCredentials());
      server = builder.BuildAndStart();
    }
    return false;
  });
  EXPECT_EQ(channel->GetState(false), GRPC_CHANNEL_READY);
}

TEST(PauseBeforeRetry, EndsWhenItIsStopped) {
  const auto channel = MakeChannel(SocketAddress());
  PauseBeforeRetry(*channel, absl::Hours(1), [] { return true; });
}

}  // namespace
}  // namespace hfopt::client
