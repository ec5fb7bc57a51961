#ifndef HFOPT_CLIENT_CLI_DIAGNOSIS_H_
#define HFOPT_CLIENT_CLI_DIAGNOSIS_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/connection_flags.h"

namespace hfopt::cli {

// One step on the way to a server.
struct DiagnosisStep {
  enum class Result { kPassed, kFailed, kSkipped };

  std::string name;
  Result result = Result::kPassed;
  std::string finding;
  std::string remedy;  // of a failure
};

// How far one gets towards a server: credentials, name, connection, TLS or plaintext HTTP/2, identity and version, health; ends at the first
// failure. Each step may take `timeout`. Never fails itself.
std::vector<DiagnosisStep> Diagnose(const ConnectionFlags& flags, absl::Duration timeout = absl::Seconds(5));

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_DIAGNOSIS_H_
