// Which instruction set the portable build takes: the rule, and the launcher with scripts in the place of the programs.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

#include "docker/portable/choose_set.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/program.h"

namespace hfopt::portable {
namespace {

using testing::Outcome;
using testing::ReadFile;
using testing::RunProgram;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A processor with AVX2 and no AVX-512.
std::vector<InstructionSet> Haswell(bool v4, bool v3, bool v1) {
  return {{"x86-64-v4", false, v4}, {"x86-64-v3", true, v3}, {"x86-64", true, v1}};
}

TEST(ChooseSet, TakesTheBestThatIsInstalledAndRuns) {
  EXPECT_EQ(ChooseSet(Haswell(true, true, true), "").set, "x86-64-v3");
  EXPECT_EQ(ChooseSet(Haswell(true, false, true), "").set, "x86-64");
  EXPECT_EQ(ChooseSet({{"x86-64-v4", true, true}, {"x86-64-v3", true, true}}, "").set, "x86-64-v4");
}

TEST(ChooseSet, TakesTheOneThatIsAskedFor) {
  EXPECT_EQ(ChooseSet(Haswell(true, true, true), "x86-64").set, "x86-64");
  EXPECT_EQ(ChooseSet(Haswell(true, true, true), "x86-64-v3").set, "x86-64-v3");
}

TEST(ChooseSet, RefusesWhatIsAskedForInVain) {
  const auto refusal = [](const Choice& choice) {
    EXPECT_EQ(choice.set, "");
    EXPECT_TRUE(choice.is_users_mistake);
    return choice.why_not;
  };
  EXPECT_EQ(refusal(ChooseSet(Haswell(true, true, true), "x86-64-v4")),
            "HFOPT_CPU is \"x86-64-v4\", which this processor cannot run; unset it, or choose one of x86-64-v3, x86-64");
  EXPECT_EQ(refusal(ChooseSet(Haswell(true, false, true), "x86-64-v3")),
            "HFOPT_CPU is \"x86-64-v3\", which is not installed; unset it, or choose one of x86-64");
  EXPECT_EQ(refusal(ChooseSet(Haswell(true, true, false), "haswell")),
            "HFOPT_CPU is \"haswell\", which is no instruction set; unset it, or choose one of x86-64-v3");
}

TEST(ChooseSet, SaysThatThereIsNone) {
  for (const char* wanted : {"", "x86-64-v3"}) {
    const Choice choice = ChooseSet(Haswell(true, false, false), wanted);
    EXPECT_EQ(choice.set, "");
    EXPECT_FALSE(choice.is_users_mistake);
    EXPECT_EQ(choice.why_not, "nothing is installed that this processor can run; it can run x86-64-v3, x86-64");
  }
}

// An installed prefix whose programs are scripts.
class LauncherTest : public ::testing::Test {
 protected:
  LauncherTest() {
    std::filesystem::create_directory(prefix_ / "bin");
    for (const char* name : {"hfopt", "hfopt-server", "hfopt-worker"}) std::filesystem::copy_file(HFOPT_LAUNCHER, Bin(name));
    unsetenv("HFOPT_CPU");
  }

  std::string Bin(const std::string& name) const { return prefix_ / ("bin/" + name); }

  void Install(const std::string& set, const std::string& script) {
    for (const char* name : {"hfopt", "hfopt-server", "hfopt-worker"}) {
      const std::filesystem::path program = prefix_ / ("libexec/hfopt/" + set + "/" + name);
      std::filesystem::create_directories(program.parent_path());
      std::ofstream(program) << "#!/bin/sh\n" << script << "\n";
      std::filesystem::permissions(program, std::filesystem::perms::owner_all);
    }
  }
  // Programs that say who they are.
  void Install(const std::vector<std::string>& sets) {
    for (const std::string& set : sets) Install(set, "echo " + set + " ${0##*/}");
  }

  static std::vector<std::string> WithCpu(const std::string& set, std::vector<std::string> command) {
    command.insert(command.begin(), {"/usr/bin/env", "HFOPT_CPU=" + set});
    return command;
  }

  // What the kernel says of this processor, best first.
  static std::vector<std::string> SetsOfThisProcessor() {
    const std::string text = ReadFile("/proc/cpuinfo");
    const auto has = [&](const std::string& flag) { return std::regex_search(text, std::regex("flags[^\n]* " + flag + "\\b")); };
    std::vector<std::string> sets = {"x86-64"};
    if (has("avx2") && has("fma") && has("bmi2") && has("abm")) sets.insert(sets.begin(), "x86-64-v3");
    if (has("avx512f") && has("avx512bw") && has("avx512cd") && has("avx512dq") && has("avx512vl")) sets.insert(sets.begin(), "x86-64-v4");
    return sets;
  }

