#ifndef HFOPT_TESTS_SUPPORT_PROCESS_H_
#define HFOPT_TESTS_SUPPORT_PROCESS_H_

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

extern char** environ;

namespace hfopt::testing {

// A real process, killed and waited for at the latest when this goes. Its standard error can be read line by line.
class Process {
 public:
  explicit Process(std::vector<std::string> command) {
    int pipe_ends[2];
    EXPECT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
    error_ = fdopen(pipe_ends[0], "r");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
    std::vector<char*> argv;
    for (std::string& argument : command) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const int error = posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    EXPECT_EQ(error, 0) << command[0] << ": " << strerror(error);
    if (error != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_ends[1]);
  }
  ~Process() {
    Signal(SIGKILL);
    Wait();
    fclose(error_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) {
    if (pid_ > 0) kill(pid_, signal);
  }
  // The exit code, or 128 + the signal that ended it. May be called again.
  int Wait() {
    if (pid_ > 0) {
      int status = 0;
      waitpid(pid_, &status, 0);
      exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      pid_ = -1;
    }
    return exit_;
  }

  // Blocks until a line of standard error contains `text` and returns what follows it; "" when the process ended before.
  std::string AwaitErrorLine(const std::string& text) {
    char line[4096];
    while (fgets(line, sizeof(line), error_) != nullptr) {
      if (const char* const found = strstr(line, text.c_str())) {
        std::string rest = found + text.size();
        while (!rest.empty() && rest.back() == '\n') rest.pop_back();
        return rest;
      }
      seen_ += line;
    }
    ADD_FAILURE() << "no line with \"" << text << "\" in:\n" << seen_;
    return "";
  }

 private:
  pid_t pid_ = -1;
  int exit_ = -1;
  FILE* error_ = nullptr;
  std::string seen_;
};

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_PROCESS_H_
