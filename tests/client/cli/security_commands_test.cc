// hfopt certs, token and doctor as programs, against a real server.

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/cli/program.h"

namespace hfopt::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

mode_t ModeOf(const std::string& file) {
  struct stat status {};
  EXPECT_EQ(stat(file.c_str(), &status), 0) << file;
  return status.st_mode & 0777;
}

class SecurityCommands : public ::testing::Test {
 protected:
  // Starts a server, by default on a port of the system's choice, in the place of an earlier one.
  void StartServer(std::vector<std::string> options, const std::string& address = "127.0.0.1:0") {
    server_.reset();
    options.insert(options.begin(), {HFOPT_SERVER_BINARY, "--address", address, "--state-dir", directory_ / "state"});
    server_.emplace(options);
    address_ = server_->AwaitErrorLine("listening on ");
  }
  void StartTlsServer(std::vector<std::string> more, const std::string& address = "127.0.0.1:0") {
    ASSERT_EQ(Hfopt({"certs", "--dir", certs_, "--name", "hfopt.example.org"}).code, 0);
    std::vector<std::string> options = {"--tls-cert", certs_ + "/server.pem", "--tls-key", certs_ + "/server.key"};
    options.insert(options.end(), more.begin(), more.end());
    StartServer(options, address);
  }
  std::vector<std::string> As(const std::string& role) const {
    return {"--ca", certs_ + "/ca.pem", "--cert", certs_ + "/" + role + ".pem", "--key", certs_ + "/" + role + ".key"};
  }
  // The doctor's steps and exit code. The last step of a visit that fails is the one that failed.
  Outcome Doctor(const std::string& address, std::vector<std::string> options = {}) {
    options.insert(options.begin(), {"doctor", address});
    return Hfopt(options);
  }

  TemporaryDirectory directory_;
  const std::string certs_ = directory_ / "certs";
  std::optional<testing::Process> server_;
  std::string address_;
};

TEST_F(SecurityCommands, CertsMakesWhatAServerAndItsCallersNeedAndRenewsIt) {
  const Outcome made = Hfopt({"certs", "--dir", certs_, "--name", "gpu-1.example.org"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.out, AllOf(HasSubstr("localhost"), HasSubstr("host.docker.internal"), HasSubstr("gpu-1.example.org"), HasSubstr("--tls-client-ca")));
  for (const std::string name : {"ca", "server", "operator", "worker", "reader"}) {
    EXPECT_EQ(ModeOf(certs_ + "/" + name + ".key"), 0600u) << name;
    EXPECT_THAT(ReadFile(certs_ + "/" + name + ".pem"), HasSubstr("BEGIN CERTIFICATE"));
  }
  const std::string ca = ReadFile(certs_ + "/ca.pem"), server = ReadFile(certs_ + "/server.pem");
  ASSERT_EQ(Hfopt({"certs", "--dir", certs_}).code, 0);
  EXPECT_EQ(ReadFile(certs_ + "/ca.pem"), ca);
  EXPECT_NE(ReadFile(certs_ + "/server.pem"), server);

  std::filesystem::remove(certs_ + "/ca.key");
  const Outcome no_key = Hfopt({"certs", "--dir", certs_});
  EXPECT_EQ(no_key.code, 2);
  EXPECT_THAT(no_key.err, AllOf(HasSubstr("ca.key"), HasSubstr("--dir")));
  EXPECT_EQ(Hfopt({"certs", "--dir", directory_ / "new", "--name", "a name"}).code, 2);
}

TEST_F(SecurityCommands, TokensAreShownOnceAndKeptAsDigests) {
  const std::string file = directory_ / "tokens";
  const Outcome reader = Hfopt({"token", "ann", "--role", "reader", "--tokens", file});
  const Outcome op = Hfopt({"token", "olga", "--role", "operator", "--tokens", file});
  ASSERT_EQ(op.code, 0) << op.err;
  const std::string token(absl::StripSuffix(op.out, "\n"));
  EXPECT_GT(token.size(), 40u);
  EXPECT_NE(reader.out, op.out);
  EXPECT_EQ(ModeOf(file), 0600u);
  EXPECT_THAT(ReadFile(file), AllOf(HasSubstr("reader ann sha256:"), HasSubstr("operator olga sha256:"), Not(HasSubstr(token))));
  EXPECT_EQ(Hfopt({"token", "a b", "--tokens", file}).code, 2);

  StartServer({"--tokens", file});
  EXPECT_EQ(Hfopt({"run", "create", "a", "--server", address_}).code, 5) << "no token";
  setenv("HFOPT_TOKEN", std::string(absl::StripSuffix(reader.out, "\n")).c_str(), 1);
  EXPECT_EQ(Hfopt({"run", "list", "--server", address_}).code, 0);
  const Outcome refused = Hfopt({"run", "create", "a", "--server", address_});
  EXPECT_EQ(refused.code, 5);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("operator"), HasSubstr("\"ann\" has the role reader")));
  unsetenv("HFOPT_TOKEN");
  std::ofstream(directory_ / "olga") << op.out;
  EXPECT_EQ(Hfopt({"run", "create", "a", "--server", address_, "--token-file", directory_ / "olga"}).code, 0);

  // A worker waits for its run with a token, and stops at once without.
  EXPECT_EQ(RunProgram({HFOPT_WORKER_BINARY, "--server", address_, "--run", "a", "--worker-id", "w", "--task", "digits", "--data", HFOPT_DIGITS_DATA}).code, 5);
}

