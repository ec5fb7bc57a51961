#ifndef HFOPT_SERVER_SERVER_OPTIONS_H_
#define HFOPT_SERVER_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace hfopt::server {

struct ServerOptions {
  // HOST:PORT (port 0: chosen by the system) or unix:PATH.
  std::string address = "127.0.0.1:7447";
  std::string state_directory = "hfopt-data";
  // Bytes of vectors a run may need; 0: 80 % of the machine's memory.
  int64_t memory_limit_mib = 0;
  double lease_seconds = 10;
  int keep_checkpoints = 2;
  // Listen on a public address although traffic is neither encrypted nor authenticated.
  bool insecure = false;

  // INVALID_ARGUMENT or FAILED_PRECONDITION, with what to do.
  absl::Status Validate() const;

  bool is_unix_socket() const;
  // Reached from this machine alone.
  bool is_local() const;
  int64_t memory_limit_bytes() const;
  // One line for each option, "name = value".
  std::string Describe() const;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_SERVER_OPTIONS_H_
