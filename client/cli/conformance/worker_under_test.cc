#include "client/cli/conformance/worker_under_test.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace hfopt::conformance {

std::string Describe(const WorkerExit& exit) {
  constexpr size_t kShown = 300;
  std::string text = exit.signal != 0
                         ? absl::StrCat("was killed by signal ", exit.signal, " (", strsignal(exit.signal), ")")
                         : absl::StrCat("ended with exit code ", exit.code);
  absl::string_view output = absl::StripAsciiWhitespace(exit.output);
  if (output.empty()) return absl::StrCat(text, " without a word");
  if (output.size() > kShown) output.remove_prefix(output.size() - kShown);
  return absl::StrCat(text, ", saying: ", output);
}

ProcessWorker::ProcessWorker(std::vector<std::string> command) : command_(std::move(command)) {
  std::string name = (std::filesystem::temp_directory_path() / "hfopt-conformance-XXXXXX").string();
  if (const int file = mkstemp(name.data()); file >= 0) {
    close(file);
    log_file_ = name;
  }
}

ProcessWorker::~ProcessWorker() {
  Kill();
  std::error_code ignored;
  std::filesystem::remove(log_file_, ignored);
}

absl::Status ProcessWorker::Start(const std::string& address, const std::string& run_id, const std::string& worker_id) {
  Kill();
  exit_.reset();
  std::vector<std::string> command;
  for (const std::string& argument : command_) {
    command.push_back(
        absl::StrReplaceAll(argument, {{"{address}", address}, {"{run}", run_id}, {"{worker}", worker_id}}));
  }
  std::vector<char*> pointers;
  for (std::string& argument : command) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const int log = open(log_file_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log < 0) return absl::InternalError(absl::StrCat("cannot write ", log_file_, ": ", strerror(errno)));
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {  // only calls that are safe after a fork of a process with threads
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(pointers[0], pointers.data());
    const char* const program = pointers[0];
    const char* const reason = strerrordesc_np(errno);
    for (const char* text : {program, ": cannot be executed: ", reason, "\n"}) {
      if (write(STDERR_FILENO, text, strlen(text)) < 0) break;
    }
    _exit(127);
  }
  close(log);
  if (pid_ < 0) {
    pid_ = 0;
    return absl::InternalError(absl::StrCat("cannot start ", command[0], ": ", strerror(errno)));
  }
  setpgid(pid_, pid_);
  return absl::OkStatus();
}

void ProcessWorker::RequestStop() {
  if (pid_ > 0) kill(pid_, SIGTERM);
}

void ProcessWorker::Kill() {
  if (pid_ <= 0) return;
  kill(-pid_, SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  exit_ = WorkerExit{128 + SIGKILL, SIGKILL, Output()};
}

std::optional<WorkerExit> ProcessWorker::AwaitExit(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (pid_ > 0) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      kill(-pid_, SIGKILL);  // what it may have left behind
      pid_ = 0;
      exit_ = WIFSIGNALED(status) ? WorkerExit{128 + WTERMSIG(status), WTERMSIG(status), Output()}
                                  : WorkerExit{WEXITSTATUS(status), 0, Output()};
    } else if (absl::Now() >= deadline) {
      return std::nullopt;
    } else {
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return exit_;
}

std::string ProcessWorker::Output() const {
  std::stringstream text;
  text << std::ifstream(log_file_).rdbuf();
  return text.str();
}

}  // namespace hfopt::conformance
