#ifndef HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_
#define HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_

#include <string>
#include <vector>

#include "tests/support/program.h"

namespace hfopt::cli {

using testing::Outcome;
using testing::ReadFile;
using testing::RunProgram;
using testing::TemporaryDirectory;

// The command with its standard output in a file.
inline std::vector<std::string> WithOutputIn(const std::string& file, const std::vector<std::string>& command) {
  std::vector<std::string> shell = {"/bin/sh", "-c", "file=$0; exec \"$@\" > \"$file\"", file};
  shell.insert(shell.end(), command.begin(), command.end());
  return shell;
}

// Runs hfopt to its end.
inline Outcome Hfopt(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), HFOPT_BINARY);
  return RunProgram(arguments);
}

}  // namespace hfopt::cli

#endif  // HFOPT_TESTS_CLIENT_CLI_PROGRAM_H_
