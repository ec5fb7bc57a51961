#ifndef HFOPT_CLIENT_CLI_COMMAND_H_
#define HFOPT_CLIENT_CLI_COMMAND_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/cli/connection_flags.h"
#include "client/cli/format.h"
#include "client/cpp/run_client.h"

namespace CLI {
class App;
}

namespace hfopt::cli {

// What the commands share. The command that the user chose leaves its work in `action`, which is done once the command
// line is known to be right.
struct Context {
  ConnectionFlags connection;
  OutputFormat output = OutputFormat::kTable;
  std::function<absl::Status()> action;
};

// A command `name` under `parent` that does `action`. `name` and `help` as in CLI11.
CLI::App& AddCommand(CLI::App& parent, Context& context, const std::string& name, const std::string& help,
                     std::function<absl::Status()> action);

// -o.
void AddOutputOption(CLI::App& command, Context& context);

// A command that asks a server: has --server and what goes with it, and -o.
CLI::App& AddServerCommand(CLI::App& parent, Context& context, const std::string& name, const std::string& help,
                           std::function<absl::Status(client::RunClient&)> action);

// The groups of commands.
void AddRunCommands(CLI::App& app, Context& context);     // hfopt run create | start | ...
void AddParamsCommands(CLI::App& app, Context& context);  // hfopt params download | upload
void AddTrainCommand(CLI::App& app, Context& context);    // hfopt train
void AddCheckCommand(CLI::App& app, Context& context);    // hfopt check
void AddConformanceCommand(CLI::App& app, Context& context);  // hfopt conformance
void AddDoctorCommand(CLI::App& app, Context& context);   // hfopt doctor
void AddCertsCommand(CLI::App& app, Context& context);    // hfopt certs
void AddTokenCommand(CLI::App& app, Context& context);    // hfopt token

// The same status, with a message for people where the transport's own words do not help.
absl::Status Explain(const absl::Status& status, const Context& context);

// The whole program but for its process: parses, acts, prints errors to stderr, and answers the exit code.
int Main(int argc, const char* const* argv);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_COMMAND_H_
