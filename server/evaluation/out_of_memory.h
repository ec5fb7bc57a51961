#ifndef HFOPT_SERVER_EVALUATION_OUT_OF_MEMORY_H_
#define HFOPT_SERVER_EVALUATION_OUT_OF_MEMORY_H_

#include <new>
#include <type_traits>

#include "absl/status/status.h"

namespace hfopt::server {

// What `work` answers, a Status or StatusOr; RESOURCE_EXHAUSTED when memory gave out in it. To be put around what handles a message of a
// stream: gRPC swallows the exceptions of a reaction, which then neither reads on nor finishes, and holds up the server's shutdown for ever; in a
// queue's thread they end the process.
template <typename Work>
std::invoke_result_t<Work> CatchOutOfMemory(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "the server has run out of memory; end other runs, lower its --memory-limit, or give its machine more memory");
  }
}

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_OUT_OF_MEMORY_H_
