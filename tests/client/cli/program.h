#ifndef HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_
#define HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/process.h"

namespace hfopt::cli {

// A directory that goes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() : path_(::testing::TempDir() + "hfopt_cli_test.XXXXXX") {
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

// The command with its standard output in a file.
inline std::vector<std::string> WithOutputIn(const std::string& file, const std::vector<std::string>& command) {
  std::vector<std::string> shell = {"/bin/sh", "-c", "file=$0; exec \"$@\" > \"$file\"", file};
  shell.insert(shell.end(), command.begin(), command.end());
  return shell;
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
  const int code = testing::Process(shell).Wait();
  return {code, ReadFile(directory / "out"), ReadFile(directory / "out.err")};
}

// Runs hfopt to its end.
inline Outcome Hfopt(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), HFOPT_BINARY);
  return RunProgram(arguments);
}

}  // namespace hfopt::cli

#endif  // HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_
