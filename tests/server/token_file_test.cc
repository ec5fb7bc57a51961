#include "server/access/token_file.h"

#include <sys/stat.h>

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/store_testing.h"

namespace hfopt::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// SHA-256 of "abc" (FIPS 180-2, appendix B.1) and of "" .
constexpr char kAbc[] = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kEmpty[] = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

class TokenFileTest : public ::testing::Test {
 protected:
  void Write(const std::string& text, mode_t mode = 0600) {
    // A new file each time, as editors and secret stores make it: so it differs even within the clock's resolution.
    const std::string next = path_ + ".next";
    std::ofstream(next) << text;
    chmod(next.c_str(), mode);
    ASSERT_EQ(rename(next.c_str(), path_.c_str()), 0);
  }
  absl::StatusOr<std::unique_ptr<TokenFile>> Open() {
    return TokenFile::Open(path_, [this](const std::string& line) { log_.push_back(line); });
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/tokens";
  std::vector<std::string> log_;
};

TEST_F(TokenFileTest, KnowsWhoseATokenIs) {
  Write(std::string("# tokens\n\noperator alice ") + kAbc + "   # since May\n");
  const auto file = Open();
  ASSERT_TRUE(file.ok()) << file.status();
  const std::optional<Caller> caller = (*file)->Find("abc");
  ASSERT_TRUE(caller.has_value());
  EXPECT_EQ(caller->name, "alice");
  EXPECT_EQ(caller->role, v1::ROLE_OPERATOR);
  for (const char* other : {"", "ab", "abcd", "ABC", "abc ", kAbc}) EXPECT_FALSE((*file)->Find(other).has_value()) << other;
}

TEST_F(TokenFileTest, NamesTheLineThatIsWrongAndDoesNotShowIt) {
  for (const std::string& line : std::vector<std::string>{"operator alice secret-token", "operator sha256:ba78", "king alice " + std::string(kAbc), "operator alice sha256:zz",
                                 "operator alice " + std::string(kAbc) + "00", "operator alice smith " + std::string(kAbc)}) {
    Write("# a comment\n" + line + "\n");
    const absl::Status status = Open().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr("line 2"), Not(HasSubstr("alice"))));
  }
  Write(std::string("worker a ") + kAbc + "\noperator b " + kAbc + "\n");
  EXPECT_THAT(std::string(Open().status().message()), AllOf(HasSubstr("line 2"), HasSubstr("earlier line")));
}

TEST_F(TokenFileTest, RefusesAFileThatOthersMayWriteOrThatIsNotThere) {
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  for (const mode_t mode : {0620, 0602}) {
    Write(std::string("worker w ") + kAbc + "\n", mode);
    EXPECT_THAT(std::string(Open().status().message()), HasSubstr("chmod 600"));
  }
}

TEST_F(TokenFileTest, TokensAreGivenAndWithdrawnWhileItIsOpen) {
  Write(std::string("worker w ") + kAbc + "\n");
  const auto file = Open();
  ASSERT_TRUE(file.ok());
  Write(std::string("reader r ") + kEmpty + "\n");
  EXPECT_FALSE((*file)->Find("abc").has_value());
  EXPECT_EQ((*file)->Find("")->role, v1::ROLE_READER);
  EXPECT_THAT(log_, ::testing::ElementsAre(HasSubstr("read 1 tokens")));
}

TEST_F(TokenFileTest, AChangeThatCannotBeReadIsLoggedOnceAndLeavesWhatWasInForce) {
  Write(std::string("worker w ") + kAbc + "\n");
  const auto file = Open();
  ASSERT_TRUE(file.ok());
  Write("worker w\n");
  EXPECT_TRUE((*file)->Find("abc").has_value());
  EXPECT_TRUE((*file)->Find("abc").has_value());
  EXPECT_THAT(log_, ::testing::ElementsAre(AllOf(HasSubstr("line 1"), HasSubstr("stay in force"))));
  ASSERT_EQ(remove(path_.c_str()), 0);
  EXPECT_TRUE((*file)->Find("abc").has_value());
  EXPECT_TRUE((*file)->Find("abc").has_value());
  ASSERT_EQ(log_.size(), 2);
  EXPECT_THAT(log_[1], AllOf(HasSubstr("No such file"), HasSubstr("stay in force")));
  Write(std::string("worker w ") + kAbc + "\n");
  EXPECT_TRUE((*file)->Find("abc").has_value());
  ASSERT_EQ(log_.size(), 3);
  EXPECT_THAT(log_[2], HasSubstr("read 1 tokens"));
}

}  // namespace
}  // namespace hfopt::server
