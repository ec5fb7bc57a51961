// hfopt and hfopt-worker as programs, against a real server.

#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/client/cli/program.h"

namespace hfopt::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CommandLine, HelpIsNoError) {
  const Outcome help = Hfopt({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("train"), HasSubstr("run"), HasSubstr("params"), HasSubstr("check"),
                              HasSubstr("Exit codes")));
  EXPECT_THAT(Hfopt({"run", "create", "--help"}).out, AllOf(HasSubstr("damping.initial"), HasSubstr("HFOPT_SERVER")));
  EXPECT_EQ(RunProgram({HFOPT_WORKER_BINARY, "--help"}).code, 0);
}

TEST(CommandLine, VersionNamesTheInstructionSet) {
  for (const auto& [program, name] : std::vector<std::pair<std::string, std::string>>{
           {HFOPT_BINARY, "hfopt"}, {HFOPT_SERVER_BINARY, "hfopt-server"}, {HFOPT_WORKER_BINARY, "hfopt-worker"}}) {
    const Outcome version = RunProgram({program, "--version"});
    EXPECT_EQ(version.code, 0);
    EXPECT_EQ(version.out, name + " " HFOPT_PROGRAM_VERSION "\n");
  }
}

TEST(CommandLine, WrongUsageIsCode2) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"fly"},
                                             {"run"},
                                             {"run", "get"},
                                             {"run", "get", "a", "--colour"},
                                             {"run", "list", "-o", "xml"},
                                             {"run", "create", "a", "--shards", "many"},
                                             {"train", "--workers", "0"},
                                             {"train", "--resume", "a", "--dir", "b"},
                                             {"train", "--resume", "a", "--max-iterations", "5"},
                                             {"params", "download", "a", "--version", "worst"}}) {
    const Outcome outcome = Hfopt(arguments);
    EXPECT_EQ(outcome.code, 2) << ::testing::PrintToString(arguments) << outcome.err;
    EXPECT_THAT(outcome.err, Not(HasSubstr("terminate called")));
  }
}

TEST(CommandLine, BadOptionsAreRefusedBeforeAServerIsAsked) {
  const Outcome bad_name = Hfopt({"run", "create", "a", "--server", "127.0.0.1:1", "--set", "damping.initail=1"});
  EXPECT_EQ(bad_name.code, 2);
  EXPECT_THAT(bad_name.err, AllOf(HasSubstr("--set damping.initail=1"), HasSubstr("allowed: rule, initial, min")));
  const Outcome bad_preset = Hfopt({"run", "create", "a", "--server", "127.0.0.1:1", "--preset", "fast"});
  EXPECT_EQ(bad_preset.code, 2);
  EXPECT_THAT(bad_preset.err, AllOf(HasSubstr("--preset"), HasSubstr("accelerated, published, deterministic")));
  EXPECT_EQ(Hfopt({"run", "create", "a", "--server", "127.0.0.1:1", "--options", "/no/such/file"}).code, 3);
}

TEST(CommandLine, NoServerIsCode4AndSaysWhatToDo) {
  const Outcome outcome = Hfopt({"run", "list", "--server", "127.0.0.1:1"});
  EXPECT_EQ(outcome.code, 4);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("no server answers at 127.0.0.1:1"), HasSubstr("--server")));
}

TEST(CommandLine, WorkerWithBadModelIsCode2) {
  const Outcome outcome = RunProgram({HFOPT_WORKER_BINARY, "--worker-id", "w"});
  EXPECT_EQ(outcome.code, 2) << "--run is missing";
}

class WithServer : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.emplace(
        std::vector<std::string>{HFOPT_SERVER_BINARY, "--address", "127.0.0.1:0", "--state-dir", directory_ / "state"});
    address_ = server_->AwaitErrorLine("listening on ");
    setenv("HFOPT_SERVER", address_.c_str(), 1);
  }
  void TearDown() override { unsetenv("HFOPT_SERVER"); }

  std::vector<std::string> Worker(const std::string& run) const {
    return {HFOPT_WORKER_BINARY, "--run", run, "--worker-id", "w", "--task", "digits", "--data", HFOPT_DIGITS_DATA};
  }
  static json Get(const std::string& id) { return json::parse(Hfopt({"run", "get", id, "-o", "json"}).out); }

  TemporaryDirectory directory_;
  std::optional<testing::Process> server_;
  std::string address_;
};

