// hfopt train: a server, workers and a run on this machine, from the first iteration to the result.

#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>
#include <mutex>
#include <stop_token>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/evaluation.h"
#include "client/cli/local_service.h"
#include "client/cli/model_flags.h"
#include "client/cli/parameter_file.h"
#include "client/cli/progress.h"
#include "client/cli/replace_file.h"
#include "client/cli/report_page.h"
#include "client/cli/run_flags.h"
#include "client/cli/run_history.h"
#include "client/cli/run_page.h"
#include "client/cli/stop_on_signal.h"
#include "client/cli/train_job.h"
#include "client/models/status_macros.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

struct TrainFlags {
  models::ModelSpec model;
  RunFlags run;
  std::string run_id;
  int workers = 2;
  std::string directory, resume, from;
  std::string server_program, worker_program;
};

struct Training {
  std::string directory;
  TrainJob job;
};

// Relative to the working directory where that is inside it.
std::string Short(const std::string& path) {
  const std::string relative = std::filesystem::proximate(path).string();
  return absl::StartsWith(relative, "..") ? path : relative;
}

// How the training that this process works on goes on after its end.
std::string ResumeCommand(const std::string& directory) {
  return absl::StrCat(ProgramPath(), " train --resume ",
                      std::filesystem::absolute(directory).lexically_normal().string());
}

absl::StatusOr<TrainJob> MakeJob(const TrainFlags& flags) {
  TrainJob job{
      .run_id = flags.run_id.empty() ? flags.model.task : flags.run_id, .workers = flags.workers, .model = flags.model};
  if (job.model.data.empty()) job.model.data = FindData(job.model.task, ProgramPath());
  if (!job.model.data.empty()) job.model.data = std::filesystem::absolute(job.model.data).lexically_normal().string();
  HFOPT_ASSIGN_OR_RETURN(job.options, flags.run.ToProto());
  if (models::IsDeterministic(job.model.task)) {
    if (job.options.element_type() == v1::ELEMENT_TYPE_UNSPECIFIED) {
      job.options.set_element_type(v1::ELEMENT_TYPE_FLOAT64);
    }
    if (job.options.optimizer().preset() == v1::OptimizerOptions::PRESET_UNSPECIFIED) {
      job.options.mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_DETERMINISTIC);
    }
  }
  // A bad model is found here, before any process is started.
  HFOPT_RETURN_IF_ERROR(models::MakeModel<float>(job.model).status());
  return job;
}

// The training that --resume or --dir names, or a new one.
absl::StatusOr<Training> OpenTraining(const TrainFlags& flags) {
  if (!flags.resume.empty()) {
    HFOPT_ASSIGN_OR_RETURN(TrainJob job, LoadTrainJob(flags.resume));
    return Training{flags.resume, std::move(job)};
  }
  HFOPT_ASSIGN_OR_RETURN(TrainJob job, MakeJob(flags));
  const std::string directory =
      !flags.directory.empty() ? flags.directory
                               : absl::StrCat("hfopt-data/", job.run_id,
                                              absl::FormatTime("-%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone()));
  const absl::StatusOr<TrainJob> old = LoadTrainJob(directory);
  if (old.ok() && old->ToJson() != job.ToJson()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--dir ", directory, " holds a training with other options; to go on with that one: ", ResumeCommand(directory),
        "\nTo train with these options choose another --dir"));
  }
  if (!old.ok() && !absl::IsNotFound(old.status())) return old.status();
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::UnknownError(absl::StrCat("--dir ", directory, ": cannot be created: ", error.message()));
  return Training{directory, std::move(job)};
}

bool IsDouble(const v1::Run& run) { return run.options().element_type() == v1::ELEMENT_TYPE_FLOAT64; }

// Lets a run that has not started begin from a file.
template <typename Scalar>
absl::Status Upload(client::RunClient& runs, const std::string& run_id, const std::string& file) {
  HFOPT_ASSIGN_OR_RETURN(const client::Vector<Scalar> theta, ReadParameters<Scalar>(file));
  return runs.UploadParameters(run_id, theta).status();
}

// The job's run, created if the server does not know it, and on its way unless it has ended. Once it is on its way it
// can be resumed.
absl::StatusOr<v1::Run> StartRun(client::RunClient& runs, const Training& training, const std::string& from) {
  const TrainJob& job = training.job;
  HFOPT_ASSIGN_OR_RETURN(v1::Run run, runs.Create(job.run_id, job.options, /*request_id=*/"hfopt train"));
  if (run.state() == v1::RUN_STATE_CREATED && !from.empty()) {
    HFOPT_RETURN_IF_ERROR(IsDouble(run) ? Upload<double>(runs, job.run_id, from)
                                        : Upload<float>(runs, job.run_id, from));
  }
  HFOPT_RETURN_IF_ERROR(SaveTrainJob(training.directory, job));
  switch (run.state()) {
    case v1::RUN_STATE_CREATED:
      return runs.Start(job.run_id);
    case v1::RUN_STATE_PAUSED:
    case v1::RUN_STATE_FAILED:
      return runs.Resume(job.run_id);
    default:
      return run;
  }
}

