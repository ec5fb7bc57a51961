#include "server/run/arithmetic_threads.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/vector.h"

namespace hfopt::server {
namespace {

// Callers and helpers take the parts of a job one by one. A part is a mebibyte and more of each vector: what the lock costs is nothing beside it.
class Helpers {
 public:
  explicit Helpers(int number) {
    try {
      for (int i = 0; i < number; ++i) threads_.emplace_back([this] { Help(); });
    } catch (const std::system_error&) {  // a limit of threads: those there are do
    }
  }
  ~Helpers() {
    {
      absl::MutexLock lock(&mu_);
      ending_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void Run(int64_t parts, const std::function<void(int64_t)>& part) {
    Job job{.part = part, .parts = parts};
    absl::MutexLock lock(&mu_);
    jobs_.push_back(&job);
    TakeParts(job);
    const auto done = [&job] { return job.done == job.parts; };
    mu_.Await(absl::Condition(&done));
  }

 private:
  struct Job {
    const std::function<void(int64_t)>& part;
    int64_t parts;
    int64_t begun = 0, done = 0;
  };

  // Until all are begun. The job may be gone when mu_ is released next.
  void TakeParts(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    while (job.begun < job.parts) {
      const int64_t k = job.begun++;
      if (job.begun == job.parts) jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
      mu_.Unlock();
      job.part(k);
      mu_.Lock();
      ++job.done;
    }
  }

  void Help() {
    absl::MutexLock lock(&mu_);
    const auto is_wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return ending_ || !jobs_.empty(); };
    while (true) {
      mu_.Await(absl::Condition(&is_wanted));
      if (ending_) return;
      TakeParts(*jobs_.front());
    }
  }

  absl::Mutex mu_;
  std::deque<Job*> jobs_ ABSL_GUARDED_BY(mu_);  // with parts that nobody has begun, the oldest first
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace

int DefaultArithmeticThreads() {
  cpu_set_t set;
  const bool known = sched_getaffinity(0, sizeof(set), &set) == 0;
  double cores = known ? CPU_COUNT(&set) : std::thread::hardware_concurrency();
  // What a container may use of them: "QUOTA PERIOD" in microseconds, or "max PERIOD" (Linux, Control Group v2).
  double quota = 0, period = 0;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> quota >> period && period > 0) cores = std::min(cores, quota / period);
  return static_cast<int>(std::clamp(cores, 1.0, 8.0));
}

void ShareOutArithmetic(int threads) {
  if (threads <= 1) return SetPartRunner(nullptr);
  const auto helpers = std::make_shared<Helpers>(threads - 1);
  SetPartRunner([helpers](int64_t parts, const std::function<void(int64_t)>& part) { helpers->Run(parts, part); });
}

}  // namespace hfopt::server