  const testing::TemporaryDirectory prefix_;
};

TEST_F(LauncherTest, TakesTheBestSetOfThisProcessor) {
  Install({"x86-64", "x86-64-v3", "x86-64-v4"});
  for (const std::string& best : SetsOfThisProcessor()) {
    for (const char* name : {"hfopt", "hfopt-server", "hfopt-worker"}) {
      EXPECT_EQ(RunProgram({Bin(name)}).out, best + " " + name + "\n");
      EXPECT_EQ(RunProgram(WithCpu("", {Bin(name)})).out, best + " " + name + "\n");
    }
    std::filesystem::remove_all(prefix_ / ("libexec/hfopt/" + best));  // the next one is the best
  }
}

TEST_F(LauncherTest, TakesTheSetThatHfoptCpuNames) {
  Install({"x86-64", "x86-64-v3", "x86-64-v4"});
  for (const std::string& set : SetsOfThisProcessor()) EXPECT_EQ(RunProgram(WithCpu(set, {Bin("hfopt-worker")})).out, set + " hfopt-worker\n");
}

TEST_F(LauncherTest, RefusesAnotherSetWithCode2) {
  Install({"x86-64"});
  const Outcome missing = RunProgram(WithCpu("x86-64-v3", {Bin("hfopt-server")}));
  EXPECT_EQ(missing.code, 2);
  EXPECT_EQ(missing.out, "");
  EXPECT_THAT(missing.err, AllOf(HasSubstr("hfopt-server: "), HasSubstr(prefix_ / "libexec/hfopt: HFOPT_CPU is \"x86-64-v3\", which"),
                                 HasSubstr("unset it, or choose one of x86-64\n")));
  const Outcome unknown = RunProgram(WithCpu("../x86-64", {Bin("hfopt")}));
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("hfopt: " + prefix_ / "libexec/hfopt: HFOPT_CPU is \"../x86-64\", which is no instruction set; unset it"));
}

TEST_F(LauncherTest, SaysThatNothingIsInstalled) {
  const Outcome nothing = RunProgram({Bin("hfopt")});
  EXPECT_EQ(nothing.code, 1);
  EXPECT_THAT(nothing.err, HasSubstr("hfopt: " + prefix_ / "libexec/hfopt: nothing is installed that this processor can run; it can run"));
}

TEST_F(LauncherTest, SaysWhyAProgramCannotBeRun) {
  Install("x86-64", "");
  std::ofstream(prefix_ / "libexec/hfopt/x86-64/hfopt") << "neither script nor program\n";
  const Outcome broken = RunProgram({Bin("hfopt")});
  EXPECT_EQ(broken.code, 1);
  EXPECT_THAT(broken.err, HasSubstr("libexec/hfopt/x86-64/hfopt cannot be run: Exec format error"));
}

TEST_F(LauncherTest, PassesOnArgumentsEnvironmentAndExitStatus) {
  Install("x86-64", "for a; do echo \"<$a>\"; done; echo $HFOPT_CPU $HFOPT_RUN >&2; exit 77");
  setenv("HFOPT_RUN", "mine", 1);
  const Outcome outcome = RunProgram(WithCpu("x86-64", {Bin("hfopt"), "run", "", "two words", "--version"}));
  unsetenv("HFOPT_RUN");
  EXPECT_EQ(outcome.code, 77);
  EXPECT_EQ(outcome.out, "<run>\n<>\n<two words>\n<--version>\n");
  EXPECT_EQ(outcome.err, "x86-64 mine\n");
}

TEST_F(LauncherTest, IsTheSameProcessWithTheSameName) {
  Install("x86-64", "");
  std::filesystem::copy_file("/bin/sh", prefix_ / "libexec/hfopt/x86-64/hfopt", std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(RunProgram({"/bin/sh", "-c", "before=$$; exec \"$0\" -c 'echo $0 $(($$ - $1))' another $before", Bin("hfopt")}).out, "another 0\n");
  EXPECT_EQ(RunProgram({Bin("hfopt"), "-c", "echo $0"}).out, Bin("hfopt") + "\n");
}

TEST_F(LauncherTest, IsFoundByLinksAndPathAndAfterAMove) {
  Install({"x86-64"});
  const testing::TemporaryDirectory elsewhere;
  std::filesystem::create_symlink(Bin("hfopt-server"), elsewhere / "serve");
  EXPECT_EQ(RunProgram({elsewhere / "serve"}).out, "x86-64 hfopt-server\n");
  std::filesystem::create_directory_symlink(prefix_ / "bin", elsewhere / "bin");
  EXPECT_EQ(RunProgram({elsewhere / "bin/hfopt"}).out, "x86-64 hfopt\n");
  EXPECT_EQ(RunProgram({"/bin/sh", "-c", "PATH=$0:$PATH; cd /; hfopt-worker", prefix_ / "bin"}).out, "x86-64 hfopt-worker\n");
  EXPECT_EQ(RunProgram({"/bin/sh", "-c", "cd \"$0\"; ./hfopt", prefix_ / "bin"}).out, "x86-64 hfopt\n");
  std::filesystem::rename(prefix_ / "bin", elsewhere / "moved-bin");
  std::filesystem::create_directory(elsewhere / "new place");
  std::filesystem::rename(elsewhere / "moved-bin", elsewhere / "new place/bin");
  std::filesystem::rename(prefix_ / "libexec", elsewhere / "new place/libexec");
  EXPECT_EQ(RunProgram({elsewhere / "new place/bin/hfopt"}).out, "x86-64 hfopt\n");
}

}  // namespace
}  // namespace hfopt::portable