TEST_F(SecurityCommands, TokensOfOneFileAreNotLostHoweverTheyAreMade) {
  const std::string file = directory_ / "tokens";
  std::vector<std::thread> makers;
  for (int i = 0; i < 8; ++i) {
    makers.emplace_back([&, i] { EXPECT_EQ(Hfopt({"token", absl::StrCat("w", i), "--tokens", file}).code, 0); });
  }
  for (std::thread& maker : makers) maker.join();
  const std::string lines = ReadFile(file);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 8) << lines;
  const Outcome folder = Hfopt({"token", "w", "--tokens", directory_ / ""});
  EXPECT_EQ(folder.code, 2) << folder.err;
  EXPECT_THAT(folder.err, HasSubstr("no file that could be replaced"));
}

TEST_F(SecurityCommands, TheDoctorPassesWhereAllIsWell) {
  StartTlsServer({"--tls-client-ca", certs_ + "/ca.pem"});
  const Outcome well = Doctor(address_, As("worker"));
  EXPECT_EQ(well.code, 0) << well.out << well.err;
  EXPECT_THAT(well.out, AllOf(HasSubstr("127.0.0.1"), HasSubstr("TLSv1"), HasSubstr("hfopt.example.org"), HasSubstr("worker is worker"), HasSubstr("protocol 1"),
                              HasSubstr("SERVING"), Not(HasSubstr("FAILED"))));
  std::vector<std::string> options = As("worker");
  options.insert(options.end(), {"-o", "json"});
  const json steps = json::parse(Doctor(address_, options).out);
  std::vector<std::string> names;
  for (const json& step : steps) names.push_back(step["step"]);
  EXPECT_EQ(names, (std::vector<std::string>{"credentials", "name", "connection", "TLS", "identity", "version", "health"}));
}

TEST_F(SecurityCommands, TheDoctorPassesInPlaintextAndOnAUnixSocket) {
  StartServer({}, "unix:" + (directory_ / "s"));
  const Outcome well = Doctor(address_);
  EXPECT_EQ(well.code, 0) << well.out << well.err;
  EXPECT_THAT(well.out, AllOf(HasSubstr("everybody is operator"), HasSubstr("SERVING")));
}

TEST_F(SecurityCommands, TheDoctorNamesTheStepThatFailsAndWhatToDo) {
  const auto expect = [](const Outcome& outcome, const std::string& step, const std::vector<std::string>& texts) {
    EXPECT_EQ(outcome.code, 4) << outcome.out << outcome.err;
    const std::vector<std::string> lines = absl::StrSplit(absl::StripSuffix(outcome.out, "\n"), '\n');
    EXPECT_THAT(lines.back(), AllOf(HasSubstr(step), HasSubstr("FAILED"))) << outcome.out;
    EXPECT_THAT(outcome.err, HasSubstr("what to do: "));
    for (const std::string& text : texts) EXPECT_THAT(outcome.out + outcome.err, HasSubstr(text));
  };
  expect(Doctor("127.0.0.1"), "name", {"HOST:PORT"});
  expect(Doctor("no-such-host.invalid:7447"), "name", {"no-such-host.invalid", "resolved"});
  expect(Doctor("127.0.0.1:1"), "connection", {"no server answers at 127.0.0.1:1", "start one"});
  expect(Doctor("10.0.0.1:1", {"--token-file", HFOPT_BINARY}), "credentials", {"plaintext", "--insecure"});

  ASSERT_EQ(Hfopt({"certs", "--dir", directory_ / "other"}).code, 0);
  StartTlsServer({"--tls-client-ca", certs_ + "/ca.pem"});
  expect(Doctor(address_), "HTTP/2", {"TLS", "--ca"});
  expect(Doctor(address_, {"--ca", certs_ + "/ca.pem"}), "TLS", {"without certificate", "--cert"});
  std::vector<std::string> other = As("operator");
  other[1] = directory_ / "other" + "/ca.pem";
  expect(Doctor(address_, other), "TLS", {"cannot be trusted", "the CA of this server?"});
  std::vector<std::string> stranger = As("operator");
  stranger[3] = directory_ / "other" + "/operator.pem";
  stranger[5] = directory_ / "other" + "/operator.key";
  expect(Doctor(address_, stranger), "TLS", {"refused", "--tls-client-ca"});
  expect(Doctor(address_, As("nobody")), "credentials", {"nobody.pem"});

  // Other commands say the same.
  const Outcome list = Hfopt({"run", "list", "--server", address_});
  EXPECT_EQ(list.code, 4);
  EXPECT_THAT(list.err, AllOf(HasSubstr("speaks TLS"), HasSubstr("--ca")));

  StartTlsServer({"--tls-client-ca", certs_ + "/ca.pem"}, "127.0.0.2:0");  // a name that its certificate does not have
  expect(Doctor(address_, As("operator")), "TLS", {"you dialled 127.0.0.2", "hfopt.example.org", "--name 127.0.0.2"});
}

