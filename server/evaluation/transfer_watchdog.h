#ifndef HFOPT_SERVER_EVALUATION_TRANSFER_WATCHDOG_H_
#define HFOPT_SERVER_EVALUATION_TRANSFER_WATCHDOG_H_

#include <atomic>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpc/grpc.h"
#include "server/evaluation/steady_now.h"

namespace hfopt::server {

// Ends streams whose peer lets them wait for longer than a limit: an upload whose next chunk does not come, a download or a watch that is not read, a
// session that says no Hello, or does not read that it is over. The caller gets UNAVAILABLE with the reason, and may call again; the stream's reactor
// sees what it sees when a caller leaves. (A worker that is silent within its session is the lease's business, a dead connection that of HTTP/2 pings.)
class TransferWatchdog {
 public:
  // `log` is told of each stream that is ended, in one line.
  explicit TransferWatchdog(absl::Duration limit, std::function<void(const std::string&)> log = [](const auto&) {},
                            std::function<absl::Time()> now = SteadyNow);
  // After the last Stream.
  ~TransferWatchdog();

  // Of one call: a member of its reactor or session, which destroys it in OnDone at the latest. Calls that overlap are in the order of its owner's lock.
  class Stream {
   public:
    Stream(TransferWatchdog& watchdog, grpc_call* call);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    // From now on it is the peer's turn. `complaint` is a literal, such as "no chunk of the upload has come".
    void Await(const char* complaint);
    // It has done its part; until the next Await it is not waited for.
    void Moved() { complaint_ = nullptr; }

   private:
    friend class TransferWatchdog;
    TransferWatchdog& watchdog_;
    grpc_call* const call_;
    std::atomic<const char*> complaint_ = nullptr;
    std::atomic<int64_t> since_ = 0;  // ns; of the last Await
  };

  // Streams that wait for their peer now.
  int waiting() const;

  // Ends those that are late. Its own thread does this four times within the limit.
  void Check();

 private:
  const absl::Duration limit_;
  const std::function<void(const std::string&)> log_;
  const std::function<absl::Time()> now_;
  mutable absl::Mutex mu_;
  std::set<Stream*> streams_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_TRANSFER_WATCHDOG_H_
