// Two threads add to one number, under a mutex of Abseil's or, with an argument, without: what the thread sanitizer must pass, and what it must find.

#include <cstdio>
#include <thread>

#include "absl/synchronization/mutex.h"

int main(int argc, char**) {
  absl::Mutex mutex;
  int sum = 0;
  const auto add = [&, guarded = argc == 1] {
    for (int i = 0; i < 10'000; ++i) {
      if (guarded) mutex.Lock();
      ++sum;
      if (guarded) mutex.Unlock();
    }
  };
  std::thread a(add), b(add);
  a.join();
  b.join();
  std::printf("%d\n", sum);
}
