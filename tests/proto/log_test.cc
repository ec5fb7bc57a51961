#include "proto/log/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/spdlog.h"

namespace hfopt {
namespace {

using ::testing::HasSubstr;

class Log : public ::testing::Test {
 protected:
  Log() {
    EXPECT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
    SetUpLog("test", pipe_[1]);
  }
  ~Log() override {
    spdlog::set_default_logger(nullptr);
    close(pipe_[1]);
  }
  std::string ReadAll() {
    fcntl(pipe_[0], F_SETFL, O_NONBLOCK);
    std::string text(1 << 20, '\0');
    const ssize_t size = read(pipe_[0], text.data(), text.size());
    text.resize(std::max<ssize_t>(0, size));
    return text;
  }
  int pipe_[2];
};

TEST_F(Log, WritesALineWithItsTimeAndLevel) {
  spdlog::info("{} of {}", 1, 2);
  EXPECT_THAT(ReadAll(), ::testing::MatchesRegex("....-..-..T..:..:..\\.... I 1 of 2\n"));
}

TEST_F(Log, WaitsForNobodyAndCountsWhatIsLost) {
  const std::string text(1000, 'x');
  for (int i = 0; i < 1000; ++i) spdlog::info("{}", text);  // of which a pipe takes 64
  const std::string first = ReadAll();
  EXPECT_LT(first.size(), 100'000u);
  spdlog::info("again");
  const std::string then = ReadAll();
  EXPECT_THAT(then, HasSubstr(" lines were lost: nobody read the log)\n"));
  EXPECT_THAT(then, HasSubstr(" I again\n"));
}

TEST_F(Log, APipeThatNobodyReadsAnyMoreEndsNothing) {
  close(pipe_[0]);
  spdlog::info("to nobody");
  pipe_[0] = -1;
}

TEST_F(Log, LinesAreWhole) {
  const std::string text(20'000, 'y');
  spdlog::info("{}", text);
  EXPECT_THAT(ReadAll(), ::testing::EndsWith(text + "\n"));
}

}  // namespace
}  // namespace hfopt
