#ifndef HFOPT_SERVER_EVALUATION_POLLING_H_
#define HFOPT_SERVER_EVALUATION_POLLING_H_

#include <cstdlib>

namespace hfopt::server {

// Before gRPC is initialized, for a server that workers of this machine alone reach: every completion queue waits for its own descriptors with poll().
// With epoll, which serves many connections better, one thread waits for those of the whole process, and wakes the one that it is for ("Who receives" in
// server/README.md has the figures). Whoever sets GRPC_POLL_STRATEGY knows better.
inline void PollEachQueue() { setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0); }

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_POLLING_H_
