#include "client/cli/supervised_process.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hfopt::cli {
namespace {

// Pointers for execve; the texts must outlive them.
std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// HFOPT_CPU stays: it is no option of ours, but the instruction set of all programs (docker/portable).
std::vector<std::string> EnvironmentWithoutOurs() {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "HFOPT_") || absl::StartsWith(*variable, "HFOPT_CPU=")) variables.emplace_back(*variable);
  }
  return variables;
}

// What the child does; only calls that are safe after a fork of a process with threads.
[[noreturn]] void Exec(const std::vector<char*>& command, const std::vector<char*>& environment, int output,
                       pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // the parent was faster to die
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  if (const int null = open("/dev/null", O_RDONLY); null >= 0) dup2(null, STDIN_FILENO);
  execve(command[0], command.data(), environment.data());
  const char* const program = command[0];
  const char* const reason = strerrordesc_np(errno);  // unlike strerror, safe here
  for (const char* text : {program, ": cannot be executed: ", reason, "\n"}) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) break;
  }
  _exit(127);
}

// Passes on each line read, until the end of the stream.
template <typename OnLine>
void ReadLines(int input, OnLine on_line) {
  std::string pending;
  char buffer[4096];
  while (true) {
    const ssize_t size = read(input, buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    pending.append(buffer, size);
    size_t begin = 0;
    for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
      on_line(pending.substr(begin, end - begin));
    }
    pending.erase(0, begin);
  }
  if (!pending.empty()) on_line(pending);
}

}  // namespace

SupervisedProcess::SupervisedProcess(Options options) : options_(std::move(options)) {
  thread_ = std::thread([this] { Main(); });
}

SupervisedProcess::~SupervisedProcess() { Stop(); }

// The kernel kills a child when the thread that made it ends, so the thread that runs this stays as long as the
// program.
void SupervisedProcess::Main() {
  for (int restarts = 0;; ++restarts) {
    const End end = RunOnce();
    std::unique_lock<std::mutex> lock(mu_);
    const bool again = !stopping_ && !end.ok && restarts < options_.max_restarts;
    if (!again) {
      const bool unasked = !stopping_;
      lock.unlock();
      if (unasked && options_.on_end) options_.on_end(end.ok, end.how);
      lock.lock();
      done_ = true;
      changed_.notify_all();
      return;
    }
    lock.unlock();
    if (options_.on_restart) options_.on_restart(end.how);
    lock.lock();
    changed_.wait_for(lock, options_.restart_pause, [this] { return stopping_; });
  }
}

SupervisedProcess::End SupervisedProcess::RunOnce() {
  const std::vector<std::string> environment = EnvironmentWithoutOurs();
  const std::vector<char*> command_pointers = Pointers(options_.command), environment_pointers = Pointers(environment);
  const pid_t parent = getpid();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {false, absl::StrCat("could not be started: ", strerror(errno))};
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) {
      close(ends[0]);
      close(ends[1]);
      return {true, "was not started"};
    }
    pid_ = fork();
    if (pid_ == 0) Exec(command_pointers, environment_pointers, ends[1], parent);
    close(ends[1]);
    if (pid_ < 0) {
      pid_ = 0;
      close(ends[0]);
      return {false, absl::StrCat("could not be started: ", strerror(errno))};
    }
  }
  std::ofstream log(options_.log_file, std::ios::app);
  ReadLines(ends[0], [&](const std::string& line) {
    log << line << std::endl;
    if (options_.on_line) options_.on_line(line);
  });
  close(ends[0]);

  // Left as a zombie until nobody can signal it any more: its id is not used again before.
  siginfo_t info;
  while (waitid(P_PID, pid_, &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  const std::lock_guard<std::mutex> lock(mu_);
  int status = 0;
  waitpid(std::exchange(pid_, 0), &status, 0);
  if (WIFSIGNALED(status))
    return {false, absl::StrCat("was killed by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")")};
  return {WEXITSTATUS(status) == 0, absl::StrCat("ended with exit code ", WEXITSTATUS(status))};
}

void SupervisedProcess::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

void SupervisedProcess::RequestStop() {
  const std::lock_guard<std::mutex> lock(mu_);
  if (!stopping_) Signal(SIGTERM);
  stopping_ = true;
  changed_.notify_all();
}

void SupervisedProcess::Stop(std::chrono::seconds grace) {
  RequestStop();
  {
    std::unique_lock<std::mutex> lock(mu_);
    if (!changed_.wait_for(lock, grace, [this] { return done_; })) Signal(SIGKILL);
  }
  if (thread_.joinable()) thread_.join();
}

std::string LastLine(const std::string& log_file) {
  std::ifstream log(log_file);
  std::string last;
  for (std::string line; std::getline(log, line);) {
    if (!line.empty()) last = line;
  }
  return last;
}

}  // namespace hfopt::cli
