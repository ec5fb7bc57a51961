// Who gets in: every method with every caller, in every mode of the server; certificates and tokens that change; what the network may see.

#include <sys/stat.h>

#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cli/certificate_authority.h"
#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "hfopt/v1/run_service.pb.h"
#include "proto/tls/certificate_files.h"
#include "tests/support/local_objective.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A CA, a server's certificate and a caller's for each role, in a directory; the same from another CA in DIR/other; and tokens.
class Credentials {
 public:
  Credentials() {
    const absl::Time now = absl::Now();
    for (const std::string& folder : {std::string(), std::string("/other")}) {
      std::filesystem::create_directories(directory_.path() + folder);
      const cli::CertificateAuthority ca = cli::CertificateAuthority::Create("test CA", now, absl::Hours(1)).value();
      Write(folder + "/ca", ca.pem());
      Write(folder + "/server", ca.IssueServer("server", {"localhost", "127.0.0.1", "::1"}, now, absl::Hours(1)).value());
      for (const char* role : {"reader", "worker", "operator", "king"}) {
        Write(absl::StrCat(folder, "/", role), ca.IssueClient(absl::StrCat(role, "-cert"), role, now, absl::Hours(1)).value());
      }
      if (folder.empty()) ca_ = ca;
    }
    // SHA-256 of "token-reader", "token-worker" and "token-operator".
    std::ofstream(File("tokens"))
        << "reader r sha256:7a4d527c9045b7d62f2490bdb77f314ba7c4cc93b0f34fc7ca8a7c046202ce27\n"
        << "worker w sha256:09dc51a63e75d4dacd276c7afc01d44394dfc39f50b699e8b4353c6557cdc308\n"
        << "operator o sha256:af5bfcc34d20234ae0bc05473d87a67a477d51ce8ecac77a4fb895b9be222ede\n";
    chmod(File("tokens").c_str(), 0600);
  }

  std::string File(const std::string& name) const { return directory_.path() + "/" + name; }
  const cli::CertificateAuthority& ca() const { return *ca_; }
  void Write(const std::string& name, const cli::KeyPair& pair) const {
    for (const auto& [suffix, text] : {std::pair{".key", pair.key}, std::pair{".pem", pair.certificate}}) {
      std::ofstream(File(name + suffix + ".next")) << text;
      std::filesystem::rename(File(name + suffix + ".next"), File(name + suffix));
    }
  }

  server::ServerOptions Server(bool tls, bool certificates, bool tokens) const {
    server::ServerOptions options{.address = "127.0.0.1:0", .memory_limit_mib = TestServer::kMemoryLimitMib, .tls_reload_interval = absl::Seconds(1)};
    if (tls) {
      options.tls_cert = File("server.pem");
      options.tls_key = File("server.key");
    }
    if (certificates) options.tls_client_ca = File("ca.pem");
    if (tokens) options.tokens = File("tokens");
    return options;
  }

  // A caller over TLS who shows the certificate NAME (with its folder), if any, and a token, if any.
  client::ChannelSecurity Tls(const std::string& certificate = "", const std::string& token = "") const {
    client::ChannelSecurity security{.ca_file = File("ca.pem"), .token = token};
    if (!certificate.empty()) {
      security.cert_file = File(certificate + ".pem");
      security.key_file = File(certificate + ".key");
    }
    return security;
  }

 private:
  TemporaryDirectory directory_;
  std::optional<cli::CertificateAuthority> ca_;
};

