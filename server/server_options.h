#ifndef HFOPT_SERVER_SERVER_OPTIONS_H_
#define HFOPT_SERVER_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace hfopt::server {

struct ServerOptions {
  // HOST:PORT (port 0: chosen by the system) or unix:PATH.
  std::string address = "127.0.0.1:7447";
  std::string state_directory = "hfopt-data";
  // Bytes of vectors a run may need; 0: 80 % of the machine's memory.
  int64_t memory_limit_mib = 0;
  double lease_seconds = 10;
  // After which a stream is ended whose peer neither sends nor reads what it should (evaluation/transfer_watchdog.h). With pings it finds dead peers.
  double transfer_idle_seconds = 60;
  int keep_checkpoints = 2;
  // TLS: PEM files of the server's certificate with its chain, and of its key; both or none. Read again when they change.
  std::string tls_cert, tls_key;
  // Callers may show a certificate that comes from these, and must where there are no tokens. Takes TLS.
  std::string tls_client_ca;
  // Callers may show a token of this file (server/access/token_file.h).
  std::string tokens;
  // HOST:PORT that answers grpc.health.v1 alone, in plaintext: for probes that have no certificate. Empty: none beside `address`.
  std::string health_address;
  // Listen on a public address although traffic is not encrypted, or callers are not asked who they are.
  bool insecure = false;
  // How soon changed certificates are used.
  absl::Duration tls_reload_interval = absl::Seconds(10);

  // INVALID_ARGUMENT or FAILED_PRECONDITION, with what to do.
  absl::Status Validate() const;

  bool is_unix_socket() const;
  bool is_encrypted() const { return !tls_cert.empty() || !tls_key.empty(); }
  // Callers have to show who they are.
  bool is_authenticated() const { return !tls_client_ca.empty() || !tokens.empty(); }
  // Reached from this machine alone.
  bool is_local() const;
  int64_t memory_limit_bytes() const;
  // Of HTTP/2: how often a silent connection is pinged, and how long an answer may take. Together less than transfer_idle_seconds.
  absl::Duration ping_interval() const { return absl::Seconds(transfer_idle_seconds / 2); }
  absl::Duration ping_timeout() const { return absl::Seconds(transfer_idle_seconds / 3); }
  // One line for each option, "name = value".
  std::string Describe() const;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_SERVER_OPTIONS_H_
