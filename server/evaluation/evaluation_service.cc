#include "server/evaluation/evaluation_service.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace hfopt::server {

// A completion queue and its thread.
class EvaluationService::Queue {
 public:
  explicit Queue(std::unique_ptr<grpc::ServerCompletionQueue> queue) : queue_(std::move(queue)) {}
  ~Queue() {
    queue_->Shutdown();
    if (thread_.joinable()) {
      thread_.join();
    } else {
      Run();
    }
  }

  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  grpc::ServerCompletionQueue* get() const { return queue_.get(); }

  std::shared_ptr<WorkerSession> next;  // for the call that is awaited
  Completion called;                    // when it has come

 private:
  void Run() {
    void* completion = nullptr;
    for (bool ok = false; queue_->Next(&completion, &ok);) (*static_cast<Completion*>(completion))(ok);
  }

  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::thread thread_;
};

EvaluationService::EvaluationService(WorkerSession::FindPool find_pool, TransferWatchdog& watchdog, Admit admit)
    : find_pool_(std::move(find_pool)), watchdog_(watchdog), admit_(std::move(admit)) {}

EvaluationService::~EvaluationService() = default;

void EvaluationService::AddTo(grpc::ServerBuilder& builder) {
  builder.RegisterService(this);
  // Two sessions at least are served at once; and the workers on this machine need its cores, too.
  const unsigned queues = std::clamp(std::thread::hardware_concurrency() / 2, 2u, 16u);
  for (unsigned i = 0; i < queues; ++i) queues_.push_back(std::make_unique<Queue>(builder.AddCompletionQueue()));
}

void EvaluationService::Start() {
  for (const auto& queue : queues_) {
    queue->called = [this, &queue = *queue](bool ok) { OnCall(queue, ok); };
    AwaitCall(*queue);
    queue->Start();
  }
}

void EvaluationService::AwaitCall(Queue& queue) {
  {
    absl::MutexLock lock(&mu_);
    ++open_;
  }
  queue.next = std::make_shared<WorkerSession>(find_pool_, watchdog_);
  RequestSession(&queue.next->context(), &queue.next->stream(), queue.get(), queue.get(), &queue.called);
}

void EvaluationService::OnCall(Queue& queue, bool ok) {
  const std::shared_ptr<WorkerSession> session = std::exchange(queue.next, nullptr);
  if (ok) {
    AwaitCall(queue);
    session->Start(admit_(session->context()), [this] { Closed(); });
  } else {  // the server shuts down
    Closed();
  }
}

void EvaluationService::Closed() {
  absl::MutexLock lock(&mu_);
  --open_;
}

void EvaluationService::Stop() {
  {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(+[](int* open) { return *open == 0; }, &open_));
  }
  queues_.clear();
}

}  // namespace hfopt::server
