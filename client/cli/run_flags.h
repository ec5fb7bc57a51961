#ifndef HFOPT_CLIENT_CLI_RUN_FLAGS_H_
#define HFOPT_CLIENT_CLI_RUN_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hfopt/v1/run.pb.h"

namespace CLI {
class App;
}

namespace hfopt::cli {

// Options that say how a run optimizes. What is not given is left to the server.
struct RunFlags {
  std::string options_file;
  std::optional<std::string> preset, element_type;
  std::optional<uint32_t> shards, keep_checkpoints, repeat_every;
  bool disable_hedging = false, bfloat16_products = false;
  std::optional<uint64_t> seed, num_parameters, max_iterations;
  std::optional<double> lease_seconds, journal_seconds, max_wall_seconds, max_example_passes, target_loss;
  std::vector<std::string> assignments;

  // The file's options, overridden by the flags, overridden by the assignments. INVALID_ARGUMENT names the flag.
  absl::StatusOr<v1::RunOptions> ToProto() const;
};

void AddRunFlags(CLI::App& command, RunFlags& flags);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_RUN_FLAGS_H_
