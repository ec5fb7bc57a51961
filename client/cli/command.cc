#include "client/cli/command.h"

#include <iostream>
#include <map>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"
#include "client/cpp/channel.h"

namespace hfopt::cli {

client::RunClient Context::runs() const { return client::RunClient(client::MakeChannel(server)); }

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

void AddServerOptions(CLI::App& command, Context& context) {
  command.add_option("--server", context.server, "Address of the hfopt-server, HOST:PORT or unix:PATH")
      ->envname("HFOPT_SERVER")
      ->type_name("ADDRESS")
      ->capture_default_str();
  AddOutputOption(command, context);
}

absl::Status Explain(const absl::Status& status, const Context& context) {
  if (absl::IsUnavailable(status) && absl::StrContains(status.message(), "connect")) {
    return absl::UnavailableError(absl::StrCat("no server answers at ", context.server,
                                               "; start one with hfopt-server, or say where it is with --server"));
  }
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(absl::StrCat("the server at ", context.server, " did not answer in time"));
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
  app.footer(ExitCodeHelp());
  AddTrainCommand(app, context);
  AddRunCommands(app, context);
  AddParamsCommands(app, context);
  AddCheckCommand(app, context);
  AddConformanceCommand(app, context);

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
