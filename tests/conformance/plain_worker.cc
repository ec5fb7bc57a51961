#include "tests/conformance/plain_worker.h"

#include <chrono>
#include <cstring>

#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

bool IsRefusal(absl::StatusCode code) {
  return code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kFailedPrecondition ||
         code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kPermissionDenied ||
         code == absl::StatusCode::kUnauthenticated || code == absl::StatusCode::kUnimplemented;
}

}  // namespace

absl::Status PlainWorker::Run() {
  auto pause = std::chrono::milliseconds(10);
  while (true) {
    const absl::Status status = Serve();
    {
      std::unique_lock<std::mutex> lock(mu_);
      if (finished_) return Is(Misconduct::kFailsAtFinished) ? absl::InternalError("what now?") : absl::OkStatus();
      if (stopping_) return absl::OkStatus();
      if (IsRefusal(status.code()) && !Is(Misconduct::kDialsAfterARefusal)) return status;
      if (Is(Misconduct::kGivesUpWhenUnavailable) && absl::IsUnavailable(status)) return status;
      changed_.wait_for(lock, pause, [this] { return stopping_; });
    }
    pause = std::min(2 * pause, std::chrono::milliseconds(200));
  }
}

void PlainWorker::Stop() {
  const std::lock_guard<std::mutex> lock(mu_);
  stopping_ = true;
  v1::SessionRequest drain;
  drain.mutable_drain();
  if (!Is(Misconduct::kLeavesWithoutDrain)) outbox_.push_back(drain);
  if (session_ != nullptr && !welcomed_) session_->context.TryCancel();
  changed_.notify_all();
}

void PlainWorker::StopAtOnce() {
  const std::lock_guard<std::mutex> lock(mu_);
  stopping_ = at_once_ = true;
  if (session_ != nullptr) session_->context.TryCancel();
  changed_.notify_all();
}

v1::Hello PlainWorker::Hello() const {
  v1::Hello hello = identity_;
  for (const auto& [name, vector] : vectors_) hello.add_held_vectors(name);
  for (const std::string& name : half_) hello.add_held_vectors(name);
  if (Is(Misconduct::kIncarnationOfTheSession)) hello.set_incarnation(absl::ToUnixNanos(absl::Now()));
  if (Is(Misconduct::kPromisesLostAnswers)) {
    for (const uint64_t id : seen_) hello.add_pending_requests(id);
  }
  return hello;
}

absl::Status PlainWorker::Serve() {
  Session session;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) return absl::CancelledError("stopped");
    session_ = &session;
    outbox_.clear();
    over_ = welcomed_ = false;
  }
  transfers_.clear();
  const v1::Hello hello = Hello();
  if (!Is(Misconduct::kPromisesLostAnswers)) seen_.clear();
  session.context.set_wait_for_ready(true);
  session.stream = stub_->Session(&session.context);
  v1::SessionRequest first;
  *first.mutable_hello() = hello;
  session.stream->Write(first);
  if (Is(Misconduct::kSpeaksBeforeWelcome)) {
    first.mutable_shared_memory_attached();
    session.stream->Write(first);
  }
  std::thread writer([this] { Write(); });
  v1::SessionResponse message;
  absl::Status offence;
  while (offence.ok() && session.stream->Read(&message)) offence = Handle(message);
  if (!offence.ok()) {
    session.context.TryCancel();
    while (session.stream->Read(&message)) {
    }
  }
  {
    const std::lock_guard<std::mutex> lock(mu_);
    over_ = true;
    changed_.notify_all();
  }
  writer.join();
  // A message that cannot be parsed ends the reads of this stub, but not the stream.
  bool done = false;
  std::thread cancel([&] {
    std::unique_lock<std::mutex> lock(mu_);
    if (!changed_.wait_for(lock, std::chrono::milliseconds(300), [&] { return done; })) session.context.TryCancel();
  });
  const absl::Status status = wire::FromGrpc(session.stream->Finish());
  {
    const std::lock_guard<std::mutex> lock(mu_);
    done = true;
    changed_.notify_all();
  }
  cancel.join();
  const std::lock_guard<std::mutex> lock(mu_);
  session_ = nullptr;
  return !offence.ok() ? offence : status.ok() ? absl::UnavailableError("closed without a reason") : status;
}