// What came out of a training.
struct Result {
  RunHistory history;
  std::string parameters_file, report_file;
  std::vector<Figure> figures;
};

template <typename Scalar>
absl::StatusOr<Result> Collect(client::RunClient& runs, RunHistory history, const Training& training) {
  const TrainJob& job = training.job;
  Result result{.history = std::move(history),
                .parameters_file = absl::StrCat(training.directory, "/parameters.safetensors"),
                .report_file = absl::StrCat(training.directory, "/report.html")};
  HFOPT_RETURN_IF_ERROR(ReplaceFile(result.report_file, ReportPage({result.history})));
  HFOPT_ASSIGN_OR_RETURN(const client::Parameters<Scalar> best, runs.DownloadBest<Scalar>(job.run_id));
  HFOPT_RETURN_IF_ERROR(WriteParameters(result.parameters_file, job.run_id, best, {{"hfopt.task", job.model.task}}));
  HFOPT_ASSIGN_OR_RETURN(result.figures, Evaluate<Scalar>(job.model, best.theta));
  return result;
}

std::string SummaryText(const Result& result, const Training& training) {
  const v1::Run& run = result.history.run;
  Table facts({{""}, {""}, {""}});
  for (const Figure& figure : result.figures) facts.AddRow({"", figure.title, figure.text});
  facts.AddRow(
      {"", "iterations", absl::StrCat(run.last_iteration().iteration(), ", the best is ", run.best_iteration())});
  facts.AddRow({"", "example-passes", absl::StrFormat("%.1f", run.last_iteration().cost().example_passes())});
  Table places({{""}, {""}, {""}});
  places.AddRow({"", "parameters", absl::StrCat(Short(result.parameters_file), " (tensor \"theta\")")});
  places.AddRow({"", "report", Short(result.report_file)});
  places.AddRow({"", "run and checkpoints", absl::StrCat(Short(training.directory), "/server")});
  places.AddRow({"", "logs", absl::StrCat(Short(training.directory), "/*.log")});
  return absl::StrCat("\n", training.job.run_id, " ", DescribeState(run), "\n\n", facts.ToString(), "\nTime\n",
                      DescribeSeconds(run.seconds()), "\nFiles\n", places.ToString());
}

std::string SummaryJson(const Result& result, const Training& training) {
  nlohmann::ordered_json summary = {{"run", nlohmann::ordered_json::parse(ToJson(result.history.run))},
                                    {"iterations", nlohmann::ordered_json::array()},
                                    {"evaluation", nlohmann::ordered_json::object()},
                                    {"parameters", result.parameters_file},
                                    {"report", result.report_file},
                                    {"directory", training.directory}};
  for (const v1::IterationReport& iteration : result.history.iterations) {
    summary["iterations"].push_back(nlohmann::ordered_json::parse(ToJson(iteration)));
  }
  for (const Figure& figure : result.figures) summary["evaluation"][figure.key] = figure.value;
  return summary.dump(1) + "\n";
}