// What a call of a method of any kind with an empty message ends in.
absl::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
  grpc::CompletionQueue queue;
  const auto stream = stub.PrepareCall(&context, method, &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
  const grpc::Slice nothing;
  stream->StartCall(nullptr);
  if (wait()) {
    stream->WriteLast(grpc::ByteBuffer(&nothing, 1), {}, nullptr);
    wait();
  }
  grpc::ByteBuffer response;
  do {
    stream->Read(&response, nullptr);
  } while (wait());
  grpc::Status status;
  stream->Finish(&status, nullptr);
  wait();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// The methods of both services and the role that each takes.
const std::map<std::string, v1::Role> kMethods = {
    {"RunService/GetServer", v1::ROLE_READER},        {"RunService/CreateRun", v1::ROLE_OPERATOR},
    {"RunService/GetRun", v1::ROLE_READER},           {"RunService/ListRuns", v1::ROLE_READER},
    {"RunService/StartRun", v1::ROLE_OPERATOR},       {"RunService/PauseRun", v1::ROLE_OPERATOR},
    {"RunService/ResumeRun", v1::ROLE_OPERATOR},      {"RunService/CancelRun", v1::ROLE_OPERATOR},
    {"RunService/DeleteRun", v1::ROLE_OPERATOR},      {"RunService/WatchRun", v1::ROLE_READER},
    {"RunService/UploadParameters", v1::ROLE_OPERATOR}, {"RunService/DownloadParameters", v1::ROLE_READER},
    {"EvaluationService/Session", v1::ROLE_WORKER},
};

TEST(Security, TheTableHasEveryMethod) {
  std::vector<std::string> methods;
  for (const google::protobuf::FileDescriptor* file : {v1::GetServerRequest::descriptor()->file(), v1::SessionRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        methods.push_back(absl::StrCat(file->service(s)->name(), "/", file->service(s)->method(m)->name()));
      }
    }
  }
  EXPECT_EQ(methods.size(), kMethods.size());
  for (const std::string& method : methods) EXPECT_TRUE(kMethods.contains(method)) << method;
}

// Calls every method and expects to be let in according to the role; ROLE_UNSPECIFIED: not known to the server.
void ExpectRole(const std::shared_ptr<grpc::Channel>& channel, v1::Role role, const std::string& who) {
  for (const auto& [method, needed] : kMethods) {
    const absl::Status status = Call(channel, absl::StrCat("/hfopt.v1.", method));
    if (role == v1::ROLE_UNSPECIFIED) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << who << " " << method << ": " << status;
    } else if (role < needed) {
      EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << who << " " << method << ": " << status;
    } else {
      // An empty request asks for nothing that there is; what matters is that the handler answered.
      EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status) || absl::IsNotFound(status)) << who << " " << method << ": " << status;
    }
  }
}

TEST(Security, WithoutCredentialsEverybodyIsAnOperator) {
  TestServer server;
  ExpectRole(client::MakeChannel(server.address()), v1::ROLE_OPERATOR, "anybody");
  EXPECT_EQ(server.Client().GetServer()->role(), v1::ROLE_OPERATOR);
}

TEST(Security, EveryMethodWithEveryTokenInPlaintextAndOverTls) {
  const Credentials credentials;
  for (const bool tls : {false, true}) {
    TestServer server(credentials.Server(tls, /*certificates=*/false, /*tokens=*/true));
    const auto channel = [&](const std::string& token) {
      client::ChannelSecurity security = tls ? credentials.Tls() : client::ChannelSecurity();
      security.token = token;
      return client::MakeChannel(server.address(), security).value();
    };
    ExpectRole(channel(""), v1::ROLE_UNSPECIFIED, "no token");
    ExpectRole(channel("token-king"), v1::ROLE_UNSPECIFIED, "an unknown token");
    ExpectRole(channel("token-reader"), v1::ROLE_READER, "a reader");
    ExpectRole(channel("token-worker"), v1::ROLE_WORKER, "a worker");
    ExpectRole(channel("token-operator"), v1::ROLE_OPERATOR, "an operator");
    const auto who = client::RunClient(channel("token-worker")).GetServer();
    ASSERT_TRUE(who.ok()) << who.status();
    EXPECT_EQ(who->caller(), "w");
    EXPECT_EQ(who->role(), v1::ROLE_WORKER);
  }
}

