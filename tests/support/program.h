#ifndef HFOPT_TESTS_SUPPORT_PROGRAM_H_
#define HFOPT_TESTS_SUPPORT_PROGRAM_H_

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/temporary_directory.h"

namespace hfopt::testing {

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
