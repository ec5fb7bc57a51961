#ifndef HFOPT_DOCKER_PORTABLE_CHOOSE_SET_H_
#define HFOPT_DOCKER_PORTABLE_CHOOSE_SET_H_

#include <string>
#include <vector>

namespace hfopt::portable {

// An instruction set, by its name for -march.
struct InstructionSet {
  std::string name;
  bool runs_here = false;     // processor and operating system have it
  bool is_installed = false;  // the program is there for it
};

struct Choice {
  std::string set;  // "" if there is none
  std::string why_not;
  bool is_users_mistake = false;
};

// The first of `sets` (best first) that is installed and runs here; or `wanted`, unless that is "".
inline Choice ChooseSet(const std::vector<InstructionSet>& sets, const std::string& wanted) {
  std::string good, running;
  for (const InstructionSet& set : sets) {
    if (!set.runs_here) continue;
    running += (running.empty() ? "" : ", ") + set.name;
    if (!set.is_installed) continue;
    if (wanted.empty() || set.name == wanted) return {.set = set.name};
    good += (good.empty() ? "" : ", ") + set.name;
  }
  if (good.empty()) return {.why_not = "nothing is installed that this processor can run; it can run " + running};
  const char* what = "is no instruction set";
  for (const InstructionSet& set : sets) {
    if (set.name == wanted) what = set.is_installed ? "this processor cannot run" : "is not installed";
  }
  return {.why_not = "HFOPT_CPU is \"" + wanted + "\", which " + what + "; unset it, or choose one of " + good, .is_users_mistake = true};
}

}  // namespace hfopt::portable

#endif  // HFOPT_DOCKER_PORTABLE_CHOOSE_SET_H_
