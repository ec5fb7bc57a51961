#include "server/server_options.h"

#include <unistd.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace hfopt::server {

bool ServerOptions::is_unix_socket() const { return absl::StartsWith(address.c_str(), "unix:"); }

bool ServerOptions::is_local() const {
  for (const char* prefix : {"unix:", "127.", "localhost:", "[::1]:"}) {
    if (absl::StartsWith(address.c_str(), prefix)) return true;
  }
  return false;
}

int64_t ServerOptions::memory_limit_bytes() const {
  if (memory_limit_mib > 0) return memory_limit_mib << 20;
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE) / 10 * 8;
}

absl::Status ServerOptions::Validate() const {
  if (address.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--address is \"", address.c_str(), "\"; it must be HOST:PORT or unix:PATH"));
  }
  // gRPC takes a port modulo 65536.
  if (const std::string port = address.substr(address.rfind(':') + 1); !is_unix_socket()) {
    int number = 0;
    if (port.find_first_not_of("0123456789") != std::string::npos || !absl::SimpleAtoi(port, &number) ||
        number > 65535) {
      return absl::InvalidArgumentError(absl::StrCat("--address is \"", address.c_str(), "\": the port is \"",
                                                     port.c_str(), "\"; allowed: 0 (chosen by the system) to 65535"));
    }
  }
  if (!is_local() && !insecure) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--address ", address.c_str(), " can be reached from other machines, and traffic is neither encrypted nor "
        "authenticated: whoever reaches the port can read and stop your runs. On a network that you trust, add "
        "--insecure; otherwise listen on 127.0.0.1 and forward the port over SSH or a TLS proxy"));
  }
  if (memory_limit_mib < 0 || memory_limit_mib > (int64_t{1} << 40)) {
    return absl::InvalidArgumentError(absl::StrCat("--memory-limit is ", memory_limit_mib, " MiB; allowed: 0 (80 % of the machine) to 2^40"));
  }
  if (!(lease_seconds >= 0.05 && lease_seconds <= 86400)) {
    return absl::InvalidArgumentError(absl::StrCat("--lease is ", lease_seconds, " s; allowed: 0.05 to 86400"));
  }
  if (keep_checkpoints < 1 || keep_checkpoints > 1'000'000) {
    return absl::InvalidArgumentError(absl::StrCat("--keep-checkpoints is ", keep_checkpoints, "; allowed: 1 to 1000000"));
  }
  return absl::OkStatus();
}

std::string ServerOptions::Describe() const {
  return absl::StrCat("address = ", address.c_str(), "\nstate-dir = ", state_directory.c_str(),
                      "\nmemory-limit = ", memory_limit_bytes() >> 20, " MiB\nlease = ", lease_seconds,
                      " s\nkeep-checkpoints = ", keep_checkpoints, "\ninsecure = ", insecure ? "true" : "false");
}

}  // namespace hfopt::server
