#ifndef HFOPT_CLIENT_CLI_SUPERVISED_PROCESS_H_
#define HFOPT_CLIENT_CLI_SUPERVISED_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace hfopt::cli {

// A program kept running on this machine: started again when it fails, stopped when this object is destroyed, and
// killed by the system should our process be killed. It runs in a process group of its own (Ctrl-C is ours alone to
// handle) and without our HFOPT_* environment.
class SupervisedProcess {
 public:
  struct Options {
    std::vector<std::string> command;  // the program's path, then its arguments
    std::string log_file;              // gets what it writes, at the end
    int max_restarts = 0;
    std::chrono::milliseconds restart_pause{500};
    // Called from a thread of this object, never after RequestStop returned to its caller and the program ended.
    std::function<void(const std::string& line)> on_line;         // each line it writes
    std::function<void(const std::string& how)> on_restart;       // "was killed by signal 9": it is started again
    std::function<void(bool ok, const std::string& how)> on_end;  // ended for good without being asked to
  };

  explicit SupervisedProcess(Options options);
  ~SupervisedProcess();
  SupervisedProcess(const SupervisedProcess&) = delete;
  SupervisedProcess& operator=(const SupervisedProcess&) = delete;

  // Asks it to end (SIGTERM). Does not wait.
  void RequestStop();
  // Waits until it has ended; kills it after `grace`.
  void Stop(std::chrono::seconds grace = std::chrono::seconds(10));

 private:
  struct End {
    bool ok = false;
    std::string how;  // "ended with exit code 3"
  };

  void Main();
  End RunOnce();
  void Signal(int signal);  // with mu_ held

  const Options options_;
  std::mutex mu_;
  std::condition_variable changed_;
  pid_t pid_ = 0;  // 0: not running
  bool stopping_ = false;
  bool done_ = false;
  std::thread thread_;
};

// The last line of a log file that is not empty, for error messages.
std::string LastLine(const std::string& log_file);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_SUPERVISED_PROCESS_H_
