#include "server/access/role.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace hfopt::server {

std::string NameOf(v1::Role role) { return absl::AsciiStrToLower(absl::StripPrefix(v1::Role_Name(role), "ROLE_")); }

std::optional<v1::Role> RoleNamed(absl::string_view name) {
  for (const v1::Role role : {v1::ROLE_READER, v1::ROLE_WORKER, v1::ROLE_OPERATOR}) {
    if (name == NameOf(role)) return role;
  }
  return std::nullopt;
}

}  // namespace hfopt::server
