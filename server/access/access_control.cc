#include "server/access/access_control.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "grpc/grpc_security_constants.h"
#include "server/access/role.h"

namespace hfopt::server {
namespace {

constexpr absl::string_view kRolePrefix = "urn:hfopt:role:";

absl::string_view ViewOf(const grpc::string_ref& s) { return {s.data(), s.size()}; }

}  // namespace

absl::StatusOr<Caller> AccessControl::Identify(const grpc::ServerContextBase& context) const {
  if (tokens_ == nullptr && !certificates_) return Caller{"", v1::ROLE_OPERATOR};

  if (const auto header = context.client_metadata().find("authorization"); tokens_ != nullptr && header != context.client_metadata().end()) {
    absl::string_view token = ViewOf(header->second);
    if (!absl::StartsWithIgnoreCase(token, "bearer ")) {
      return absl::UnauthenticatedError("the call's \"authorization\" is not \"Bearer TOKEN\"");
    }
    token.remove_prefix(7);
    if (std::optional<Caller> caller = tokens_->Find(token); caller.has_value()) return *std::move(caller);
    return absl::UnauthenticatedError("the token is not one of this server's: it was withdrawn, or is that of another server; ask who runs it for one");
  }

  const auto auth = context.auth_context();
  if (certificates_ && auth != nullptr && auth->IsPeerAuthenticated()) {
    Caller caller;
    for (const grpc::string_ref& name : auth->FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME)) caller.name = std::string(ViewOf(name));
    for (const grpc::string_ref& uri : auth->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)) {
      absl::string_view name = ViewOf(uri);
      if (!absl::ConsumePrefix(&name, kRolePrefix)) continue;
      if (const std::optional<v1::Role> role = RoleNamed(name)) caller.role = std::max(caller.role, *role);
    }
    if (caller.role != v1::ROLE_UNSPECIFIED) return caller;
    return absl::UnauthenticatedError(absl::StrCat("the client certificate of \"", caller.name, "\" has no URI name ", kRolePrefix,
                                                   "reader, worker or operator; hfopt certs makes such certificates"));
  }
  return absl::UnauthenticatedError(absl::StrCat(
      "this server asks its callers who they are: show ", tokens_ != nullptr ? "a token (--token-file, HFOPT_TOKEN)" : "",
      tokens_ != nullptr && certificates_ ? ", or " : "", certificates_ ? "a client certificate (--cert and --key)" : ""));
}

absl::Status AccessControl::Check(const grpc::ServerContextBase& context, v1::Role role) const {
  HFOPT_ASSIGN_OR_RETURN(const Caller caller, Identify(context));
  if (caller.role >= role) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("this takes the role ", NameOf(role), ", and \"", caller.name, "\" has the role ", NameOf(caller.role),
                                                  "; use other credentials, or ask who runs the server"));
}

}  // namespace hfopt::server
