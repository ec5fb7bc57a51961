#ifndef HFOPT_CLIENT_CLI_COMMAND_H_
#define HFOPT_CLIENT_CLI_COMMAND_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/cli/format.h"
#include "client/cpp/run_client.h"

namespace CLI {
class App;
}

namespace hfopt::cli {

// What the commands share. The command that the user chose leaves its work in `action`, which is done once the command
// line is known to be right.
struct Context {
  std::string server = "127.0.0.1:7447";
  OutputFormat output = OutputFormat::kTable;
  std::function<absl::Status()> action;

  client::RunClient runs() const;
};

// A command `name` under `parent` that does `action`. `name` and `help` as in CLI11.
CLI::App& AddCommand(CLI::App& parent, Context& context, const std::string& name, const std::string& help,
                     std::function<absl::Status()> action);

// -o. For commands that need no server.
void AddOutputOption(CLI::App& command, Context& context);
// --server and -o.
void AddServerOptions(CLI::App& command, Context& context);

// The groups of commands.
void AddRunCommands(CLI::App& app, Context& context);     // hfopt run create | start | ...
void AddParamsCommands(CLI::App& app, Context& context);  // hfopt params download | upload
void AddTrainCommand(CLI::App& app, Context& context);    // hfopt train
void AddCheckCommand(CLI::App& app, Context& context);    // hfopt check
void AddConformanceCommand(CLI::App& app, Context& context);  // hfopt conformance

// The same status, with a message for people where the transport's own words do not help.
absl::Status Explain(const absl::Status& status, const Context& context);

// The whole program but for its process: parses, acts, prints errors to stderr, and answers the exit code.
int Main(int argc, const char* const* argv);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_COMMAND_H_
