#ifndef HFOPT_CLIENT_CPP_CHUNK_SIZE_H_
#define HFOPT_CLIENT_CPP_CHUNK_SIZE_H_

#include <algorithm>
#include <chrono>
#include <cstddef>

#include "proto/wire/vector_codec.h"

namespace hfopt::client {

// How many bytes of an answer's vector go in one message. Large ones cost the least CPU, but the server hears nothing of a message before all of
// it has arrived, and one that is on its way for longer than the lease looks like silence. So the size follows the link: it is doubled while
// messages go out in a small part of the lease, and halved when one takes longer, down to what a link of a few kB/s carries in time.
class ChunkSize {
 public:
  using Duration = std::chrono::steady_clock::duration;
  static constexpr size_t kSmallest = 16 * 1024, kLargest = wire::kMaxChunkBytes;

  explicit ChunkSize(Duration lease) : lease_(lease) {}

  size_t bytes() const { return bytes_; }

  // A message of `bytes` was written in `duration`, which is about how long the link took for it once the buffers on the way were full.
  void Sent(size_t bytes, Duration duration) {
    if (duration > lease_ / 6) {
      bytes_ = std::max(kSmallest, bytes_ / 2);
    } else if (duration < lease_ / 24 && bytes >= bytes_) {  // the end of a vector is short, and says nothing of longer ones
      bytes_ = std::min(kLargest, bytes_ * 2);
    }
  }

 private:
  Duration lease_;
  size_t bytes_ = kSmallest;
};

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_CHUNK_SIZE_H_
