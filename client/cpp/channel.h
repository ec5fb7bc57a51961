#ifndef HFOPT_CLIENT_CPP_CHANNEL_H_
#define HFOPT_CLIENT_CPP_CHANNEL_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"

namespace hfopt::client {

// A channel to an hfopt-server with the settings that this service was measured with: keepalive that agrees with the
// server's, quick reconnects, and no bandwidth probing on local links. `address` is a gRPC target: "localhost:7447",
// "unix:/run/hfopt.sock". Null credentials: no encryption. Connects lazily; never blocks.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

// Whether the target names this machine by a loopback address or a Unix socket.
bool IsLocalTarget(const std::string& address);

// Blocks before the next attempt to reach a server: for `pause`, or until there is a connection where there was none,
// or until `stopped` answers true, which is asked every 100 ms. Waiting for the connection is the point: gRPC completes
// one only while somebody waits for it, and looks after forgotten ones every 5 s.
void PauseBeforeRetry(grpc::Channel& channel, absl::Duration pause, const std::function<bool()>& stopped);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_CHANNEL_H_
