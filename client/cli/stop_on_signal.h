#ifndef HFOPT_CLIENT_CLI_STOP_ON_SIGNAL_H_
#define HFOPT_CLIENT_CLI_STOP_ON_SIGNAL_H_

#include <stop_token>
#include <thread>

namespace hfopt::cli {

// Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process as if this class did not
// exist. One at a time, made before the process has other threads.
class StopOnSignal {
 public:
  StopOnSignal();
  ~StopOnSignal();
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

  std::stop_token token() const { return stop_.get_token(); }

 private:
  std::stop_source stop_;
  std::thread waiter_;
};

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_STOP_ON_SIGNAL_H_
