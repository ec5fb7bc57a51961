#ifndef HFOPT_SERVER_EVALUATION_POLLING_H_
#define HFOPT_SERVER_EVALUATION_POLLING_H_

#include <cstdlib>

namespace hfopt::server {

// Before gRPC is initialized, for a server of this machine alone: every completion queue waits for its own descriptors with poll(). With epoll, which
// serves thousands of connections better, one thread waits for those of the whole process, receives what has come, and wakes the thread that it is for:
// a seventh more CPU and time for a vector through gRPC. Whoever sets GRPC_POLL_STRATEGY knows better.
inline void PollEachQueue() { setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0); }

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_POLLING_H_
