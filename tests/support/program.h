#ifndef HFOPT_TESTS_SUPPORT_PROGRAM_H_
#define HFOPT_TESTS_SUPPORT_PROGRAM_H_

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/process.h"

namespace hfopt::testing {

// A directory that goes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() : path_(::testing::TempDir() + "hfopt_test.XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
};

// Runs a program to its end.
inline Outcome RunProgram(const std::vector<std::string>& command) {
  const TemporaryDirectory directory;
  std::vector<std::string> shell = {"/bin/sh", "-c", "out=$0; exec \"$@\" > \"$out\" 2> \"$out.err\"",
                                    directory / "out"};
  shell.insert(shell.end(), command.begin(), command.end());
  const int code = Process(shell).Wait();
  return {code, ReadFile(directory / "out"), ReadFile(directory / "out.err")};
}

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_PROGRAM_H_