TEST(Security, EveryMethodWithEveryCertificate) {
  const Credentials credentials;
  TestServer server(credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/false));
  const auto channel = [&](const std::string& certificate) { return client::MakeChannel(server.address(), credentials.Tls(certificate)).value(); };
  ExpectRole(channel("reader"), v1::ROLE_READER, "a reader");
  ExpectRole(channel("worker"), v1::ROLE_WORKER, "a worker");
  ExpectRole(channel("operator"), v1::ROLE_OPERATOR, "an operator");
  ExpectRole(channel("king"), v1::ROLE_UNSPECIFIED, "a certificate without one of our roles");
  EXPECT_EQ(client::RunClient(channel("worker")).GetServer()->caller(), "worker-cert");
  // These do not get as far as a call.
  for (const std::string certificate : {"", "other/operator", "server"}) {
    EXPECT_EQ(Call(channel(certificate), "/hfopt.v1.RunService/ListRuns").code(), absl::StatusCode::kUnavailable) << certificate;
  }
  client::ChannelSecurity other_ca = credentials.Tls("operator");
  other_ca.ca_file = credentials.File("other/ca.pem");
  EXPECT_EQ(Call(client::MakeChannel(server.address(), other_ca).value(), "/hfopt.v1.RunService/ListRuns").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Call(client::MakeChannel(server.address()), "/hfopt.v1.RunService/ListRuns").code(), absl::StatusCode::kUnavailable);
}

TEST(Security, ATokenOrACertificateWhereTheServerTakesBoth) {
  const Credentials credentials;
  TestServer server(credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/true));
  const auto channel = [&](const std::string& certificate, const std::string& token) {
    return client::MakeChannel(server.address(), credentials.Tls(certificate, token)).value();
  };
  ExpectRole(channel("", "token-worker"), v1::ROLE_WORKER, "a token");
  ExpectRole(channel("reader", ""), v1::ROLE_READER, "a certificate");
  ExpectRole(channel("", ""), v1::ROLE_UNSPECIFIED, "neither");
  // The token counts, also where it is worth less or nothing.
  ExpectRole(channel("operator", "token-reader"), v1::ROLE_READER, "both");
  ExpectRole(channel("operator", "token-king"), v1::ROLE_UNSPECIFIED, "an unknown token");
  EXPECT_EQ(Call(channel("other/operator", ""), "/hfopt.v1.RunService/ListRuns").code(), absl::StatusCode::kUnavailable);
}

TEST(Security, TheServersNameIsChecked) {
  const Credentials credentials;
  credentials.Write("server", credentials.ca().IssueServer("server", {"hfopt.example.org"}, absl::Now(), absl::Hours(1)).value());
  TestServer server(credentials.Server(/*tls=*/true, /*certificates=*/false, /*tokens=*/true));
  EXPECT_EQ(Call(client::MakeChannel(server.address(), credentials.Tls("", "token-reader")).value(), "/hfopt.v1.RunService/ListRuns").code(),
            absl::StatusCode::kUnavailable);
}

TEST(Security, ARunOverMutualTlsHasTheBitsOfTheOptimizerAlone) {
  const auto model = [] { return models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-10", .l2 = 1e-4}).value(); };
  v1::OptimizerOptions optimizer;
  optimizer.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  optimizer.mutable_stop()->set_max_iterations(3);

  const Credentials credentials;
  TestServer server(credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/false));
  client::RunClient runs(client::MakeChannel(server.address(), credentials.Tls("operator")).value());
  v1::RunOptions options;
  options.set_element_type(v1::ELEMENT_TYPE_FLOAT32);
  options.set_shards(2);
  options.set_seed(7);
  *options.mutable_optimizer() = optimizer;
  ASSERT_TRUE(runs.Create("a", options).ok());
  const auto started = runs.Start("a");
  ASSERT_TRUE(started.ok()) << started.status();
  // One through shared memory and one in chunks over TLS.
  const auto channel = client::MakeChannel(server.address(), credentials.Tls("worker")).value();
  WorkerThread<float> one(model(), channel, "a", "one"), two(model(), channel, "a", "two", {}, /*shared_memory=*/false);
  const auto end = runs.Watch("a", 0, [](const auto&) { return true; });
  ASSERT_TRUE(end.ok()) << end.status();
  const auto remote = runs.DownloadLast<float>("a");
  ASSERT_TRUE(remote.ok()) << remote.status();

  const auto local_model = model();
  LocalObjective<float> objective(*local_model, 2);
  const OptimizerState<float> local = RunLocally<float>(objective, local_model->InitialParameters(7).value(), started->options().optimizer());
  EXPECT_EQ(remote->theta, local.theta);
}