// Brings the training to its end. CANCELLED when asked to stop before; the training can be resumed then, and after most
// errors.
absl::StatusOr<Result> Run(const Training& training, const TrainFlags& flags, std::ostream& out, ProgressStyle style,
                           std::stop_token stop) {
  const TrainJob& job = training.job;
  std::mutex mu;
  absl::Status failure;
  std::stop_source leave;  // because of `stop` or of `failure`
  const std::stop_callback leave_on_stop(stop, [&leave] { leave.request_stop(); });
  const auto on_failure = [&](absl::Status status) {
    {
      const std::lock_guard<std::mutex> lock(mu);
      failure.Update(status);
    }
    leave.request_stop();
  };

  LocalService::Options options{.directory = training.directory,
                                .on_event = [&out](const std::string& line) { out << line << std::endl; },
                                .on_failure = on_failure};
  const auto find = [](const std::string& given, const char* name) {
    return given.empty() ? LocalService::FindProgram(name) : given;
  };
  HFOPT_ASSIGN_OR_RETURN(options.server_program, find(flags.server_program, "hfopt-server"));
  HFOPT_ASSIGN_OR_RETURN(options.worker_program, find(flags.worker_program, "hfopt-worker"));
  HFOPT_ASSIGN_OR_RETURN(const std::unique_ptr<LocalService> service,
                         LocalService::Start(std::move(options), leave.get_token()));

  client::RunClient runs(client::MakeChannel(service->address()));
  HFOPT_ASSIGN_OR_RETURN(v1::Run run, StartRun(runs, training, flags.from));
  if (run.state() != v1::RUN_STATE_ENDED) {
    service->StartWorkers(job.workers, job.run_id, ModelArguments(job.model));
    Progress progress(out, style, run);
    const absl::StatusOr<v1::Run> end = runs.Watch(
        job.run_id, 0,
        [&](const v1::WatchRunResponse& event) {
          progress.Show(event);
          return true;
        },
        leave.get_token());
    if (const std::lock_guard<std::mutex> lock(mu); !failure.ok()) return failure;
    if (absl::IsCancelled(end.status())) {
      out << "stopping ..." << std::endl;
      runs.Pause(job.run_id).status().IgnoreError();  // if that fails, the end of its server does the same
    }
    HFOPT_RETURN_IF_ERROR(end.status());
    run = *end;
  }
  if (run.state() == v1::RUN_STATE_FAILED) {
    return absl::UnknownError(absl::StrCat("the run failed: ", run.state_detail()));
  }
  if (absl::StartsWith(job.model.task, "an4")) {
    out << "recognising the words of the held-out and test utterances ..." << std::endl;
  }
  HFOPT_ASSIGN_OR_RETURN(RunHistory history, LoadHistory(runs, job.run_id));
  return IsDouble(run) ? Collect<double>(runs, std::move(history), training)
                       : Collect<float>(runs, std::move(history), training);
}

absl::Status Train(const TrainFlags& flags, const Context& context) {
  const StopOnSignal signals;
  HFOPT_ASSIGN_OR_RETURN(const Training training, OpenTraining(flags));
  const bool json = context.output == OutputFormat::kJson;
  std::ostream& out = json ? std::cerr : std::cout;  // the JSON document stands alone
  ProgressStyle style = ProgressStyle::Of(json ? STDERR_FILENO : STDOUT_FILENO);
  if (absl::StartsWith(training.job.model.task, "an4")) style.error_title = "frame error";
  out << "training " << training.job.run_id << " with " << training.job.workers << " workers in "
      << Short(training.directory) << "; Ctrl-C stops it so that it can be resumed" << std::endl;

  const absl::StatusOr<Result> result = Run(training, flags, out, style, signals.token());
  if (result.ok()) {
    std::cout << (json ? SummaryJson(*result, training) : SummaryText(*result, training)) << std::flush;
    return absl::OkStatus();
  }
  if (!LoadTrainJob(training.directory).ok()) return result.status();
  const std::string remedy = absl::StrCat("To go on: ", ResumeCommand(training.directory));
  if (absl::IsCancelled(result.status())) {
    out << "stopped. " << remedy << std::endl;
    return absl::CancelledError("");
  }
  return absl::Status(result.status().code(), absl::StrCat(result.status().message(), "\n", remedy));
}

}  // namespace

void AddTrainCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App& command = AddCommand(app, context, "train",
                                 "Train a reference model on this machine: server, workers, progress, result, in one",
                                 [&context, flags] { return Train(*flags, context); });
  CLI::Option& resume =
      *command.add_option("--resume", flags->resume, "Go on with the training of this directory, as it was begun")
           ->type_name("DIR");
  command
      .add_option("--server-binary", flags->server_program,
                  "hfopt-server to use; by default the one beside this program or on PATH")
      ->type_name("FILE");
  command.add_option("--worker-binary", flags->worker_program, "hfopt-worker to use; likewise")->type_name("FILE");
  AddOutputOption(command, context);

  // What a training that is resumed brings along.
  const size_t others = command.get_options().size();
  command
      .add_option("--dir", flags->directory,
                  "Directory for state, logs and parameters; by default a new one in hfopt-data/. Given again, it is "
                  "resumed")
      ->type_name("DIR");
  command.add_option("--workers", flags->workers, "Worker processes; more than cores are no use")
      ->check(CLI::Range(1, 1024).description(""))
      ->capture_default_str();
  command.add_option("--from", flags->from, "Begin with the parameters of this safetensors file")->type_name("FILE");
  command.add_option("--run", flags->run_id, "Id of the run; by default the task")->type_name("ID");
  AddModelFlags(command, flags->model);
  AddRunFlags(command, flags->run);
  const std::vector<CLI::Option*> options = command.get_options();
  for (size_t i = others; i < options.size(); ++i) resume.excludes(options[i]);
}

}  // namespace hfopt::cli
