#ifndef HFOPT_SERVER_EVALUATION_WORKER_LINK_H_
#define HFOPT_SERVER_EVALUATION_WORKER_LINK_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "proto/wire/shared_segment.h"
#include "server/evaluation/named_vector.h"

namespace hfopt::server {

// The server's end of one worker's stream, as the pool sees it. Sends are queued and never block; what is queued is sent in order. On a
// broken stream they do nothing. Thread-safe.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;

  virtual void Send(v1::SessionResponse message) = 0;
  virtual void SendVector(NamedVectorPtr vector) = 0;

  // The memory that the Welcome to come describes: vectors that lie in `to_worker` are handed over there once the worker has attached, and
  // its answers may lie in `to_server`. At most once, before anything is sent.
  virtual void UseSharedMemory(std::shared_ptr<wire::SharedSegment> to_worker,
                               std::shared_ptr<wire::SharedSegment> to_server) = 0;
  // Whether the worker has attached.
  virtual bool shared_memory() const = 0;

  // Closes the stream once everything queued has been sent.
  virtual void Close(absl::Status status) = 0;

  // When anything was last received.
  virtual absl::Time last_heard() const = 0;

  // Bytes of vectors so far, whichever way they went.
  virtual uint64_t bytes_sent() const = 0;
  virtual uint64_t bytes_received() const = 0;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_WORKER_LINK_H_
