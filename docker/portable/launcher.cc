// hfopt-server, hfopt-worker and hfopt where docker/portable/build installed them for several instruction sets: becomes the program of its own
// name in ../libexec/hfopt/SET, with SET the best that is installed and that processor and operating system can run. HFOPT_CPU in the environment
// names another one.

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "docker/portable/choose_set.h"

int main(int, char** argv) {
  constexpr int kFailed = 1, kUsage = 2;  // as the programs exit
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) {
    std::cerr << argv[0] << ": /proc/self/exe, by which the program is found, cannot be read: " << error.message() << "\n";
    return kFailed;
  }
  const std::string name = self.filename();
  const std::filesystem::path folder = self.parent_path().parent_path() / "libexec/hfopt";

  // The builtin knows, too, whether the operating system saves the registers.
  std::vector<hfopt::portable::InstructionSet> sets = {{.name = "x86-64-v4", .runs_here = __builtin_cpu_supports("x86-64-v4") != 0},
                                                       {.name = "x86-64-v3", .runs_here = __builtin_cpu_supports("x86-64-v3") != 0},
                                                       {.name = "x86-64", .runs_here = true}};
  for (auto& set : sets) set.is_installed = access((folder / set.name / name).c_str(), X_OK) == 0;
  const char* const wanted = std::getenv("HFOPT_CPU");
  const hfopt::portable::Choice choice = hfopt::portable::ChooseSet(sets, wanted != nullptr ? wanted : "");
  if (choice.set.empty()) {
    std::cerr << name << ": " << folder.string() << ": " << choice.why_not << "\n";
    return choice.is_users_mistake ? kUsage : kFailed;
  }
  const std::filesystem::path program = folder / choice.set / name;
  execv(program.c_str(), argv);
  std::cerr << name << ": " << program.string() << " cannot be run: " << std::strerror(errno) << "\n";
  return kFailed;
}
