#include "client/cli/replace_file.h"

#include <sys/stat.h>

#include <string>

#include "client/cli/parameter_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/cli/program.h"

namespace hfopt::cli {
namespace {

using ::testing::HasSubstr;

TEST(ReplaceFile, ReplacesAFile) {
  TemporaryDirectory directory;
  const std::string path = directory / "file";
  ASSERT_TRUE(ReplaceFile(path, "first").ok());
  ASSERT_TRUE(ReplaceFile(path, "second").ok());
  EXPECT_EQ(ReadFile(path), "second");
}

// A rename would put a file in the place of a device, /dev/null among them.
TEST(ReplaceFile, LeavesWhatIsNoFileAlone) {
  TemporaryDirectory directory;
  const std::string pipe = directory / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const absl::Status& refused :
       {ReplaceFile(pipe, "text"), WriteParameters<float>(pipe, "r", {.theta = client::Vector<float>::Zero(3)}, {})}) {
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()), HasSubstr(pipe + " is there"));
  }
  struct stat status {};
  ASSERT_EQ(stat(pipe.c_str(), &status), 0);
  EXPECT_TRUE(S_ISFIFO(status.st_mode));
}

}  // namespace
}  // namespace hfopt::cli
