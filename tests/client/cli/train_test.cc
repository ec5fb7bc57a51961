// hfopt train as a person uses it: real processes, ports chosen by the system.

#include <sys/prctl.h>
#include <sys/wait.h>

#include <cerrno>

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

// A run of `iterations` iterations, whatever becomes of its steps. With -o json progress goes to standard error.
std::vector<std::string> Train(const std::string& directory, int iterations) {
  return {HFOPT_BINARY,
          "train",
          "--task",
          "digits",
          "--data",
          HFOPT_DIGITS_DATA,
          "--workers",
          "2",
          "--shards",
          "2",
          "--max-iterations",
          std::to_string(iterations),
          "--set",
          "stop.max_rejections=1000000",
          "--dir",
          directory,
          "-o",
          "json",
          "--server-binary",
          HFOPT_SERVER_BINARY,
          "--worker-binary",
          HFOPT_WORKER_BINARY};
}

TEST(Train, EndsWithASummaryAndTheParameters) {
  const TemporaryDirectory directory;
  const Outcome outcome = RunProgram(Train(directory / "d", 8));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json summary = json::parse(outcome.out);
  EXPECT_EQ(summary.at("run").at("last_iteration").at("iteration"), "8");
  EXPECT_EQ(summary.at("run").at("workers").size(), 2u);
  ASSERT_EQ(summary.at("iterations").size(), 8u);
  EXPECT_EQ(summary.at("iterations").at(7), summary.at("run").at("last_iteration"));
  EXPECT_LT(summary.at("evaluation").at("held_out_errors"), 0.15);
  EXPECT_TRUE(std::filesystem::exists(summary.at("parameters").get<std::string>()));
  EXPECT_THAT(ReadFile(summary.at("report")), HasSubstr("hfopt: digits"));
  EXPECT_THAT(ReadFile(directory / "d/worker-2.log"), HasSubstr("finished: ITERATION_BUDGET"));

  // The same command again has nothing left to do.
  const Outcome again = RunProgram(Train(directory / "d", 8));
  EXPECT_EQ(again.code, 0);
  EXPECT_EQ(json::parse(again.out).at("evaluation"), summary.at("evaluation"));

  const Outcome text = Hfopt({"train", "--resume", directory / "d", "--server-binary", HFOPT_SERVER_BINARY});
  EXPECT_THAT(text.out, AllOf(HasSubstr("held-out errors"), HasSubstr("client compute"), HasSubstr("transport"),
                              HasSubstr("server arithmetic"), HasSubstr("waiting for workers"),
                              HasSubstr("example-passes"), HasSubstr("d/parameters.safetensors")));

  const Outcome other = RunProgram(Train(directory / "d", 9));
  EXPECT_EQ(other.code, 5);
  EXPECT_THAT(other.err, AllOf(HasSubstr("other options"), HasSubstr("train --resume")));
}

TEST(Train, ADeterministicTaskGetsItsPresetAndDoublePrecision) {
  const TemporaryDirectory directory;
  std::vector<std::string> command = Train(directory / "d", 3);
  command.insert(command.end(), {"--task", "pinn-poisson", "--layers", "2-8-1"});
  const Outcome outcome = RunProgram(command);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json summary = json::parse(outcome.out);
  const json options = summary.at("run").at("options");
  EXPECT_EQ(options.at("element_type"), "ELEMENT_TYPE_FLOAT64");
  EXPECT_EQ(options.at("optimizer").at("preset"), "PRESET_DETERMINISTIC");
  EXPECT_GT(summary.at("evaluation").at("relative_l2_error"), 0);
}

TEST(Train, StoppedByCtrlCAndResumedGivesTheSameBits) {
  const TemporaryDirectory directory;
  constexpr int kIterations = 120;
  ASSERT_EQ(RunProgram(Train(directory / "whole", kIterations)).code, 0);

  testing::Process first(WithOutputIn(directory / "out", Train(directory / "parts", kIterations)));
  first.AwaitErrorLine("iteration 3: ");
  first.Signal(SIGINT);
  EXPECT_THAT(first.AwaitErrorLine("stopped. To go on: "), HasSubstr("train --resume " + (directory / "parts")));
  EXPECT_EQ(first.Wait(), 130);
  EXPECT_EQ(ReadFile(directory / "out"), "") << "the training must not have ended";

  const Outcome second =
      Hfopt({"train", "--resume", directory / "parts", "-o", "json", "--server-binary", HFOPT_SERVER_BINARY});
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(json::parse(second.out).at("run").at("last_iteration").at("iteration"), std::to_string(kIterations));
  EXPECT_EQ(ReadFile(directory / "parts/parameters.safetensors"), ReadFile(directory / "whole/parameters.safetensors"));
}

TEST(Train, LeavesNoProcessBehindWhenKilled) {
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // orphans become our children
  const TemporaryDirectory directory;
  {
    testing::Process train(WithOutputIn(directory / "out", Train(directory / "d", 100'000)));
    train.AwaitErrorLine("iteration 2: ");
    train.Signal(SIGKILL);
    EXPECT_EQ(train.Wait(), 128 + SIGKILL);
  }
  int status = 0, killed = 0;
  while (wait(&status) > 0) killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  EXPECT_EQ(errno, ECHILD);
  EXPECT_EQ(killed, 3) << "the server and two workers";
}

TEST(Train, ListensInItsDirectoryAndOnAPortWhereThePathIsTooLongForASocket) {
  const TemporaryDirectory directory;
  const auto address = [&](const std::string& d) {
    EXPECT_EQ(RunProgram(Train(d, 1)).code, 0);
    const std::string log = ReadFile(d + "/server.log"), line = "listening on ";
    const size_t begin = log.find(line) + line.size();
    return log.substr(begin, log.find('\n', begin) - begin);
  };
  EXPECT_EQ(address(directory / "d"), "unix:" + (directory / "d/server.sock"));
  EXPECT_THAT(address(directory / std::string(100, 'd')), ::testing::StartsWith("127.0.0.1:"));
}

TEST(Train, ABadModelIsRefusedBeforeAnythingIsStarted) {
  const TemporaryDirectory directory;
  std::vector<std::string> command = Train(directory / "d", 8);
  command.insert(command.end(), {"--layers", "64-banana"});
  const Outcome outcome = RunProgram(command);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("banana"));
  EXPECT_FALSE(std::filesystem::exists(directory / "d"));
}

TEST(Train, OptionsThatTheServerRefusesLeaveNothingToResume) {
  const TemporaryDirectory directory;
  std::vector<std::string> command = Train(directory / "d", 8);
  command.insert(command.end(), {"--set", "damping.initial=-1"});
  const Outcome outcome = RunProgram(command);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("damping.initial"), Not(HasSubstr("--resume"))));
  EXPECT_EQ(RunProgram(Train(directory / "d", 8)).code, 0);
}

TEST(Train, ResumeNamesADirectoryThatIsNone) {
  const TemporaryDirectory directory;
  const Outcome outcome = Hfopt({"train", "--resume", directory / "nothing"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.err, HasSubstr("train.json"));
}

TEST(Train, AServerThatCannotStartIsTold) {
  const TemporaryDirectory directory;
  std::vector<std::string> command = Train(directory / "d", 8);
  command.insert(command.end(), {"--server-binary", "/bin/false"});
  const Outcome outcome = RunProgram(command);
  EXPECT_EQ(outcome.code, 4);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("the server ended with exit code 1"), HasSubstr("server.log")));
}

}  // namespace
}  // namespace hfopt::cli
