// hfopt params download | upload

#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/parameter_file.h"
#include "client/cli/run_page.h"
#include "client/models/status_macros.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::cli {
namespace {

struct DownloadFlags {
  std::string id, file;
  std::string version = "best";
  std::optional<uint64_t> iteration;
};

template <typename Scalar>
absl::Status Download(client::RunClient& runs, const DownloadFlags& flags, const Context& context) {
  HFOPT_ASSIGN_OR_RETURN(const client::Parameters<Scalar> parameters,
                         flags.iteration.has_value() ? runs.DownloadAt<Scalar>(flags.id, *flags.iteration)
                         : flags.version == "last"   ? runs.DownloadLast<Scalar>(flags.id)
                                                     : runs.DownloadBest<Scalar>(flags.id));
  const std::string file = flags.file.empty() ? flags.id + ".safetensors" : flags.file;
  HFOPT_RETURN_IF_ERROR(WriteParameters(file, flags.id, parameters));
  if (context.output == OutputFormat::kTable) {
    std::cout << file << ": " << FormatCount(parameters.theta.size()) << " parameters after iteration "
              << parameters.iteration << ", held-out loss " << FormatLoss(parameters.held_out_loss) << "\n";
    return absl::OkStatus();
  }
  v1::DownloadParametersHeader header;
  header.set_size(parameters.theta.size());
  header.set_element_type(wire::ElementTypeOf<Scalar>());
  header.set_iteration(parameters.iteration);
  header.set_held_out_loss(parameters.held_out_loss);
  std::cout << ToJson(header) << "\n";
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Upload(client::RunClient& runs, const std::string& id, const std::string& file, const Context& context) {
  HFOPT_ASSIGN_OR_RETURN(const client::Vector<Scalar> theta, ReadParameters<Scalar>(file));
  HFOPT_ASSIGN_OR_RETURN(const v1::Run run, runs.UploadParameters(id, theta));
  if (context.output == OutputFormat::kJson) {
    std::cout << ToJson(run) << "\n";
  } else {
    std::cout << id << ": starts from the " << FormatCount(theta.size()) << " parameters of " << file << "\n";
  }
  return absl::OkStatus();
}

// Whether the run computes in double.
absl::StatusOr<bool> IsDouble(client::RunClient& runs, const std::string& id) {
  HFOPT_ASSIGN_OR_RETURN(const v1::Run run, runs.Get(id));
  return run.options().element_type() == v1::ELEMENT_TYPE_FLOAT64;
}

}  // namespace

void AddParamsCommands(CLI::App& app, Context& context) {
  CLI::App& group = *app.add_subcommand("params", "Move parameters between a run and safetensors files");
  group.require_subcommand(1);

  auto flags = std::make_shared<DownloadFlags>();
  CLI::App& download =
      AddServerCommand(group, context, "download", "Write a run's parameters to a file: one tensor, \"theta\"",
                       [&context, flags](client::RunClient& runs) -> absl::Status {
                         HFOPT_ASSIGN_OR_RETURN(const bool is_double, IsDouble(runs, flags->id));
                         return is_double ? Download<double>(runs, *flags, context) : Download<float>(runs, *flags, context);
                       });
  download.add_option("ID", flags->id, "The run")->required();
  download.add_option("FILE", flags->file, "File to write or replace; by default ID.safetensors");
  download.add_option("--version", flags->version, "best: of the lowest held-out loss; last: of the last iteration")
      ->check(CLI::IsMember({"best", "last"}).description(""))
      ->type_name("best|last")
      ->capture_default_str();
  download.add_option("--iteration", flags->iteration,
                      "Instead: the parameters after this iteration, if they are kept");

  auto id = std::make_shared<std::string>(), file = std::make_shared<std::string>();
  CLI::App& upload =
      AddServerCommand(group, context, "upload", "Let a run that has not started begin from a file's tensor \"theta\"",
                       [&context, id, file](client::RunClient& runs) -> absl::Status {
                         HFOPT_ASSIGN_OR_RETURN(const bool is_double, IsDouble(runs, *id));
                         return is_double ? Upload<double>(runs, *id, *file, context) : Upload<float>(runs, *id, *file, context);
                       });
  upload.add_option("ID", *id, "The run")->required();
  upload.add_option("FILE", *file, "safetensors file with numbers of the run's element type")->required();
}

}  // namespace hfopt::cli
