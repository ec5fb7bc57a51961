// hfopt doctor ADDRESS: how far one gets towards a server, and what to do about it.

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/diagnosis.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

const char* NameOf(DiagnosisStep::Result result) {
  switch (result) {
    case DiagnosisStep::Result::kPassed:
      return "ok";
    case DiagnosisStep::Result::kSkipped:
      return "skipped";
    case DiagnosisStep::Result::kFailed:
      break;
  }
  return "FAILED";
}

absl::Status Doctor(const Context& context, double timeout) {
  const std::vector<DiagnosisStep> steps = Diagnose(context.connection, absl::Seconds(timeout));
  if (context.output == OutputFormat::kJson) {
    nlohmann::json lines = nlohmann::json::array();
    for (const DiagnosisStep& step : steps) {
      lines.push_back({{"step", step.name}, {"result", NameOf(step.result)}, {"finding", step.finding}, {"remedy", step.remedy}});
    }
    std::cout << lines.dump(1) << "\n";
  } else {
    for (const DiagnosisStep& step : steps) std::cout << absl::StreamFormat("%-12s %-8s %s\n", step.name, NameOf(step.result), step.finding);
  }
  if (steps.back().result != DiagnosisStep::Result::kFailed) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("what to do: ", steps.back().remedy));
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  const auto timeout = std::make_shared<double>(5);
  CLI::App& command = AddCommand(app, context, "doctor",
                                 "Try the way to a server step by step: name, connection, TLS, who you are to it, its version, its health; and "
                                 "say what to do where it ends",
                                 [&context, timeout] { return Doctor(context, *timeout); });
  command.add_option("ADDRESS", context.connection.server, "The server, HOST:PORT or unix:PATH")->envname("HFOPT_SERVER")->capture_default_str();
  command.add_option("--timeout", *timeout, "Seconds that each step may take")->check(CLI::Range(0.01, 3600.))->capture_default_str();
  AddSecurityFlags(command, context.connection);
  AddOutputOption(command, context);
}

}  // namespace hfopt::cli