TEST_F(SecurityCommands, TheDoctorTellsWhoIsUnknown) {
  ASSERT_EQ(Hfopt({"token", "ann", "--role", "reader", "--tokens", directory_ / "tokens"}).code, 0);
  StartServer({"--tokens", directory_ / "tokens"});
  const Outcome nobody = Doctor(address_);
  EXPECT_EQ(nobody.code, 4);
  EXPECT_THAT(nobody.out, AllOf(HasSubstr("identity"), HasSubstr("--token-file")));
  const Outcome tls = Doctor(address_, {"--tls"});
  EXPECT_THAT(tls.out, AllOf(HasSubstr("TLS"), HasSubstr("does not speak TLS")));
  EXPECT_THAT(tls.err, HasSubstr("--tls-cert"));
}

TEST_F(SecurityCommands, TheDoctorTellsSilenceFromRefusalAndSurvivesBoth) {
  ASSERT_EQ(Hfopt({"certs", "--dir", certs_}).code, 0);
  sockaddr_in place{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  socklen_t size = sizeof place;
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&place), size), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&place), &size);
  const std::string address = absl::StrCat("127.0.0.1:", ntohs(place.sin_port));
  // The kernel accepts, and nobody answers.
  for (const std::vector<std::string>& options : {std::vector<std::string>{}, {"--ca", certs_ + "/ca.pem"}}) {
    std::vector<std::string> all = options;
    all.insert(all.end(), {"--timeout", "0.2"});
    const Outcome silent = Doctor(address, all);
    EXPECT_EQ(silent.code, 4) << silent.out << silent.err;
    EXPECT_THAT(silent.out, AllOf(HasSubstr(address), HasSubstr("says nothing for 200ms")));
  }
  // Whoever is there closes at once.
  std::thread closer([&] {
    for (int fd; (fd = accept(listener, nullptr, nullptr)) >= 0;) {
      const linger reset{.l_onoff = 1, .l_linger = 0};
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      close(fd);
    }
  });
  for (const std::vector<std::string>& options : {std::vector<std::string>{}, {"--ca", certs_ + "/ca.pem"}}) {
    const Outcome closed = Doctor(address, options);
    EXPECT_EQ(closed.code, 4) << closed.out << closed.err;
    EXPECT_THAT(closed.out + closed.err, AllOf(HasSubstr("FAILED"), HasSubstr("what to do: ")));
  }
  shutdown(listener, SHUT_RDWR);
  closer.join();
  close(listener);
  const Outcome port = Doctor("127.0.0.1:99999");
  EXPECT_THAT(port.out + port.err, AllOf(HasSubstr("\"99999\""), HasSubstr("from 1 to 65535")));
  const Outcome folder = Doctor(address, {"--ca", certs_});
  EXPECT_THAT(folder.out + folder.err, AllOf(HasSubstr(certs_), HasSubstr("directory"))) << folder.code;
}

TEST_F(SecurityCommands, APublicAddressWithoutTlsIsRefused) {
  testing::Process server({HFOPT_SERVER_BINARY, "--address", "0.0.0.0:0", "--state-dir", directory_ / "state"});
  EXPECT_THAT(server.AwaitErrorLine("can be reached from other machines"), AllOf(HasSubstr("hfopt certs"), HasSubstr("--insecure")));
  EXPECT_EQ(server.Wait(), 1);
}

}  // namespace
}  // namespace hfopt::cli
