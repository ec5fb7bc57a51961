#include "server/evaluation/evaluation_service.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"


namespace hfopt::server {

// Takes calls, one after the other, and serves their sessions.
class EvaluationService::Queue {
 public:
  Queue(EvaluationService& service, std::unique_ptr<grpc::ServerCompletionQueue> queue) : service_(service), queue_(std::move(queue)) {}
  ~Queue() {
    queue_->Shutdown();
    if (thread_.joinable()) {
      thread_.join();
    } else {
      Run();
    }
  }

  void Start() {
    AwaitCall();
    thread_ = std::thread([this] { Run(); });
  }
  void AwaitEnd() {
    if (thread_.joinable()) ended_.WaitForNotification();
  }

 private:
  void AwaitCall() {
    next_ = std::make_shared<WorkerSession>(service_.find_pool_, service_.watchdog_);
    service_.RequestSession(&next_->context(), &next_->stream(), queue_.get(), queue_.get(), &called_);
  }
  void OnCall(bool ok) {
    const std::shared_ptr<WorkerSession> session = std::exchange(next_, nullptr);
    if (!ok) return;  // the server shuts down
    AwaitCall();
    ++sessions_;
    session->Start(service_.admit_(session->context()), [this] { --sessions_; });
  }
  void Run() {
    void* completion = nullptr;
    for (bool ok = false; queue_->Next(&completion, &ok);) {
      (*static_cast<Completion*>(completion))(ok);
      if (next_ == nullptr && sessions_ == 0) ended_.Notify();  // nothing is under way, so this comes once
    }
  }

  EvaluationService& service_;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::shared_ptr<WorkerSession> next_;  // null once the server shuts down
  int sessions_ = 0;
  absl::Notification ended_;
  Completion called_ = [this](bool ok) { OnCall(ok); };
  std::thread thread_;
};

EvaluationService::EvaluationService(WorkerSession::FindPool find_pool, TransferWatchdog& watchdog, Admit admit)
    : find_pool_(std::move(find_pool)), watchdog_(watchdog), admit_(std::move(admit)) {}

EvaluationService::~EvaluationService() = default;

void EvaluationService::AddTo(grpc::ServerBuilder& builder) {
  builder.RegisterService(this);
  // Two sessions at least are served at once; and the workers on this machine need its cores, too.
  const unsigned queues = std::clamp(std::thread::hardware_concurrency() / 2, 2u, 16u);
  for (unsigned i = 0; i < queues; ++i) queues_.push_back(std::make_unique<Queue>(*this, builder.AddCompletionQueue()));
}

void EvaluationService::Start() {
  for (const auto& queue : queues_) queue->Start();
}

void EvaluationService::AwaitEnd() {
  for (const auto& queue : queues_) queue->AwaitEnd();
}

}  // namespace hfopt::server