// Sends what is in the outbox, and renewals.
void PlainWorker::Write() {
  std::unique_lock<std::mutex> lock(mu_);
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_write = Clock::now();
  while (!over_) {
    const auto next_renewal =
        last_write + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(lease_ / 3));
    const bool may_renew =
        welcomed_ && !Is(Misconduct::kNeverRenews) && !(computing_ && Is(Misconduct::kRenewsBetweenEvaluationsOnly));
    v1::SessionRequest message;
    if (!outbox_.empty()) {
      message = std::move(outbox_.front());
      outbox_.pop_front();
    } else if (stopping_ && welcomed_ && !computing_) {
      session_->stream->WritesDone();
      changed_.wait(lock, [this] { return over_; });
      return;
    } else if (may_renew && Clock::now() >= next_renewal) {
      message.mutable_lease_renewal();
    } else {
      changed_.wait_until(lock, std::min(next_renewal, Clock::now() + std::chrono::milliseconds(20)));
      continue;
    }
    lock.unlock();
    session_->stream->Write(message);
    lock.lock();
    last_write = Clock::now();
  }
}

void PlainWorker::Send(v1::SessionRequest message) {
  if (Is(Misconduct::kWritesInItsReader)) {
    session_->stream->Write(message);
    return;
  }
  const std::lock_guard<std::mutex> lock(mu_);
  outbox_.push_back(std::move(message));
  changed_.notify_all();
}

