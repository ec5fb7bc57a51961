#ifndef HFOPT_SERVER_ACCESS_ROLE_H_
#define HFOPT_SERVER_ACCESS_ROLE_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "hfopt/v1/run_service.pb.h"

namespace hfopt::server {

// "reader", "worker", "operator".
std::string NameOf(v1::Role role);
std::optional<v1::Role> RoleNamed(absl::string_view name);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_ACCESS_ROLE_H_
