#include "server/run/arithmetic_threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "core/vector.h"
#include "unsupported/Eigen/CXX11/ThreadPool"

namespace hfopt::server {

int DefaultArithmeticThreads() {
  cpu_set_t cores;
  const bool known = sched_getaffinity(0, sizeof(cores), &cores) == 0;
  return std::clamp(known ? CPU_COUNT(&cores) : static_cast<int>(std::thread::hardware_concurrency()), 1, 8);
}

void ShareOutArithmetic(int threads) {
  if (threads <= 1) return SetPartRunner(nullptr);
  const auto pool = std::make_shared<Eigen::ThreadPool>(threads - 1, /*allow_spinning=*/false);
  SetPartRunner([pool](int64_t parts, const std::function<void(int64_t)>& part) {
    std::atomic<int64_t> next = 0;
    const auto work = [&] {
      for (int64_t k = next++; k < parts; k = next++) part(k);
    };
    const int helpers = static_cast<int>(std::min<int64_t>(parts - 1, pool->NumThreads()));
    Eigen::Barrier helped(helpers);
    for (int i = 0; i < helpers; ++i) {
      pool->Schedule([&work, &helped] {
        work();
        helped.Notify();
      });
    }
    work();
    helped.Wait();  // also for those that came too late to help: they look at this frame
  });
}

}  // namespace hfopt::server
