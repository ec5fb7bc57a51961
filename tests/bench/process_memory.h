#ifndef HFOPT_TESTS_BENCH_PROCESS_MEMORY_H_
#define HFOPT_TESTS_BENCH_PROCESS_MEMORY_H_

#include <sys/types.h>

#include <fstream>
#include <string>

namespace hfopt::testing {

// A line of /proc/PROCESS/status in bytes: "VmRSS:", the memory it has, or "VmHWM:", the most it has had. 0 when there is none.
inline double MemoryOf(pid_t process, const std::string& line) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string key; status >> key;) {
    if (key != line) continue;
    double kib = 0;
    status >> kib;
    return kib * 1024;
  }
  return 0;
}

// Makes "VmHWM:" begin anew.
inline void ForgetPeakOf(pid_t process) { std::ofstream("/proc/" + std::to_string(process) + "/clear_refs") << 5; }

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_BENCH_PROCESS_MEMORY_H_
