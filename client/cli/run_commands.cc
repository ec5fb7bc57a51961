// hfopt run create | start | pause | resume | cancel | delete | list | get | watch

#include <unistd.h>

#include <iostream>
#include <memory>
#include <optional>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/progress.h"
#include "client/cli/replace_file.h"
#include "client/cli/report_page.h"
#include "client/cli/run_flags.h"
#include "client/cli/run_history.h"
#include "client/cli/run_page.h"
#include "client/models/status_macros.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

absl::Status PrintRun(const absl::StatusOr<v1::Run>& run, const Context& context) {
  HFOPT_RETURN_IF_ERROR(run.status());
  std::cout << (context.output == OutputFormat::kJson ? ToJson(*run) + "\n" : RunPage(*run));
  return absl::OkStatus();
}

// One line for what was done to a run.
absl::Status PrintState(const absl::StatusOr<v1::Run>& run, const Context& context) {
  if (!run.ok() || context.output == OutputFormat::kJson) return PrintRun(run, context);
  std::cout << IdOf(*run) << ": " << DescribeState(*run) << "\n";
  return absl::OkStatus();
}

absl::Status PrintList(client::RunClient& client, const Context& context) {
  HFOPT_ASSIGN_OR_RETURN(std::vector<v1::Run> runs, client.List());
  if (context.output == OutputFormat::kTable) {
    std::cout << (runs.empty() ? "no runs; make one with hfopt run create\n" : RunList(runs));
    return absl::OkStatus();
  }
  v1::ListRunsResponse all;
  for (v1::Run& run : runs) *all.add_runs() = std::move(run);
  std::cout << ToJson(all) << "\n";
  return absl::OkStatus();
}

absl::Status Watch(client::RunClient& runs, const std::string& id, uint64_t after, const Context& context) {
  HFOPT_ASSIGN_OR_RETURN(const v1::Run run, runs.Get(id));
  Progress progress(std::cout, ProgressStyle::Of(STDOUT_FILENO), run);
  const auto show = [&](const v1::WatchRunResponse& event) {
    if (context.output == OutputFormat::kJson) {
      std::cout << ToJson(event, JsonStyle::kLine) << std::endl;
    } else {
      progress.Show(event);
    }
    return true;
  };
  HFOPT_ASSIGN_OR_RETURN(const v1::Run end, runs.Watch(id, after, show));
  if (end.state() != v1::RUN_STATE_FAILED) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat("run ", id, " failed: ", end.state_detail()));
}

absl::Status Report(client::RunClient& runs, const std::vector<std::string>& ids, std::string file, const Context& context) {
  std::vector<RunHistory> histories;
  for (const std::string& id : ids) {
    HFOPT_ASSIGN_OR_RETURN(RunHistory history, LoadHistory(runs, id));
    histories.push_back(std::move(history));
  }
  if (file.empty()) file = absl::StrCat(ids.front(), ".html");
  HFOPT_RETURN_IF_ERROR(ReplaceFile(file, ReportPage(histories)));
  std::cout << (context.output == OutputFormat::kJson ? nlohmann::json({{"file", file}}).dump() : file) << "\n";
  return absl::OkStatus();
}

// A command that takes the id of a run: `action`(runs, id).
CLI::App& AddRunCommand(CLI::App& group, Context& context, const std::string& name, const std::string& help,
                        std::function<absl::Status(client::RunClient& runs, const std::string& id)> action) {
  auto id = std::make_shared<std::string>();
  CLI::App& command = AddServerCommand(group, context, name, help,
                                       [id, action = std::move(action)](client::RunClient& runs) { return action(runs, *id); });
  command.add_option("ID", *id, "The run")->required();
  return command;
}

}  // namespace

void AddRunCommands(CLI::App& app, Context& context) {
  CLI::App& group = *app.add_subcommand("run", "Create, control and watch runs on a server");
  group.require_subcommand(1);

  auto flags = std::make_shared<RunFlags>();
  CLI::App& create =
      AddRunCommand(group, context, "create", "Create a run: 1 to 63 of a-z, 0-9 and -, beginning with a letter",
                    [&context, flags](client::RunClient& runs, const std::string& id) -> absl::Status {
                      HFOPT_ASSIGN_OR_RETURN(const v1::RunOptions options, flags->ToProto());
                      return PrintRun(runs.Create(id, options), context);
                    });
  AddRunFlags(create, *flags);

  // The actions of RunClient that take an id and answer the run.
  using Action = absl::StatusOr<v1::Run> (client::RunClient::*)(const std::string&);
  const auto add_action = [&](const char* name, const char* help, Action action) {
    AddRunCommand(group, context, name, help, [&context, action](client::RunClient& runs, const std::string& id) {
      return PrintState((runs.*action)(id), context);
    });
  };
  add_action("start", "Start a run that was created; it waits for its workers", &client::RunClient::Start);
  add_action("pause", "Pause a run; what it has of an unfinished iteration is done again later",
             &client::RunClient::Pause);
  add_action("resume", "Go on with a paused or failed run", &client::RunClient::Resume);
  add_action("cancel", "End a run; its parameters stay", &client::RunClient::Cancel);

  AddRunCommand(group, context, "delete", "Remove a run that is not running, with its parameters",
                [&context](client::RunClient& runs, const std::string& id) {
                  HFOPT_RETURN_IF_ERROR(runs.Delete(id));
                  std::cout << (context.output == OutputFormat::kJson ? ToJson(v1::DeleteRunResponse())
                                                                      : absl::StrCat(id, ": deleted"))
                            << "\n";
                  return absl::OkStatus();
                });
  AddRunCommand(group, context, "get", "Show a run: state, options, time by phase, workers, last iteration",
                [&context](client::RunClient& runs, const std::string& id) { return PrintRun(runs.Get(id), context); });

  auto ids = std::make_shared<std::vector<std::string>>();
  auto file = std::make_shared<std::string>();
  CLI::App& report = AddServerCommand(group, context, "report",
                                      "Write a page of charts (one HTML file) of one run, or of several over each other",
                                      [&context, ids, file](client::RunClient& runs) { return Report(runs, *ids, *file, context); });
  report.add_option("ID", *ids, "The runs")->required();
  report.add_option("--to", *file, "The file; by default ID.html")->type_name("FILE");

  AddServerCommand(group, context, "list", "List all runs", [&context](client::RunClient& runs) { return PrintList(runs, context); });

  auto after = std::make_shared<uint64_t>(0);
  CLI::App& watch =
      AddRunCommand(group, context, "watch", "Follow a run until it ends; with -o json one JSON object per line",
                    [&context, after](client::RunClient& runs, const std::string& id) { return Watch(runs, id, *after, context); });
  watch.add_option("--after", *after, "Only iterations after this one")->capture_default_str();
}

}  // namespace hfopt::cli
