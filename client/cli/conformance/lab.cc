#include "client/cli/conformance/lab.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

// A worker waits longer before every attempt; a new one dials at once.
constexpr int kMaxRedials = 2;

constexpr char kWorkerId[] = "conformance-worker";

int64_t Boundary(int64_t examples, uint32_t shard, uint32_t shards) {
  return static_cast<int64_t>(static_cast<__int128>(shard) * examples / shards);
}

}  // namespace

Vector NormalVector(int64_t n, uint64_t seed) {
  std::mt19937_64 bits(seed);
  const auto uniform = [&bits] { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; };
  Vector v(n);
  for (int64_t i = 0; i < n; ++i) {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(uniform()));
    v[i] = radius * std::cos(2 * std::numbers::pi * uniform());
  }
  return v;
}

Lab::Lab(WireServer& server, WorkerUnderTest& worker, LabOptions options)
    : server_(server), worker_(worker), options_(std::move(options)) {
  const bool known = options_.element_type != v1::ELEMENT_TYPE_UNSPECIFIED;
  server_.Describe(known ? options_.element_type : v1::ELEMENT_TYPE_FLOAT64, shards_);
}

absl::StatusOr<Dialogue*> Lab::Session() {
  if (session_ != nullptr && session_->wire().open()) return session_.get();
  session_.reset();
  if (worker_.can_start() && (redials_ >= kMaxRedials || worker_.AwaitExit(absl::ZeroDuration()).has_value() ||
                              element_type_ == v1::ELEMENT_TYPE_UNSPECIFIED)) {
    HFOPT_ASSIGN_OR_RETURN(session_, FreshHello());
  } else {
    HFOPT_ASSIGN_OR_RETURN(session_, NextHello());
  }
  Welcome(*session_);
  return session_.get();
}

absl::StatusOr<std::unique_ptr<Dialogue>> Lab::FreshHello() {
  session_.reset();
  worker_.Kill();
  server_.DropWaiting();
  HFOPT_RETURN_IF_ERROR(worker_.Start(server_.address(), server_.run_id(), kWorkerId));
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> dialogue, NextHello());
  redials_ = 0;
  return dialogue;
}

absl::StatusOr<std::unique_ptr<Dialogue>> Lab::NextHello() {
  // The first time, somebody has yet to start it.
  const bool wait_for_ever = !worker_.can_start() && element_type_ == v1::ELEMENT_TYPE_UNSPECIFIED;
  const absl::Time deadline = wait_for_ever ? absl::InfiniteFuture() : absl::Now() + options_.timeout;
  while (true) {
    auto session = server_.Accept(std::min(deadline, absl::Now() + absl::Milliseconds(50)));
    if (session.ok()) {
      const absl::StatusOr<v1::SessionRequest> first = (*session)->Receive(deadline);
      if (absl::IsUnavailable(first.status())) continue;  // one that was given up before it had begun
      HFOPT_RETURN_IF_ERROR(first.status());
      if (!first->has_hello()) {
        (*session)->Break();
        return absl::FailedPreconditionError("the worker's first message is no Hello");
      }
      HFOPT_RETURN_IF_ERROR(LearnFrom(first->hello()));
      ++redials_;
      return std::make_unique<Dialogue>(*std::move(session), first->hello(), options_.timeout);
    }
    if (stop_.stop_requested()) return absl::CancelledError("interrupted");
    if (worker_.can_start()) {
      if (const auto exit = worker_.AwaitExit(absl::ZeroDuration())) {
        return absl::FailedPreconditionError(absl::StrCat("the worker ", Describe(*exit), " where it was to dial"));
      }
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("no worker dialled ", server_.address(), " for run ", server_.run_id(), " within ",
                       absl::FormatDuration(options_.timeout), worker_.can_start() ? "" : "; start it (again)"));
    }
  }
}

bool Lab::Dials(absl::Time deadline) {
  auto session = server_.Accept(deadline);
  if (session.ok()) (*session)->Break();
  return session.ok();
}

void Lab::Welcome(Dialogue& dialogue, absl::Duration lease) { dialogue.Welcome(element_type_, shards_, lease); }