TEST_F(WithServer, ARunFromItsCreationToItsParameters) {
  const Outcome created = Hfopt({"run", "create", "r", "--shards", "1", "--max-iterations", "4", "--seed", "5", "--set",
                                 "conjugate_gradient.max_iterations=9", "-o", "json"});
  ASSERT_EQ(created.code, 0) << created.err;
  const json options = json::parse(created.out).at("options");
  EXPECT_EQ(options.at("seed"), "5");
  EXPECT_EQ(options.at("optimizer").at("conjugate_gradient").at("max_iterations"), 9);

  testing::Process worker(Worker("r"));
  EXPECT_EQ(Hfopt({"run", "start", "r"}).code, 0);
  const Outcome watched = Hfopt({"run", "watch", "r", "-o", "json"});
  EXPECT_EQ(watched.code, 0) << watched.err;
  EXPECT_EQ(worker.Wait(), 0) << "the run has ended";

  // One event a line: four iterations in order, and the run's end.
  std::istringstream lines(watched.out);
  std::vector<std::string> iterations;
  json last;
  for (std::string line; std::getline(lines, line);) {
    last = json::parse(line);
    if (last.contains("iteration")) iterations.push_back(last["iteration"]["iteration"]);
  }
  EXPECT_EQ(iterations, (std::vector<std::string>{"1", "2", "3", "4"}));
  EXPECT_EQ(last.at("run").at("termination").at("reason"), "REASON_ITERATION_BUDGET");

  EXPECT_THAT(Hfopt({"run", "watch", "r"}).out,
              AllOf(HasSubstr("iteration 1: held-out "), HasSubstr("ended: iteration budget")));
  EXPECT_THAT(Hfopt({"run", "get", "r"}).out,
              AllOf(HasSubstr("client compute"), HasSubstr("last iteration"), HasSubstr("connected")));
  EXPECT_THAT(Hfopt({"run", "list"}).out, AllOf(HasSubstr("RUN"), HasSubstr("ended: iteration budget")));
  EXPECT_EQ(json::parse(Hfopt({"run", "list", "-o", "json"}).out).at("runs").size(), 1u);

  const std::string page = directory_ / "r.html";
  EXPECT_EQ(Hfopt({"run", "report", "r", "--to", page}).out, page + "\n");
  EXPECT_THAT(ReadFile(page), HasSubstr("hfopt: r"));
  EXPECT_EQ(Hfopt({"run", "report", "r", "unknown", "--to", page}).code, 3);

  const std::string file = directory_ / "r.safetensors";
  const Outcome downloaded = Hfopt({"params", "download", "r", file, "--version", "last", "-o", "json"});
  EXPECT_EQ(downloaded.code, 0) << downloaded.err;
  EXPECT_EQ(json::parse(downloaded.out).at("iteration"), "4");
  ASSERT_EQ(Hfopt({"run", "create", "again", "--shards", "1"}).code, 0);
  EXPECT_EQ(Hfopt({"params", "upload", "again", file}).code, 0);
  EXPECT_EQ(Hfopt({"params", "download", "again", file + "2"}).code, 0);
  const auto numbers = [](const std::string& path) {
    const std::string bytes = ReadFile(path);
    return bytes.substr(bytes.size() - 2410 * 4);  // theta of 64-32-10
  };
  EXPECT_EQ(numbers(file), numbers(file + "2"));

  EXPECT_EQ(Hfopt({"run", "delete", "r"}).code, 0);
  EXPECT_EQ(Hfopt({"run", "get", "r"}).code, 3);
}

