#include "client/cli/run_flags.h"

#include <fstream>
#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/option_setter.h"
#include "client/models/status_macros.h"
#include "google/protobuf/util/json_util.h"

namespace hfopt::cli {
namespace {

absl::Status ReadOptions(const std::string& path, v1::RunOptions& options) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("--options ", path, ": cannot be read"));
  }
  if (const auto status = google::protobuf::util::JsonStringToMessage(text.str(), &options); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--options ", path, " is no JSON of hfopt.v1.RunOptions: ",
                                                   std::string(status.message().data(), status.message().size())));
  }
  return absl::OkStatus();
}

// Sets `field` of `message` as SetOption does; errors name the flag.
absl::Status SetFlag(const char* flag, const char* field, const std::optional<std::string>& value,
                     google::protobuf::Message& message) {
  if (!value.has_value()) return absl::OkStatus();
  if (absl::Status status = SetOption(absl::StrCat(field, "=", *value), message); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(flag, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::RunOptions> RunFlags::ToProto() const {
  v1::RunOptions options;
  if (!options_file.empty()) HFOPT_RETURN_IF_ERROR(ReadOptions(options_file, options));
  v1::OptimizerOptions& optimizer = *options.mutable_optimizer();
  HFOPT_RETURN_IF_ERROR(SetFlag("--preset", "preset", preset, optimizer));
  HFOPT_RETURN_IF_ERROR(SetFlag("--element-type", "element_type", element_type, options));
  if (shards) options.set_shards(*shards);
  if (keep_checkpoints) options.set_keep_checkpoints(*keep_checkpoints);
  if (seed) options.set_seed(*seed);
  if (num_parameters) options.set_num_parameters(*num_parameters);
  if (lease_seconds) options.set_lease_seconds(*lease_seconds);
  if (journal_seconds) options.set_journal_seconds(*journal_seconds);
  if (disable_hedging) options.set_disable_hedging(true);
  if (bfloat16_products) options.set_bfloat16_products(true);
  if (repeat_every) options.set_repeat_every(*repeat_every);
  if (max_wall_seconds) options.set_max_wall_seconds(*max_wall_seconds);
  if (max_iterations) optimizer.mutable_stop()->set_max_iterations(*max_iterations);
  if (max_example_passes) optimizer.mutable_stop()->set_max_example_passes(*max_example_passes);
  if (target_loss) optimizer.mutable_stop()->set_target_loss(*target_loss);
  for (const std::string& assignment : assignments) {
    if (absl::Status status = SetOption(assignment, optimizer); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("--set ", assignment, ": ", status.message()));
    }
  }
  return options;
}

void AddRunFlags(CLI::App& command, RunFlags& flags) {
  const std::string group = "Optimization";
  command
      .add_option("--preset", flags.preset,
                  "accelerated: growing samples, short solves, for learning from much data (the server's default). "
                  "published: Kingsbury 2012 with its constants, the baseline. "
                  "deterministic: all data, long solves, for ill-conditioned least squares")
      ->type_name("accelerated|published|deterministic")
      ->group(group);
  command
      .add_option("--shards", flags.shards,
                  "Logical shards of the data, fixed for the life of the run; 0: as many as workers at its start")
      ->group(group);
  command.add_option("--element-type", flags.element_type, "Number format of the vectors")
      ->type_name("float32|float64")
      ->group(group);
  command.add_option("--seed", flags.seed, "Seed of the initial parameters")->group(group);
  command.add_option("--lease", flags.lease_seconds, "Seconds of silence after which a worker loses its shards")
      ->group(group);
  command.add_option("--journal", flags.journal_seconds,
                     "Keep the answers of the iteration under way on the server's disk, synced every so many seconds: for iterations that take long")
      ->type_name("SECONDS")
      ->group(group);
  command.add_option("--repeat-every", flags.repeat_every,
                     "In every so many gradients or products ask for one shard twice, to find workers that contradict themselves; 0: never")
      ->group(group);
  command.add_flag("--no-hedging", flags.disable_hedging, "Never ask an idle worker for what another one is late with")->group(group);
  command.add_flag("--bfloat16-products", flags.bfloat16_products,
                   "Directions and Gauss-Newton products in half the bytes, rounded to bfloat16: for slow links and sampled curvature")
      ->group(group);
  command.add_option("--keep-checkpoints", flags.keep_checkpoints, "Checkpoints kept besides the best")->group(group);
  command
      .add_option("--num-parameters", flags.num_parameters,
                  "Size of the model, for an early check of the server's memory")
      ->group(group);
  command
      .add_option("--options", flags.options_file, "File with hfopt.v1.RunOptions as JSON; other options override it")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--set", flags.assignments, "Sets an optimizer option (names below); may be repeated")
      ->type_name("NAME=VALUE")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(group);

  const std::string stop = "When to end";
  command.add_option("--target-loss", flags.target_loss, "Once the loss on all held-out data is this low")->group(stop);
  command.add_option("--max-wall-seconds", flags.max_wall_seconds, "After this time, counted over restarts")
      ->group(stop);
  command.add_option("--max-iterations", flags.max_iterations, "After this many iterations")->group(stop);
  command
      .add_option("--max-example-passes", flags.max_example_passes,
                  "After this much work: one pass is a forward evaluation of all training data")
      ->group(stop);

  command.footer(
      absl::StrCat("Names for --set:\n", DescribeOptions(*v1::OptimizerOptions::descriptor()),
                   "What they mean: core/optimizer_options.h. The values in use: hfopt run get ID -o json."));
}

}  // namespace hfopt::cli
