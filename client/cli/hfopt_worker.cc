// hfopt-worker: computes losses, gradients and Gauss-Newton products of a reference model for one run.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cli/connection_flags.h"
#include "client/cli/diagnosis.h"
#include "client/cli/exit_code.h"
#include "client/cli/model_flags.h"
#include "client/cli/stop_on_signal.h"
#include "client/cli/worker_group.h"
#include "client/cpp/model_worker.h"
#include "client/cpp/run_client.h"
#include "client/models/status_macros.h"
#include "proto/log/log.h"
#include "proto/wire/allocator.h"
#include "spdlog/spdlog.h"

namespace hfopt::cli {
namespace {

struct WorkerFlags {
  ConnectionFlags connection;
  std::string run_id;
  std::string worker_id;
  std::set<uint32_t> shards;
  double give_up_seconds = 600;
  models::ModelSpec model;
};

// The machine's name in the alphabet of worker ids.
std::string HostId() {
  char name[64] = "";
  gethostname(name, sizeof(name) - 1);
  std::string id = absl::AsciiStrToLower(name);
  std::replace_if(
      id.begin(), id.end(), [](char c) { return !absl::ascii_isalnum(c); }, '-');
  return id.empty() ? "worker" : id;
}

void AddOptions(CLI::App& app, WorkerFlags& flags) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  AddConnectionFlags(app, flags.connection);
  app.add_option("--run", flags.run_id, "Id of the run to work for; waited for if it is not there yet")
      ->envname("HFOPT_RUN")
      ->type_name("ID")
      ->required();
  app.add_option("--worker-id", flags.worker_id,
                 "Name of this worker: one for each worker of a run, the same when it is started again (1 to 63 of "
                 "a-z, 0-9 and -)")
      ->envname("HFOPT_WORKER_ID")
      ->type_name("ID")
      ->default_str(HostId());
  app.add_option("--shards", flags.shards,
                 "Logical shards whose data this worker has, with commas between; any if not given")
      ->envname("HFOPT_SHARDS")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("LIST");
  app.add_option("--give-up-after", flags.give_up_seconds,
                 "Seconds without the server or the run after which the worker fails")
      ->envname("HFOPT_GIVE_UP_AFTER")
      ->capture_default_str();
  AddModelFlags(app, flags.model);
  app.set_config("--config", "", "File with any of these options, one \"name = value\" a line")
      ->envname("HFOPT_CONFIG");
  app.footer(
      absl::StrCat("Options are taken from the command line, then the environment, then the file.\n"
                   "The number format (float32 or float64) is the run's. SIGINT and SIGTERM let the worker finish what "
                   "it computes and leave.\n\n",
                   ExitCodeHelp()));
}

// Why there is no connection, with what to do.
std::string WhatIsWrong(const ConnectionFlags& connection) {
  for (const DiagnosisStep& step : Diagnose(connection)) {
    if (step.result == DiagnosisStep::Result::kFailed) return absl::StrCat(step.finding, "; ", step.remedy);
  }
  return absl::StrCat("the server at ", connection.server, " did not answer in time");
}

// The run's options; waits for the server and the run. CANCELLED when asked to stop.
absl::StatusOr<v1::RunOptions> AwaitRun(const std::shared_ptr<grpc::Channel>& channel, const WorkerFlags& flags,
                                        std::stop_token stop) {
  constexpr std::chrono::milliseconds kFirstPause(100), kLongestPause(2000);
  client::RunClient runs(channel);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(flags.give_up_seconds);
  std::mutex mu;
  std::condition_variable_any never;
  auto pause = kFirstPause;
  while (true) {
    const absl::StatusOr<v1::Run> run = runs.Get(flags.run_id);
    if (run.ok()) return run->options();
    const bool may_come =
        absl::IsNotFound(run.status()) || absl::IsUnavailable(run.status()) || absl::IsDeadlineExceeded(run.status());
    if (!may_come) return run.status();
    if (std::chrono::steady_clock::now() > deadline) {
      return absl::Status(run.status().code(), absl::StrCat("gave up after ", flags.give_up_seconds, " s: ",
                                                            absl::IsNotFound(run.status())
                                                                ? std::string(run.status().message())
                                                                : WhatIsWrong(flags.connection)));
    }
    if (pause == kFirstPause) {
      spdlog::info("waiting for run {} at {}{}", flags.run_id, flags.connection.server,
                   absl::IsNotFound(run.status()) ? "" : absl::StrCat(": ", WhatIsWrong(flags.connection)));
    }
    std::unique_lock<std::mutex> lock(mu);
    never.wait_for(lock, stop, pause, [] { return false; });
    if (stop.stop_requested()) return absl::CancelledError("stopped before the run was there");
    pause = std::min(kLongestPause, pause * 2);
  }
}

template <typename Scalar>
absl::Status Serve(const std::shared_ptr<grpc::Channel>& channel, const WorkerFlags& flags, WorkerGroup& group, std::stop_token stop) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<client::Model<Scalar>> model, models::MakeModel<Scalar>(flags.model));
  if (group.rank() > 0) return group.Follow(*model);
  spdlog::info("model {}: {} parameters, {} training and {} held-out examples", model->signature(),
               model->num_parameters(), model->num_examples(client::DataSet::kTraining),
               model->num_examples(client::DataSet::kHeldOut));
  std::unique_ptr<client::Model<Scalar>> of_group;
  if (group.size() > 1) {
    HFOPT_ASSIGN_OR_RETURN(of_group, group.Lead(*model));
    spdlog::info("one worker of {} processes", group.size());
  }
  client::ModelWorker<Scalar> worker(of_group != nullptr ? *of_group : *model, {.channel = channel,
                                              .run_id = flags.run_id,
                                              .worker_id = flags.worker_id,
                                              .shards = flags.shards,
                                              .give_up_after = absl::Seconds(flags.give_up_seconds),
                                              .log = [](const std::string& line) { spdlog::info("{}", line); }});
  const std::stop_callback leave(stop, [&worker] { worker.Stop(); });
  HFOPT_ASSIGN_OR_RETURN(const client::Finished finished, worker.Run());
  spdlog::info("run {}: finished: {}: {}", flags.run_id, finished.reason, finished.detail);
  return absl::OkStatus();
}