TEST(Security, CertificatesAreRenewedWhileTheServerRuns) {
  const Credentials credentials;
  TestServer server(credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/false));
  ASSERT_TRUE(Call(client::MakeChannel(server.address(), credentials.Tls("reader")).value(), "/hfopt.v1.RunService/ListRuns").ok());
  // To those of another CA, which no connection would trust before.
  for (const char* name : {"ca", "server", "reader"}) {
    for (const char* suffix : {".key", ".pem"}) {
      std::filesystem::rename(credentials.File(absl::StrCat("other/", name, suffix)), credentials.File(absl::StrCat(name, suffix)));
    }
  }
  absl::Status status = absl::UnavailableError("not tried");
  for (const absl::Time end = absl::Now() + absl::Seconds(30); !status.ok() && absl::Now() < end;) {
    // A new channel each time: a connection keeps what it began with.
    status = Call(client::MakeChannel(server.address(), credentials.Tls("reader")).value(), "/hfopt.v1.RunService/ListRuns");
  }
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Security, HealthIsAnsweredInPlaintextOnItsOwnPortAndNothingElse) {
  const Credentials credentials;
  server::ServerOptions options = credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/false);
  options.health_address = "127.0.0.1:0";
  TestServer server(options);
  const auto probe = client::MakeChannel(server.health_address());
  EXPECT_TRUE(Call(probe, "/grpc.health.v1.Health/Check").ok());
  EXPECT_EQ(Call(probe, "/hfopt.v1.RunService/ListRuns").code(), absl::StatusCode::kUnimplemented);
}

TEST(Security, TokensAreNeitherLoggedNorTold) {
  const Credentials credentials;
  TestServer server(credentials.Server(/*tls=*/false, /*certificates=*/false, /*tokens=*/true));
  std::string told;
  for (const std::string token : {"token-reader", "token-secret-and-wrong"}) {
    const auto channel = client::MakeChannel(server.address(), client::ChannelSecurity{.token = token}).value();
    for (const auto& [method, role] : kMethods) absl::StrAppend(&told, Call(channel, "/hfopt.v1." + method).ToString(), "\n");
  }
  std::ofstream(credentials.File("tokens"), std::ios::app) << "operator o token-secret-in-the-wrong-place\n";
  Call(client::MakeChannel(server.address(), client::ChannelSecurity{.token = "token-reader"}).value(), "/hfopt.v1.RunService/ListRuns").IgnoreError();
  for (const std::string& line : server.log()) absl::StrAppend(&told, line, "\n");
  EXPECT_THAT(told, AllOf(HasSubstr("stay in force"), HasSubstr("takes the role operator"), Not(HasSubstr("token-"))));
}

TEST(Security, AServerDoesNotStartWithFilesItCannotUse) {
  const Credentials credentials;
  const TemporaryDirectory state;
  const auto refusal = [&](const std::function<void(server::ServerOptions&)>& change) {
    server::ServerOptions options = credentials.Server(/*tls=*/true, /*certificates=*/true, /*tokens=*/true);
    options.state_directory = state.path();
    change(options);
    return std::string(server::Server::Start(options, [](const std::string&) {}).status().message());
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_THAT(refusal([&](auto& o) { o.tls_cert = credentials.File("nothing.pem"); }), HasSubstr("nothing.pem"));
  EXPECT_THAT(refusal([&](auto& o) { o.tls_key = credentials.File("reader.key"); }), AllOf(HasSubstr("reader.key"), HasSubstr("not that of"), HasSubstr("server.pem")));
  EXPECT_THAT(refusal([&](auto& o) { o.tls_key = ""; }), HasSubstr("go together"));
  EXPECT_THAT(refusal([&](auto& o) { o.tls_client_ca = credentials.File("tokens"); }), AllOf(HasSubstr("tokens"), HasSubstr("PEM")));
  EXPECT_THAT(refusal([&](auto& o) { o.tokens = credentials.File("no-tokens"); }), HasSubstr("no-tokens"));
  credentials.Write("old", credentials.ca().IssueServer("old", {"localhost"}, absl::Now() - absl::Hours(48), absl::Hours(24)).value());
  EXPECT_THAT(refusal([&](auto& o) {
                o.tls_cert = credentials.File("old.pem");
                o.tls_key = credentials.File("old.key");
              }),
              AllOf(HasSubstr("old.pem"), HasSubstr("in force from"), HasSubstr("renew")));
}

}  // namespace
}  // namespace hfopt::testing
