#include "client/cli/stop_on_signal.h"

#include <pthread.h>
#include <signal.h>

#include <initializer_list>

namespace hfopt::cli {
namespace {

// Ends the waiting thread.
constexpr int kWakeUp = SIGUSR2;

sigset_t SetOf(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : signals) sigaddset(&set, signal);
  return set;
}

}  // namespace

StopOnSignal::StopOnSignal() {
  const sigset_t all = SetOf({SIGINT, SIGTERM, kWakeUp});
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  waiter_ = std::thread([this, all] {
    int signal = 0;
    sigwait(&all, &signal);
    if (signal == kWakeUp) return;
    const sigset_t stops = SetOf({SIGINT, SIGTERM}), wake_up = SetOf({kWakeUp});
    pthread_sigmask(SIG_UNBLOCK, &stops, nullptr);  // a second one meets the default action here
    stop_.request_stop();
    sigwait(&wake_up, &signal);
  });
}

StopOnSignal::~StopOnSignal() {
  pthread_kill(waiter_.native_handle(), kWakeUp);
  waiter_.join();
}

}  // namespace hfopt::cli