// Rank 0 of a group talks to the server; the others learn from it how numbers are written, and follow.
absl::Status Work(const WorkerFlags& flags, WorkerGroup& group, std::stop_token stop) {
  std::shared_ptr<grpc::Channel> channel;
  int element_type = v1::ELEMENT_TYPE_UNSPECIFIED;  // also: there is nothing to do
  if (group.rank() == 0) {
    HFOPT_ASSIGN_OR_RETURN(channel, flags.connection.Connect());
    const absl::StatusOr<v1::RunOptions> options = AwaitRun(channel, flags, stop);
    if (options.ok()) {
      element_type = options->element_type() == v1::ELEMENT_TYPE_FLOAT64 ? v1::ELEMENT_TYPE_FLOAT64 : v1::ELEMENT_TYPE_FLOAT32;
    } else if (!absl::IsCancelled(options.status())) {
      return options.status();
    }
  }
  element_type = group.FromFirst(element_type);
  if (element_type == v1::ELEMENT_TYPE_UNSPECIFIED) return absl::OkStatus();
  return element_type == v1::ELEMENT_TYPE_FLOAT64 ? Serve<double>(channel, flags, group, stop) : Serve<float>(channel, flags, group, stop);
}

}  // namespace
}  // namespace hfopt::cli

int main(int argc, char** argv) {
  using namespace hfopt::cli;
  hfopt::wire::KeepFreedPages();
  const StopOnSignal signals;
  WorkerGroup group;

  CLI::App app(
      "Computes losses, gradients and Gauss-Newton products of a reference model for a run of an hfopt-server.",
      "hfopt-worker");
  app.set_version_flag("--version", "hfopt-worker " HFOPT_PROGRAM_VERSION, "Print version and instruction set, and exit");
  WorkerFlags flags;
  AddOptions(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kUsage;
  }
  if (flags.worker_id.empty()) flags.worker_id = HostId();
  if (flags.model.data.empty()) flags.model.data = FindData(flags.model.task, ProgramPath());

  hfopt::SetUpLog("hfopt-worker");
  spdlog::info("hfopt-worker " HFOPT_PROGRAM_VERSION);
  const absl::Status status = Work(flags, group, signals.token());
  if (!status.ok()) {
    std::cerr << "hfopt-worker: " << status.message() << "\n";
    group.Abort(ExitCodeOf(status));
  }
  return ExitCodeOf(status);
}
