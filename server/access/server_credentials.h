#ifndef HFOPT_SERVER_ACCESS_SERVER_CREDENTIALS_H_
#define HFOPT_SERVER_ACCESS_SERVER_CREDENTIALS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "server/server_options.h"

namespace hfopt::server {

// How the server's port is protected: TLS from the options' files, which are read again as they change; plaintext without them. With client
// certificates as the only credentials every caller must have one; beside tokens they are asked for, and verified when there is one.
// NOT_FOUND, INVALID_ARGUMENT or FAILED_PRECONDITION name the file that cannot be used.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const ServerOptions& options);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_ACCESS_SERVER_CREDENTIALS_H_
