#ifndef HFOPT_TESTS_CONFORMANCE_THREAD_WORKER_H_
#define HFOPT_TESTS_CONFORMANCE_THREAD_WORKER_H_

#include <csignal>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "client/cli/conformance/worker_under_test.h"
#include "client/cpp/model_worker.h"

namespace hfopt::conformance {

// Something that works in a thread as a worker's process does.
class Service {
 public:
  virtual ~Service() = default;
  virtual absl::Status Run() = 0;  // blocks until it has ended
  virtual void Stop() = 0;         // as on SIGTERM
  virtual void StopAtOnce() = 0;   // as on SIGKILL, but for the computation under way
};

// A worker of this process. Each start makes a new service.
class ThreadWorker final : public WorkerUnderTest {
 public:
  using MakeService = std::function<std::unique_ptr<Service>(const std::string& address, const std::string& run_id,
                                                             const std::string& worker_id)>;
  explicit ThreadWorker(MakeService make) : make_(std::move(make)) {}
  ~ThreadWorker() override { Kill(); }

  bool can_start() const override { return true; }
  absl::Status Start(const std::string& address, const std::string& run_id, const std::string& worker_id) override {
    Kill();
    exit_.reset();
    service_ = make_(address, run_id, worker_id);
    running_ = std::async(std::launch::async, [service = service_.get()] { return service->Run(); });
    return absl::OkStatus();
  }
  void RequestStop() override {
    if (service_ != nullptr) service_->Stop();
  }
  void Kill() override {
    if (service_ == nullptr) return;
    service_->StopAtOnce();
    running_.wait();
    service_.reset();
    exit_ = WorkerExit{128 + SIGKILL, SIGKILL, ""};
  }
  std::optional<WorkerExit> AwaitExit(absl::Duration timeout) override {
    if (service_ != nullptr && running_.wait_for(absl::ToChronoNanoseconds(timeout)) == std::future_status::ready) {
      const absl::Status status = running_.get();
      service_.reset();
      exit_ = WorkerExit{status.ok() ? 0 : 1, 0, status.ToString()};
    }
    return exit_;
  }

 private:
  const MakeService make_;
  std::unique_ptr<Service> service_;
  std::future<absl::Status> running_;
  std::optional<WorkerExit> exit_;
};

// The SDK's worker with a model.
template <typename Scalar>
class ModelService final : public Service {
 public:
  ModelService(std::unique_ptr<client::Model<Scalar>> model, const std::string& address, const std::string& run_id,
               const std::string& worker_id)
      : model_(std::move(model)),
        worker_(*model_, {.channel = client::MakeChannel(address),
                          .run_id = run_id,
                          .worker_id = worker_id,
                          .initial_backoff = absl::Milliseconds(10),
                          .max_backoff = absl::Milliseconds(200)}) {}
  absl::Status Run() override { return worker_.Run().status(); }
  void Stop() override { worker_.Stop(); }
  void StopAtOnce() override {
    worker_.Stop();
    worker_.Stop();
  }

 private:
  std::unique_ptr<client::Model<Scalar>> model_;
  client::ModelWorker<Scalar> worker_;
};

template <typename Scalar>
ThreadWorker::MakeService ServiceOf(std::function<std::unique_ptr<client::Model<Scalar>>()> make_model) {
  return [make_model = std::move(make_model)](const std::string& address, const std::string& run_id,
                                              const std::string& worker_id) -> std::unique_ptr<Service> {
    return std::make_unique<ModelService<Scalar>>(make_model(), address, run_id, worker_id);
  };
}

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_THREAD_WORKER_H_