TEST_F(WithServer, PausedRunsGoOn) {
  ASSERT_EQ(Hfopt({"run", "create", "r", "--shards", "1", "--max-iterations", "1"}).code, 0);
  EXPECT_EQ(Hfopt({"run", "start", "r"}).code, 0);
  EXPECT_THAT(Get("r").at("state"), AnyOf("RUN_STATE_RUNNING", "RUN_STATE_WAITING_FOR_WORKERS"));
  EXPECT_EQ(Hfopt({"run", "pause", "r"}).code, 0);
  EXPECT_EQ(Get("r").at("state"), "RUN_STATE_PAUSED");
  EXPECT_EQ(Hfopt({"run", "resume", "r"}).code, 0);
  EXPECT_EQ(Hfopt({"run", "cancel", "r"}).code, 0);
  EXPECT_EQ(Get("r").at("termination").at("reason"), "REASON_CANCELLED");
}

TEST_F(WithServer, ErrorsHaveTheirCodes) {
  EXPECT_EQ(Hfopt({"run", "get", "nobody"}).code, 3);
  EXPECT_EQ(Hfopt({"run", "watch", "nobody"}).code, 3);
  EXPECT_EQ(Hfopt({"params", "download", "nobody"}).code, 3);
  EXPECT_EQ(Hfopt({"run", "create", "Bad_Id"}).code, 2);
  EXPECT_EQ(Hfopt({"run", "create", "r", "--set", "damping.initial=-1"}).code, 2) << "refused by the server";
  ASSERT_EQ(Hfopt({"run", "create", "r"}).code, 0);
  EXPECT_EQ(Hfopt({"run", "create", "r", "--seed", "9"}).code, 6);
  EXPECT_EQ(Hfopt({"run", "pause", "r"}).code, 5);
  EXPECT_EQ(Hfopt({"params", "upload", "r", "/no/such/file"}).code, 3);
  const std::string broken = directory_ / "broken.safetensors";
  std::ofstream(broken) << "no tensors here";
  EXPECT_EQ(Hfopt({"params", "upload", "r", broken}).code, 8);
}

TEST_F(WithServer, AWorkerLeavesWhenAsked) {
  ASSERT_EQ(Hfopt({"run", "create", "r"}).code, 0);
  testing::Process worker(Worker("r"));
  worker.AwaitErrorLine("model ");
  worker.Signal(SIGTERM);
  EXPECT_EQ(worker.Wait(), 0);
}

TEST_F(WithServer, AWorkerThatWaitsForItsRunCanBeStopped) {
  testing::Process worker(Worker("later"));
  worker.AwaitErrorLine("waiting for run later");
  worker.Signal(SIGINT);
  EXPECT_EQ(worker.Wait(), 0);
}

TEST_F(WithServer, WorkerSaysWhatIsWrongWithItsData) {
  ASSERT_EQ(Hfopt({"run", "create", "r"}).code, 0);
  const Outcome outcome =
      RunProgram({HFOPT_WORKER_BINARY, "--run", "r", "--task", "digits", "--data", directory_ / "state"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.err, HasSubstr("images.npy"));
}

// The server's library in the place of a server.
TEST(CheckCommand, PassesForARightModel) {
  const TemporaryDirectory directory;
  testing::Process check(
      WithOutputIn(directory / "out", {HFOPT_BINARY, "check", "--listen", "127.0.0.1:0", "-o", "json"}));
  const std::string address = check.AwaitErrorLine("hfopt-worker --server ");
  const Outcome worker = RunProgram({HFOPT_WORKER_BINARY, "--server", address.substr(0, address.find(' ')), "--run",
                                     "check", "--task", "digits", "--data", HFOPT_DIGITS_DATA});
  EXPECT_EQ(worker.code, 0) << worker.err;
  EXPECT_EQ(check.Wait(), 0);
  const json checks = json::parse(ReadFile(directory / "out")).at("checks");
  EXPECT_GE(checks.size(), 6u);
  for (const json& result : checks) EXPECT_TRUE(result.at("passed")) << result;
}

}  // namespace
}  // namespace hfopt::cli
