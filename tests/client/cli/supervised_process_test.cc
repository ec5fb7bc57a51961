#include "client/cli/supervised_process.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SupervisedProcessTest : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(log_); }

  static std::vector<std::string> Shell(const std::string& script) { return {"/bin/sh", "-c", script}; }

  const std::string log_ = ::testing::TempDir() + "supervised_process_test." + std::to_string(getpid()) + ".log";
  std::promise<std::string> ended_;
};

TEST_F(SupervisedProcessTest, PassesOnLinesAndTheEnd) {
  std::vector<std::string> lines;
  SupervisedProcess process(
      {.command = Shell("echo one; echo two >&2; printf three"),
       .log_file = log_,
       .on_line = [&](const std::string& line) { lines.push_back(line); },
       .on_end = [&](bool ok, const std::string& how) { ended_.set_value(how + (ok ? " ok" : "")); }});
  EXPECT_EQ(ended_.get_future().get(), "ended with exit code 0 ok");
  EXPECT_THAT(lines, ElementsAre("one", "two", "three"));
  EXPECT_EQ(LastLine(log_), "three");
}

TEST_F(SupervisedProcessTest, StartsAFailingProgramAgainSoManyTimes) {
  std::vector<std::string> restarts;
  SupervisedProcess process({.command = Shell("echo start; exit 3"),
                             .log_file = log_,
                             .max_restarts = 2,
                             .restart_pause = std::chrono::milliseconds(1),
                             .on_restart = [&](const std::string& how) { restarts.push_back(how); },
                             .on_end = [&](bool, const std::string& how) { ended_.set_value(how); }});
  EXPECT_EQ(ended_.get_future().get(), "ended with exit code 3");
  EXPECT_THAT(restarts, ElementsAre("ended with exit code 3", "ended with exit code 3"));
  std::stringstream text;
  text << std::ifstream(log_).rdbuf();
  EXPECT_EQ(text.str(), "start\nstart\nstart\n");
}

TEST_F(SupervisedProcessTest, NamesTheSignalThatKilledIt) {
  SupervisedProcess process({.command = Shell("kill -9 $$"),
                             .log_file = log_,
                             .on_end = [&](bool, const std::string& how) { ended_.set_value(how); }});
  EXPECT_THAT(ended_.get_future().get(), HasSubstr("killed by signal 9"));
}

TEST_F(SupervisedProcessTest, SaysWhyAProgramCannotBeExecuted) {
  SupervisedProcess process({.command = {"/no/such/program"},
                             .log_file = log_,
                             .on_end = [&](bool ok, const std::string&) { ended_.set_value(ok ? "ok" : "failed"); }});
  EXPECT_EQ(ended_.get_future().get(), "failed");
  EXPECT_THAT(LastLine(log_), HasSubstr("/no/such/program: cannot be executed: No such file"));
}

TEST_F(SupervisedProcessTest, StopAsksThenKills) {
  std::promise<void> ready;
  SupervisedProcess process({.command = Shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"),
                             .log_file = log_,
                             .on_line =
                                 [&](const std::string& line) {
                                   if (line == "ready") ready.set_value();
                                 },
                             .on_end = [](bool, const std::string&) { FAIL() << "was asked to end"; }});
  ready.get_future().wait();
  process.Stop(/*grace=*/std::chrono::seconds(1));
  EXPECT_EQ(LastLine(log_), "asked");
}

TEST_F(SupervisedProcessTest, HidesOurEnvironmentAndLeavesOurProcessGroup) {
  setenv("HFOPT_SHARDS", "7", 1);
  setenv("HFOPT_CPU", "x86-64-v3", 1);  // which is for programs that we start, too
  SupervisedProcess process({.command = Shell("echo \"<$HFOPT_SHARDS>\" $HFOPT_CPU $(cut -d\" \" -f5 /proc/$$/stat) $$"),
                             .log_file = log_,
                             .on_end = [&](bool, const std::string&) { ended_.set_value(""); }});
  ended_.get_future().wait();
  unsetenv("HFOPT_SHARDS");
  unsetenv("HFOPT_CPU");
  std::istringstream line(LastLine(log_));
  std::string shards, cpu, group, pid;
  line >> shards >> cpu >> group >> pid;
  EXPECT_EQ(shards, "<>");
  EXPECT_EQ(cpu, "x86-64-v3");
  EXPECT_EQ(group, pid);
}

}  // namespace
}  // namespace hfopt::cli
