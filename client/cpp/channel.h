#ifndef HFOPT_CLIENT_CPP_CHANNEL_H_
#define HFOPT_CLIENT_CPP_CHANNEL_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"

namespace hfopt::client {

// A channel to an hfopt-server with the settings that this service was measured with: keepalive that agrees with the
// server's, quick reconnects, and no bandwidth probing on local links. `address` is a gRPC target: "localhost:7447",
// "unix:/run/hfopt.sock". Null credentials: no encryption. Connects lazily; never blocks.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

// How a client is sure of its server, and shows the server who it is. By default it does neither, in plaintext.
struct ChannelSecurity {
  // TLS. The server's certificate must come from a CA of this PEM file; with `tls` alone, from one that the system trusts.
  bool tls = false;
  std::string ca_file;
  // The client's own certificate with its chain, and its key, in PEM; both or none. Take TLS.
  std::string cert_file, key_file;
  // A token to show with each call, or the file that holds it, read for each call, so that it may change.
  std::string token, token_file;
  // Send the token to another machine without TLS.
  bool insecure = false;

  bool is_encrypted() const { return tls || !ca_file.empty(); }
  bool has_token() const { return !token.empty() || !token_file.empty(); }
};

// MakeChannel with it. Certificates are read again when their files change. INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION
// name what cannot be used.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& address, const ChannelSecurity& security);

// Whether the target names this machine by a loopback address or a Unix socket.
bool IsLocalTarget(const std::string& address);

// Blocks before the next attempt to reach a server: for `pause`, or until there is a connection where there was none,
// or until `stopped` answers true, which is asked every 100 ms. Waiting for the connection is the point: gRPC completes
// one only while somebody waits for it, and looks after forgotten ones every 5 s.
void PauseBeforeRetry(grpc::Channel& channel, absl::Duration pause, const std::function<bool()>& stopped);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_CHANNEL_H_