absl::StatusOr<std::string> Lab::AwaitFarewell(std::unique_ptr<Dialogue> dialogue, uint64_t id) {
  constexpr absl::Duration kPatience = absl::Seconds(10);
  const absl::Time deadline = absl::Now() + kPatience;
  while (true) {
    const absl::StatusOr<v1::SessionRequest> message = dialogue->Read(absl::Now() + absl::Milliseconds(20));
    // One whose gRPC gives up a stream by itself may dial again before it closes the old one.
    if (absl::IsUnavailable(message.status()) || server_.HasWaiting()) break;
    if (message.ok() && message->has_answer() && message->answer().request_id() == id) {
      return absl::FailedPreconditionError(
          message->answer().has_failure()
              ? absl::StrCat("the worker answered a Failure (", message->answer().failure().message(),
                             ") and stayed in a session whose bytes it cannot trust; it has to end it")
              : "the worker took it, and computed with it");
    }
    if (!message.ok() && !absl::IsDeadlineExceeded(message.status())) return message.status();
    if (absl::Now() > deadline) {
      return absl::FailedPreconditionError(absl::StrCat("the worker ended neither the session nor its process within ",
                                                        absl::FormatDuration(kPatience)));
    }
  }
  dialogue.reset();
  absl::StatusOr<std::unique_ptr<Dialogue>> next = NextHello();
  if (next.ok()) {
    session_ = *std::move(next);
    Welcome(*session_);
    return std::string("the worker ended the session and dialled again");
  }
  if (!worker_.can_start()) return next.status();
  const auto exit = worker_.AwaitExit(absl::ZeroDuration());
  if (!exit || exit->signal != 0) return next.status();
  return absl::StrCat("the worker ", Describe(*exit));
}

absl::Status Lab::LearnFrom(const v1::Hello& hello) {
  hello_ = hello;
  const auto offered = [&](v1::ElementType type) {
    return std::find(hello.element_types().begin(), hello.element_types().end(), type) != hello.element_types().end();
  };
  if (element_type_ == v1::ELEMENT_TYPE_UNSPECIFIED) {
    for (const v1::ElementType type : {options_.element_type, v1::ELEMENT_TYPE_FLOAT64, v1::ELEMENT_TYPE_FLOAT32}) {
      if (element_type_ == v1::ELEMENT_TYPE_UNSPECIFIED && offered(type)) element_type_ = type;
    }
    if (element_type_ == v1::ELEMENT_TYPE_UNSPECIFIED ||
        (options_.element_type != v1::ELEMENT_TYPE_UNSPECIFIED && options_.element_type != element_type_)) {
      return absl::FailedPreconditionError(
          "the worker's Hello.element_types does not have the element type to be used");
    }
    shards_ = 3;
    has_all_shards_ = hello.shards().empty();
    for (const uint32_t s : hello.shards()) shards_ = std::max(shards_, s + 1);
    shards_ = std::max<uint32_t>(1, std::min<uint64_t>(shards_, hello.training_examples()));
    shard_ = has_all_shards_ ? std::min<uint32_t>(1, shards_ - 1) : hello.shards(0);
    server_.Describe(element_type_, shards_);
  }
  return absl::OkStatus();
}

int64_t Lab::ShardBegin(bool held_out, uint32_t shard, uint32_t shards) const {
  return Boundary(held_out ? hello_.held_out_examples() : hello_.training_examples(), shard, shards);
}
int64_t Lab::ShardSize(bool held_out, uint32_t shard, uint32_t shards) const {
  return ShardBegin(held_out, shard + 1, shards) - ShardBegin(held_out, shard, shards);
}

Window Lab::Training(int64_t count, int64_t begin) const {
  const int64_t size = ShardSize(false, shard_, shards_);
  return {.shard = shard_,
          .shards = shards_,
          .begin = static_cast<uint64_t>(begin % size),
          .count = static_cast<uint64_t>(std::min(count, size))};
}

absl::StatusOr<Vector> Lab::Theta(int k) {
  if (theta_.size() == 0) {
    HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, Session());
    const int64_t n = session->num_parameters();
    if (options_.parameters.size() != 0) {
      if (options_.parameters.size() != n) {
        return absl::InvalidArgumentError(
            absl::StrCat("the given parameters are ", options_.parameters.size(), "; the worker's model has ", n));
      }
      theta_ = options_.parameters;
    } else if (session->hello().initial_parameters()) {
      HFOPT_ASSIGN_OR_RETURN(theta_, session->InitialParameters(options_.seed));
    } else {
      theta_ = 0.1 * NormalVector(n, options_.seed);
    }
    if (!theta_.allFinite()) {
      theta_.resize(0);
      return absl::FailedPreconditionError("the worker's initial parameters are not finite");
    }
    const double size = theta_.norm() / std::sqrt(static_cast<double>(n));
    step_ = size > 0 ? 0.2 * size : 0.05;
  }
  // Noise also for the first: equal units of a network (biases 0, say) hide mistakes.
  Vector theta = theta_ + step_ * NormalVector(theta_.size(), options_.seed * 1000 + k);
  return float64() ? theta : Vector(theta.cast<float>().cast<double>());
}

Vector Lab::Direction(int k) const {
  Vector v = NormalVector(hello_.num_parameters(), (options_.seed << 32) + k);
  return float64() ? v : Vector(v.cast<float>().cast<double>());
}

}  // namespace hfopt::conformance
