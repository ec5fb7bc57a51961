#ifndef HFOPT_SERVER_ACCESS_ACCESS_CONTROL_H_
#define HFOPT_SERVER_ACCESS_ACCESS_CONTROL_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "server/access/token_file.h"

namespace hfopt::server {

// Decides who may call what. A caller shows a token in the call's metadata, or a client certificate in the TLS handshake; the first that is
// there counts. Every handler asks before it does anything. Thread-safe.
class AccessControl {
 public:
  // Callers show tokens of the file, or certificates, or one of both; neither: nobody is asked, everybody is an operator.
  explicit AccessControl(std::unique_ptr<TokenFile> tokens = nullptr, bool certificates = false)
      : tokens_(std::move(tokens)), certificates_(certificates) {}

  // Who calls. UNAUTHENTICATED when that is not shown.
  absl::StatusOr<Caller> Identify(const grpc::ServerContextBase& context) const;

  // Whether the caller may do what takes `role`. UNAUTHENTICATED, or PERMISSION_DENIED with both roles.
  absl::Status Check(const grpc::ServerContextBase& context, v1::Role role) const;

 private:
  const std::unique_ptr<TokenFile> tokens_;
  const bool certificates_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_ACCESS_ACCESS_CONTROL_H_
