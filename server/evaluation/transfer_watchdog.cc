#include "server/evaluation/transfer_watchdog.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpc/grpc.h"

namespace hfopt::server {

TransferWatchdog::Stream::Stream(TransferWatchdog& watchdog, grpc_call* call)
    : watchdog_(watchdog), call_(call) {
  absl::MutexLock lock(&watchdog_.mu_);
  watchdog_.streams_.insert(this);
}

TransferWatchdog::Stream::~Stream() {
  absl::MutexLock lock(&watchdog_.mu_);
  watchdog_.streams_.erase(this);
}

void TransferWatchdog::Stream::Await(const char* complaint) {
  since_ = absl::ToUnixNanos(watchdog_.now_());  // before the complaint, which makes it count
  complaint_ = complaint;
}

TransferWatchdog::TransferWatchdog(absl::Duration limit, std::function<void(const std::string&)> log, std::function<absl::Time()> now)
    : limit_(limit), log_(std::move(log)), now_(std::move(now)), thread_([this] {
        absl::MutexLock lock(&mu_);
        while (!mu_.AwaitWithTimeout(absl::Condition(&stopping_), limit_ / 4)) {
          mu_.Unlock();
          Check();
          mu_.Lock();
        }
      }) {}

TransferWatchdog::~TransferWatchdog() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

int TransferWatchdog::waiting() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(std::count_if(streams_.begin(), streams_.end(), [](const Stream* stream) { return stream->complaint_ != nullptr; }));
}

void TransferWatchdog::Check() {
  struct Late {
    grpc_call* call;
    std::string reason;
  };
  std::vector<Late> late;
  {
    absl::MutexLock lock(&mu_);
    for (Stream* const stream : streams_) {
      const char* complaint = stream->complaint_;
      if (complaint == nullptr || now_() - absl::FromUnixNanos(stream->since_) <= limit_) continue;
      if (!stream->complaint_.compare_exchange_strong(complaint, nullptr)) continue;  // it moved just now
      // The call outlives its reactor by this: what ends it may run OnDone, in any thread.
      grpc_call_ref(stream->call_);
      late.push_back({stream->call_, absl::StrCat(complaint, " for ", absl::FormatDuration(limit_), " (the server's --transfer-idle); call again")});
    }
  }
  for (const Late& stream : late) {
    // Sent to the peer as the call's status, past whatever waits to be read before it.
    grpc_call_cancel_with_status(stream.call, GRPC_STATUS_UNAVAILABLE, stream.reason.c_str(), nullptr);
    grpc_call_unref(stream.call);
    log_(absl::StrCat("ended a call: ", stream.reason));
  }
}

}  // namespace hfopt::server
