#ifndef HFOPT_TESTS_SUPPORT_FAKE_LINK_H_
#define HFOPT_TESTS_SUPPORT_FAKE_LINK_H_

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "server/evaluation/worker_link.h"

namespace hfopt::testing {

// Time that only moves when told.
class FakeClock {
 public:
  absl::Time Now() const {
    absl::MutexLock lock(&mu_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    absl::MutexLock lock(&mu_);
    now_ += duration;
  }
  std::function<absl::Time()> AsFunction() {
    return [this] { return Now(); };
  }

 private:
  mutable absl::Mutex mu_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
};

// A session that remembers what it was told, in order. Vectors count as messages of their own.
class FakeLink : public server::WorkerLink {
 public:
  struct Sent {
    v1::SessionResponse message;
    std::string vector;  // name, when it was a vector
  };

  explicit FakeLink(FakeClock& clock) : clock_(clock), last_heard_(clock.Now()) {}

  void Send(v1::SessionResponse message) override {
    absl::MutexLock lock(&mu_);
    sent_.push_back({std::move(message), ""});
  }
  void SendVector(server::NamedVectorPtr vector) override {
    absl::MutexLock lock(&mu_);
    bytes_sent_ += server::Size(vector->vector) * 4;
    sent_.push_back({{}, vector->name});
  }
  void UseSharedMemory(std::shared_ptr<wire::SharedSegment>, std::shared_ptr<wire::SharedSegment>) override {}
  bool shared_memory() const override { return false; }
  void Close(absl::Status status) override {
    absl::MutexLock lock(&mu_);
    if (!closed_.has_value()) closed_ = std::move(status);
  }
  absl::Time last_heard() const override {
    absl::MutexLock lock(&mu_);
    return last_heard_;
  }
  uint64_t bytes_sent() const override {
    absl::MutexLock lock(&mu_);
    return bytes_sent_;
  }
  uint64_t bytes_received() const override { return 0; }

  // The worker said something.
  void Hear() {
    absl::MutexLock lock(&mu_);
    last_heard_ = clock_.Now();
  }

  std::vector<Sent> sent() const {
    absl::MutexLock lock(&mu_);
    return sent_;
  }
  std::optional<absl::Status> closed() const {
    absl::MutexLock lock(&mu_);
    return closed_;
  }
  bool was_welcomed() const {
    return Count([](const Sent& s) { return s.message.has_welcome(); }) > 0;
  }
  int Count(const std::function<bool(const Sent&)>& predicate) const {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(std::count_if(sent_.begin(), sent_.end(), predicate));
  }
  // Blocks until `count` evaluations have been asked for, and returns them in order.
  std::vector<v1::EvaluationRequest> AwaitRequests(int count) {
    std::vector<v1::EvaluationRequest> requests;
    absl::MutexLock lock(&mu_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      requests.clear();
      for (const Sent& s : sent_) {
        if (s.message.has_evaluation()) requests.push_back(s.message.evaluation());
      }
      return static_cast<int>(requests.size()) >= count;
    };
    mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(30));
    return requests;
  }

 private:
  FakeClock& clock_;
  mutable absl::Mutex mu_;
  absl::Time last_heard_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_sent_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Sent> sent_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_FAKE_LINK_H_
