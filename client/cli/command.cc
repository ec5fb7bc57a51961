#include "client/cli/command.h"

#include <iostream>
#include <map>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/diagnosis.h"
#include "client/cli/exit_code.h"
#include "client/models/status_macros.h"

namespace hfopt::cli {

CLI::App& AddCommand(CLI::App& parent, Context& context, const std::string& name, const std::string& help,
                     std::function<absl::Status()> action) {
  CLI::App& command = *parent.add_subcommand(name, help);
  command.callback([&context, action = std::move(action)] { context.action = action; });
  return command;
}

void AddOutputOption(CLI::App& command, Context& context) {
  static const std::map<std::string, OutputFormat> formats = {{"table", OutputFormat::kTable},
                                                              {"json", OutputFormat::kJson}};
  command
      .add_option("-o,--output", context.output, "table for people, json for programs (the messages of proto/hfopt/v1)")
      ->transform(CLI::CheckedTransformer(formats, CLI::ignore_case).description(""))
      ->type_name("table|json")
      ->default_str("table");
}

CLI::App& AddServerCommand(CLI::App& parent, Context& context, const std::string& name, const std::string& help,
                           std::function<absl::Status(client::RunClient&)> action) {
  CLI::App& command = AddCommand(parent, context, name, help, [&context, action = std::move(action)]() -> absl::Status {
    HFOPT_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, context.connection.Connect());
    client::RunClient runs(channel);
    return action(runs);
  });
  AddConnectionFlags(command, context.connection);
  AddOutputOption(command, context);
  return command;
}

absl::Status Explain(const absl::Status& status, const Context& context) {
  const std::string& server = context.connection.server;
  if (absl::IsUnavailable(status) && absl::StrContains(status.message(), "connect")) {
    for (const DiagnosisStep& step : Diagnose(context.connection)) {
      if (step.result == DiagnosisStep::Result::kFailed) return absl::UnavailableError(absl::StrCat(step.finding, "; ", step.remedy));
    }
    return absl::UnavailableError(absl::StrCat("no connection to ", server, ": ", status.message()));
  }
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(absl::StrCat("the server at ", server, " did not answer in time; hfopt doctor says how far one gets"));
  }
  return status;
}

int Main(int argc, const char* const* argv) {
  Context context;
  CLI::App app(
      "Trains models by Hessian-free optimization through an hfopt-server.\n"
      "To see it work: hfopt train. To use a server of your own: hfopt run create, hfopt run start, hfopt-worker, "
      "hfopt run watch.",
      "hfopt");
  app.require_subcommand(1);
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", "hfopt " HFOPT_PROGRAM_VERSION, "Print version and instruction set, and exit");
  app.footer(ExitCodeHelp());
  AddTrainCommand(app, context);
  AddRunCommands(app, context);
  AddParamsCommands(app, context);
  AddCheckCommand(app, context);
  AddConformanceCommand(app, context);
  AddDoctorCommand(app, context);
  AddCertsCommand(app, context);
  AddTokenCommand(app, context);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kUsage;
  }
  const absl::Status status = Explain(context.action(), context);
  if (!status.ok() && !status.message().empty()) std::cerr << "hfopt: " << status.message() << "\n";
  return ExitCodeOf(status);
}

}  // namespace hfopt::cli
