#include "proto/log/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <memory>
#include <mutex>

#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"

namespace hfopt {
namespace {

class UnwaitingSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit UnwaitingSink(int descriptor) : descriptor_(descriptor) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    if (lost_ > 0) {
      const std::string gap = "(" + std::to_string(lost_) + " lines were lost: nobody read the log)\n";
      if (!Write(gap.data(), gap.size())) {
        ++lost_;
        return;
      }
      lost_ = 0;
    }
    if (!Write(line.data(), line.size())) ++lost_;
  }
  void flush_() override {}

  // Whether all of it went. A pipe that is ready takes PIPE_BUF bytes without waiting.
  bool Write(const char* data, size_t size) {
    while (size > 0) {
      pollfd ready{.fd = descriptor_, .events = POLLOUT, .revents = 0};
      if (poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) return false;
      const ssize_t written = write(descriptor_, data, std::min<size_t>(size, PIPE_BUF));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return false;
      data += written;
      size -= written;
    }
    return true;
  }

  const int descriptor_;
  int64_t lost_ = 0;
};

}  // namespace

void SetUpLog(const std::string& name, int descriptor) {
  std::signal(SIGPIPE, SIG_IGN);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(name, std::make_shared<UnwaitingSink>(descriptor)));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
}

}  // namespace hfopt
