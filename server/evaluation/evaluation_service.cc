#include "server/evaluation/evaluation_service.h"

#include <algorithm>
#include <atomic>
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

  std::atomic<int> sessions = 0;

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
  AwaitCall();
  for (const auto& queue : queues_) queue->Start();
}

void EvaluationService::AwaitCall() {
  {
    absl::MutexLock lock(&mu_);
    ++open_;
  }
  next_ = std::make_shared<WorkerSession>(find_pool_, watchdog_);
  queue_of_next_ = std::min_element(queues_.begin(), queues_.end(), [](const auto& a, const auto& b) { return a->sessions < b->sessions; })->get();
  RequestSession(&next_->context(), &next_->stream(), queue_of_next_->get(), /*notification_cq=*/queues_.front()->get(), &called_);
}

void EvaluationService::OnCall(bool ok) {
  const std::shared_ptr<WorkerSession> session = std::exchange(next_, nullptr);
  if (ok) {
    Queue& queue = *queue_of_next_;
    ++queue.sessions;
    AwaitCall();
    session->Start(admit_(session->context()), [this, &queue] {
      --queue.sessions;
      Closed();
    });
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
