// hfopt conformance: does a worker, in whatever language, keep the protocol and compute what it should? Takes the place
// of a server, and says what a well-behaved server rarely says.

#include <algorithm>
#include <iostream>
#include <memory>
#include <stop_token>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/conformance/suite.h"
#include "client/cli/parameter_file.h"
#include "client/cli/stop_on_signal.h"
#include "client/models/status_macros.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

using conformance::Case;
using conformance::CaseResult;
using conformance::Verdict;

struct ConformanceFlags {
  std::string listen;
  std::string run_id = "conformance";
  std::string element_type;
  std::string from;
  std::vector<std::string> only;
  std::vector<std::string> command;
  int64_t samples = 64;
  uint64_t seed = 1;
  double timeout_seconds = 60;
  bool list = false;
};

std::string Name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPassed:
      return "passed";
    case Verdict::kWarned:
      return "warning";
    case Verdict::kFailed:
      return "FAILED";
    case Verdict::kSkipped:
      return "skipped";
  }
  return "";
}

void List(const std::vector<Case>& cases, OutputFormat format) {
  if (format == OutputFormat::kJson) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Case& one : cases) {
      list.push_back({{"name", one.name}, {"meaning", one.meaning}, {"needs_command", one.needs_start}});
    }
    std::cout << nlohmann::ordered_json{{"cases", std::move(list)}}.dump(1) << "\n";
    return;
  }
  Table table({{"CASE"}, {"WHAT A RIGHT WORKER DOES"}});
  for (const Case& one : cases) table.AddRow({one.name, one.meaning});
  std::cout << table.ToString();
}

size_t Count(const std::vector<CaseResult>& results, Verdict verdict) {
  return std::count_if(results.begin(), results.end(),
                       [&](const CaseResult& r) { return r.outcome.verdict == verdict; });
}

void PrintJson(const std::vector<CaseResult>& results) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const CaseResult& r : results) {
    std::string verdict = Name(r.outcome.verdict);
    std::transform(verdict.begin(), verdict.end(), verdict.begin(), ::tolower);
    cases.push_back({{"name", r.tested.name},
                     {"result", verdict},
                     {"detail", r.outcome.detail},
                     {"meaning", r.tested.meaning},
                     {"seconds", absl::ToDoubleSeconds(r.time)}});
  }
  std::cout << nlohmann::ordered_json{{"passed", Count(results, Verdict::kFailed) == 0}, {"cases", std::move(cases)}}
                   .dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
            << "\n";
}

// One line for each case as it ends; what is wrong with it, in full.
void PrintLine(const CaseResult& r, size_t width) {
  std::string detail = r.outcome.detail;
  std::replace(detail.begin(), detail.end(), '\n', ' ');
  std::cout << PadRight(r.tested.name, width) << "  " << PadRight(Name(r.outcome.verdict), 7) << "  "
            << absl::StrFormat("%6.2f s", absl::ToDoubleSeconds(r.time)) << "  " << detail << std::endl;
  if (r.outcome.verdict == Verdict::kFailed) {
    std::cout << PadRight("", width) << "           a right worker: " << r.tested.meaning << std::endl;
  }
}

absl::StatusOr<conformance::LabOptions> MakeLabOptions(const ConformanceFlags& flags) {
  conformance::LabOptions options{
      .seed = flags.seed, .examples = flags.samples, .timeout = absl::Seconds(flags.timeout_seconds)};
  if (flags.element_type == "float64") options.element_type = v1::ELEMENT_TYPE_FLOAT64;
  if (flags.element_type == "float32") options.element_type = v1::ELEMENT_TYPE_FLOAT32;
  if (!flags.from.empty()) {
    if (flags.element_type == "float32") {
      HFOPT_ASSIGN_OR_RETURN(const auto parameters, ReadParameters<float>(flags.from));
      options.parameters = parameters.template cast<double>();
    } else {
      HFOPT_ASSIGN_OR_RETURN(options.parameters, ReadParameters<double>(flags.from));
    }
  }
  return options;
}

