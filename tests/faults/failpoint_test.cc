#include "proto/failpoint/failpoint.h"

#include <signal.h>

#include <chrono>
#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::failpoint {
namespace {

using ::testing::HasSubstr;

absl::Status Save() {
  HFOPT_FAILPOINT_OR_RETURN("checkpoint.rename");
  return absl::OkStatus();
}
void Answer() { HFOPT_FAILPOINT("worker.answer"); }

class Failpoint : public ::testing::Test {
 protected:
  ~Failpoint() override { EXPECT_TRUE(Configure("").ok()); }
};

TEST_F(Failpoint, DoesNothingWithoutARule) {
  ASSERT_TRUE(Configure("checkpoint.sync=error").ok());
  EXPECT_TRUE(Save().ok());
  Answer();
}

TEST_F(Failpoint, ErrorReturnsFromTheFunction) {
  ASSERT_TRUE(Configure("checkpoint.rename=error").ok());
  EXPECT_EQ(Save(), absl::InternalError("failpoint checkpoint.rename"));
  ASSERT_TRUE(Configure("checkpoint.rename=error(RESOURCE_EXHAUSTED)").ok());
  EXPECT_EQ(Save().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(Failpoint, APassageIsCountedFromConfigureOn) {
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(Configure("checkpoint.rename=error@3;checkpoint.rename=error(ABORTED)@4").ok());
    EXPECT_TRUE(Save().ok());
    EXPECT_TRUE(Save().ok());
    EXPECT_TRUE(absl::IsInternal(Save()));
    EXPECT_TRUE(absl::IsAborted(Save()));
    EXPECT_TRUE(Save().ok());
  }
}

TEST_F(Failpoint, SleepWaits) {
  ASSERT_TRUE(Configure("worker.answer=sleep(30)").ok());
  const auto begin = std::chrono::steady_clock::now();
  Answer();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(30));
}

TEST_F(Failpoint, PrintSaysWhereAndWhat) {
  ASSERT_TRUE(Configure("*=print").ok());
  ::testing::internal::CaptureStderr();
  Answer();
  EXPECT_TRUE(Save().ok());
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "failpoint worker.answer: print\nfailpoint checkpoint.rename: print\n");
}

TEST_F(Failpoint, CrashIsAKill) {
  EXPECT_EXIT(
      {
        (void)Configure("worker.answer=crash@2");
        Answer();
        Answer();
      },
      ::testing::KilledBySignal(SIGKILL), "failpoint worker.answer: crash");
}

TEST_F(Failpoint, RulesThatCannotBeUnderstoodAreNamedAndChangeNothing) {
  ASSERT_TRUE(Configure("checkpoint.rename=error").ok());
  const struct {
    const char* rules;
    const char* why;
  } kCases[] = {
      {"checkpoint.renamed=crash", "no failpoint of this name"}, {"checkpoint.rename", "not NAME=ACTION"},
      {"checkpoint.rename=explode", "the actions are"},          {"checkpoint.rename=", "the actions are"},
      {"checkpoint.rename=crash@0", "a number from 1 on"},       {"checkpoint.rename=crash@x", "a number from 1 on"},
      {"checkpoint.rename=crash@1@2", "a number from 1 on"},
      {"checkpoint.rename=sleep", "needs milliseconds"},         {"checkpoint.rename=sleep(1", "a ) is missing"},
      {"checkpoint.rename=crash(1)", "takes no argument"},       {"checkpoint.rename=error(NOT_OK)", "is no status code"},
      {"worker.answer=error", "cannot fail"},                    {"*=error", "cannot fail"},
  };
  for (const auto& [rules, why] : kCases) {
    const absl::Status status = Configure(rules);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << rules;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why)) << rules;
  }
  EXPECT_TRUE(absl::IsInternal(Save()));
}

TEST_F(Failpoint, NamesAreUnique) {
  for (const Point& a : kPoints) {
    int same = 0;
    for (const Point& b : kPoints) same += a.name == b.name;
    EXPECT_EQ(same, 1) << a.name;
  }
}

}  // namespace
}  // namespace hfopt::failpoint