absl::Status PlainWorker::Handle(v1::SessionResponse& message) {
  switch (message.message_case()) {
    case v1::SessionResponse::kWelcome: {
      if (message.welcome().element_type() != v1::ELEMENT_TYPE_FLOAT64)
        return absl::FailedPreconditionError("only float64");
      const std::lock_guard<std::mutex> lock(mu_);
      lease_ = message.welcome().lease_seconds();
      welcomed_ = true;
      changed_.notify_all();
      return absl::OkStatus();
    }
    case v1::SessionResponse::kVectorHeader: {
      const v1::VectorHeader& header = message.vector_header();
      HFOPT_RETURN_IF_ERROR(wire::CheckHeader<double>(header, model_->num_parameters()));
      const size_t n = model_->num_parameters();
      transfers_[header.transfer()] = {header.name(), std::vector<double>(n), std::vector<bool>(n)};
      if (Is(Misconduct::kStatesHalfVectors)) half_.insert(header.name());
      return absl::OkStatus();
    }
    case v1::SessionResponse::kVectorChunk:
      return HandleChunk(message.vector_chunk());
    case v1::SessionResponse::kEvaluation:
      HandleEvaluation(std::move(*message.mutable_evaluation()));
      return absl::OkStatus();
    case v1::SessionResponse::kRelease:
      for (const std::string& name : message.release().vectors()) {
        if (Is(Misconduct::kNeverForgets)) continue;
        vectors_.erase(name);
        evaluator_.Release(name);
      }
      return absl::OkStatus();
    case v1::SessionResponse::kFinished: {
      const std::lock_guard<std::mutex> lock(mu_);
      finished_ = true;
      return absl::OkStatus();
    }
    case v1::SessionResponse::kCancel:
      return absl::OkStatus();
    case v1::SessionResponse::MESSAGE_NOT_SET:
      return Is(Misconduct::kDiesOfUnknownMessages) ? absl::InvalidArgumentError("what is this?") : absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status PlainWorker::HandleChunk(const v1::VectorChunk& chunk) {
  auto found = Is(Misconduct::kMixesTransfers) ? std::prev(transfers_.end()) : transfers_.find(chunk.transfer());
  if (transfers_.empty() || found == transfers_.end()) return absl::DataLossError("a chunk of no transfer");
  Transfer& transfer = found->second;
  const size_t n = transfer.numbers.size(), count = chunk.data().size() / 8;
  const size_t begin = Is(Misconduct::kIgnoresOffsets) ? transfer.received : chunk.offset() / 8;
  if (begin > n || count > n - begin) return absl::DataLossError("a chunk beyond the end");
  for (size_t i = begin; i < begin + count; ++i) {
    if (transfer.there[i] && !Is(Misconduct::kTakesOverlaps)) return absl::DataLossError("chunks overlap");
    transfer.there[i] = true;
  }
  std::memcpy(&transfer.numbers[begin], chunk.data().data(), chunk.data().size());
  transfer.received += count;
  if (transfer.received < n) return absl::OkStatus();
  wire::SharedVector<double> vector = wire::NewSharedVector<double>(n);
  vector.map() = Eigen::Map<const Eigen::VectorXd>(transfer.numbers.data(), n);
  vectors_[transfer.name] = std::move(vector);
  half_.erase(transfer.name);
  transfers_.erase(found);
  return absl::OkStatus();
}

void PlainWorker::HandleEvaluation(v1::EvaluationRequest request) {
  const bool second_copy = !seen_.insert(request.id()).second;
  if (Is(Misconduct::kTakesAnyWindow) && request.slice().shards() > 0) {
    const int64_t examples = model_->num_examples(client::DataSet::kTraining) / request.slice().shards();
    if (request.slice().count() > static_cast<uint64_t>(examples)) request.mutable_slice()->set_count(examples);
  }
  if (Is(Misconduct::kRoundsShardsUp) && request.slice().count() == 1 && request.slice().shards() > 1) {
    const uint64_t examples = model_->num_examples(
        request.slice().data_set() == v1::DATA_SET_TRAINING ? client::DataSet::kTraining : client::DataSet::kHeldOut);
    const uint64_t s = request.slice().shard(), S = request.slice().shards();
    request.mutable_slice()->set_begin(((s * examples + S - 1) / S + request.slice().begin()) % examples);
    request.mutable_slice()->set_shard(0);
    request.mutable_slice()->set_shards(1);
  }
  if (Is(Misconduct::kTakesTheFirstTermOnly) && request.has_losses()) {
    for (v1::Point& point : *request.mutable_losses()->mutable_points()) {
      while (point.terms_size() > 1) point.mutable_terms()->RemoveLast();
    }
  }
  if (Is(Misconduct::kTakesTheFirstPointOnly) && request.has_losses()) {
    for (v1::Point& point : *request.mutable_losses()->mutable_points()) point = v1::Point(request.losses().points(0));
  }
  bool all_here = true;
  for (const std::string& name : client::VectorNames(request)) all_here = all_here && vectors_.contains(name);
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) return;
    computing_ = true;
  }
  client::Evaluated<double> evaluated;
  if (all_here) {
    evaluated = evaluator_.Evaluate({request, vectors_});
  } else {
    evaluated.answer.set_request_id(request.id());
    evaluated.answer.mutable_failure()->set_code(5);
    evaluated.answer.mutable_failure()->set_message("a vector is not here");
  }
  if (second_copy && Is(Misconduct::kAnswersASecondCopyOtherwise) && evaluated.answer.has_gradient()) {
    evaluated.answer.mutable_gradient()->set_loss_sum(1.0001 * evaluated.answer.gradient().loss_sum());
  }
  if (Is(Misconduct::kCutsMetrics) && evaluated.answer.has_losses()) {
    for (v1::MetricSums& metric : *evaluated.answer.mutable_losses()->mutable_metrics())
      metric.mutable_sums()->Truncate(1);
  }
  bool drop = false;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    drop = stopping_ && Is(Misconduct::kDropsTheAnswerWhenDrained);
  }
  if (!drop) {
    v1::SessionRequest message;
    *message.mutable_answer() = evaluated.answer;
    if (Is(Misconduct::kSharesATransferNumber) && evaluated.vectors.size() == 2) {
      message.mutable_answer()->mutable_gradient()->set_second_moment_transfer(evaluated.vectors[0].first);
      evaluated.vectors[1].first = evaluated.vectors[0].first;
    }
    if (Is(Misconduct::kAnswersBeforeTheVector)) Send(message);
    for (const auto& [transfer, vector] : evaluated.vectors) SendVector(transfer, vector);
    if (!Is(Misconduct::kAnswersBeforeTheVector)) Send(message);
  }
  const std::lock_guard<std::mutex> lock(mu_);
  computing_ = false;
  changed_.notify_all();
}

void PlainWorker::SendVector(uint64_t transfer, const wire::SharedVector<double>& vector) {
  v1::SessionRequest message;
  *message.mutable_vector_header() = wire::MakeHeader(
      transfer, "", vector.size(), Is(Misconduct::kSendsFloat32) ? v1::ELEMENT_TYPE_FLOAT32 : v1::ELEMENT_TYPE_FLOAT64);
  Send(message);
  const wire::Vector<double> numbers = vector.map();
  v1::VectorChunk* const chunk = message.mutable_vector_chunk();
  for (uint64_t offset = 0; const size_t bytes = wire::FillChunk(numbers, offset, transfer, chunk); offset += bytes)
    Send(message);
}

}  // namespace hfopt::conformance