absl::Status Conformance(const ConformanceFlags& flags, const Context& context) {
  const std::vector<Case> cases = conformance::SelectCases(flags.only);
  if (cases.empty()) return absl::InvalidArgumentError("no case has such a name; hfopt conformance --list names them");
  if (flags.list) {
    List(cases, context.output);
    return absl::OkStatus();
  }
  const auto has_address = [](const std::string& argument) { return absl::StrContains(argument, "{address}"); };
  if (!flags.command.empty() && std::none_of(flags.command.begin(), flags.command.end(), has_address)) {
    return absl::InvalidArgumentError(
        "the command has no {address}; write {address}, {run} and {worker} where the worker's options have the "
        "server's "
        "address, the run's id and the worker's id");
  }
  HFOPT_ASSIGN_OR_RETURN(conformance::LabOptions options, MakeLabOptions(flags));

  const StopOnSignal signals;
  const std::string listen = !flags.listen.empty()   ? flags.listen
                             : flags.command.empty() ? "127.0.0.1:7448"
                                                     : "127.0.0.1:0";
  HFOPT_ASSIGN_OR_RETURN(const auto server, conformance::WireServer::Listen(listen, flags.run_id));
  std::unique_ptr<conformance::WorkerUnderTest> worker;
  if (flags.command.empty()) {
    worker = std::make_unique<conformance::ForeignWorker>();
    std::cerr << "waiting for a worker, for example: hfopt-worker --server " << server->address() << " --run "
              << flags.run_id << "; without a COMMAND, cases that restart the worker are skipped" << std::endl;
  } else {
    worker = std::make_unique<conformance::ProcessWorker>(flags.command);
  }
  conformance::Lab lab(*server, *worker, std::move(options));
  lab.set_stop_token(signals.token());

  size_t width = 0;
  for (const Case& one : cases) width = std::max(width, one.name.size());
  const std::vector<CaseResult> results = conformance::RunCases(cases, lab, [&](const CaseResult& result) {
    if (signals.token().stop_requested()) return false;
    if (context.output == OutputFormat::kTable) PrintLine(result, width);
    return true;
  });
  if (signals.token().stop_requested()) return absl::CancelledError("interrupted");
  if (context.output == OutputFormat::kJson) PrintJson(results);
  const size_t failed = Count(results, Verdict::kFailed);
  const std::string counts =
      absl::StrCat(Count(results, Verdict::kPassed), " passed, ", Count(results, Verdict::kWarned), " with a warning, ",
                   Count(results, Verdict::kSkipped), " skipped");
  if (failed != 0) return absl::UnknownError(absl::StrCat(failed, " of ", results.size(), " cases failed; ", counts));
  std::cerr << counts << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddConformanceCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<ConformanceFlags>();
  CLI::App& command = AddCommand(app, context, "conformance",
                                 "Hold a worker against the protocol and the mathematics: plays the server to it, also "
                                 "a rude one. (hfopt check looks at "
                                 "the derivatives of a worker alone, as a server would ask for them)",
                                 [&context, flags] { return Conformance(*flags, context); });
  command
      .add_option("command", flags->command,
                  "Starts the worker, after --; {address}, {run} and {worker} in it are replaced. The worker is "
                  "started anew where a "
                  "case needs it. Without a command somebody else has to start it")
      ->type_name("COMMAND");
  command
      .add_option("--listen", flags->listen,
                  "Address the worker is to dial, HOST:PORT (port 0: chosen by the system) or unix:PATH; by default "
                  "127.0.0.1:7448, or a port of the system's choice with a command")
      ->type_name("ADDRESS");
  command.add_option("--run", flags->run_id, "Run the worker is to join")->type_name("ID")->capture_default_str();
  command.add_flag("--list", flags->list, "Only say what the cases are");
  command
      .add_option("--only", flags->only,
                  "Only cases with this in their name; * stands for anything. Can be given again")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false)
      ->type_name("PATTERN");
  command
      .add_option("--element-type", flags->element_type, "Number format; by default float64 where the worker offers it")
      ->check(CLI::IsMember({"float32", "float64"}).description(""))
      ->type_name("float32|float64");
  command.add_option("--samples", flags->samples, "Training examples of a window, at most")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  command.add_option("--seed", flags->seed, "Seed of the parameters and directions")->capture_default_str();
  command.add_option("--timeout", flags->timeout_seconds, "Seconds that an answer, or a start of the worker, may take")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  command
      .add_option("--from", flags->from,
                  "Look near the parameters of this safetensors file; by default near the model's initial ones")
      ->type_name("FILE");
  AddOutputOption(command, context);
}

}  // namespace hfopt::cli
