#ifndef HFOPT_CLIENT_CLI_CONNECTION_FLAGS_H_
#define HFOPT_CLIENT_CLI_CONNECTION_FLAGS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/channel.h"

namespace CLI {
class App;
}

namespace hfopt::cli {

// Where the server is, how it is spoken to, and who one is to it: options of every program that dials a server.
struct ConnectionFlags {
  std::string server = "127.0.0.1:7447";
  client::ChannelSecurity security;

  // With the token of the environment (HFOPT_TOKEN) where no file is named: on a command line everybody on the machine could read it.
  client::ChannelSecurity EffectiveSecurity() const;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect() const { return client::MakeChannel(server, EffectiveSecurity()); }
};

// --ca, --tls, --cert, --key, --token-file, --insecure.
void AddSecurityFlags(CLI::App& app, ConnectionFlags& flags);
// --server and these.
void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_CONNECTION_FLAGS_H_
