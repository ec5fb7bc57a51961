#include "server/server_options.h"

#include <unistd.h>

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace hfopt::server {

namespace {

bool IsUnixSocket(const std::string& address) { return absl::StartsWith(address.c_str(), "unix:"); }

absl::Status CheckAddress(const char* option, const std::string& address) {
  if (address.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(option, " is \"", address.c_str(), "\"; it must be HOST:PORT or unix:PATH"));
  }
  if (IsUnixSocket(address)) {
    if (address.size() > strlen("unix:")) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(option, " is \"unix:\"; it must be HOST:PORT or unix:PATH"));
  }
  // gRPC takes a port modulo 65536.
  const std::string port = address.substr(address.rfind(':') + 1);
  int number = 0;
  if (port.find_first_not_of("0123456789") != std::string::npos || !absl::SimpleAtoi(port, &number) || number > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(option, " is \"", address.c_str(), "\": the port is \"", port.c_str(),
                                                   "\"; allowed: 0 (chosen by the system) to 65535"));
  }
  return absl::OkStatus();
}

}  // namespace

bool ServerOptions::is_unix_socket() const { return IsUnixSocket(address); }

bool ServerOptions::is_local() const {
  if (is_unix_socket()) return true;
  const std::string host = address.substr(0, address.rfind(':'));
  // 127.0.0.0/8 by number: "127.example.org" is anybody's name.
  return host == "localhost" || host == "[::1]" || (absl::StartsWith(host, "127.") && host.find_first_not_of("0123456789.") == std::string::npos);
}

int64_t ServerOptions::memory_limit_bytes() const {
  if (memory_limit_mib > 0) return memory_limit_mib << 20;
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE) / 10 * 8;
}

absl::Status ServerOptions::Validate() const {
  HFOPT_RETURN_IF_ERROR(CheckAddress("--address", address));
  if (!health_address.empty()) HFOPT_RETURN_IF_ERROR(CheckAddress("--health-address", health_address));
  if (!tls_client_ca.empty() && !is_encrypted()) {
    return absl::InvalidArgumentError("--tls-client-ca asks callers for certificates, which takes TLS: give --tls-cert and --tls-key too");
  }
  if (!is_local() && !insecure && !(is_encrypted() && is_authenticated())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--address ", address.c_str(), " can be reached from other machines, and ",
        is_encrypted()       ? "callers are not asked who they are: whoever reaches the port can read and stop your runs. Add --tls-client-ca or --tokens"
        : is_authenticated() ? "traffic is not encrypted: whoever listens on the network has your tokens. Add --tls-cert and --tls-key"
                             : "traffic is neither encrypted nor authenticated: whoever reaches the port can read and stop your runs. Add --tls-cert, --tls-key and "
                               "--tls-client-ca",
        " (hfopt certs makes what it takes); or listen on 127.0.0.1; or, on a network that you trust, add --insecure"));
  }
  if (memory_limit_mib < 0 || memory_limit_mib > (int64_t{1} << 40)) {
    return absl::InvalidArgumentError(absl::StrCat("--memory-limit is ", memory_limit_mib, " MiB; allowed: 0 (80 % of the machine) to 2^40"));
  }
  if (!(lease_seconds >= 0.05 && lease_seconds <= 86400)) {
    return absl::InvalidArgumentError(absl::StrCat("--lease is ", lease_seconds, " s; allowed: 0.05 to 86400"));
  }
  if (!(transfer_idle_seconds >= 0.05 && transfer_idle_seconds <= 86400)) {
    return absl::InvalidArgumentError(absl::StrCat("--transfer-idle is ", transfer_idle_seconds, " s; allowed: 0.05 to 86400"));
  }
  if (keep_checkpoints < 1 || keep_checkpoints > 1'000'000) {
    return absl::InvalidArgumentError(absl::StrCat("--keep-checkpoints is ", keep_checkpoints, "; allowed: 1 to 1000000"));
  }
  return absl::OkStatus();
}

std::string ServerOptions::Describe() const {
  return absl::StrCat("address = ", address.c_str(), "\nstate-dir = ", state_directory.c_str(),
                      "\nmemory-limit = ", memory_limit_bytes() >> 20, " MiB\nlease = ", lease_seconds,
                      " s\ntransfer-idle = ", transfer_idle_seconds, " s\nkeep-checkpoints = ", keep_checkpoints, "\ntls-cert = ", tls_cert.c_str(), "\ntls-key = ", tls_key.c_str(),
                      "\ntls-client-ca = ", tls_client_ca.c_str(), "\ntokens = ", tokens.c_str(), "\nhealth-address = ",
                      health_address.c_str(), "\ninsecure = ", insecure ? "true" : "false", "\nderived from lease: workers renew it every ", absl::FormatDuration(absl::Seconds(lease_seconds / 3)),
                      "\nderived from transfer-idle: pings every ", absl::FormatDuration(ping_interval()), ", answered within ",
                      absl::FormatDuration(ping_timeout()));
}

}  // namespace hfopt::server
