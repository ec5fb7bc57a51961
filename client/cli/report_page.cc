#include "client/cli/report_page.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/cli/format.h"
#include "client/cli/run_page.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

using Json = nlohmann::ordered_json;

Json SummaryRow(const v1::Run& run) {
  const v1::IterationReport& last = run.last_iteration();
  return {IdOf(run),
          DescribeState(run),
          FormatEnum(run.options().optimizer().preset()),
          FormatCount(run.num_parameters()),
          absl::StrCat(last.iteration()),
          run.has_best_held_out_loss() ? absl::StrFormat("%.5g", run.best_held_out_loss()) : "",
          absl::StrFormat("%.1f", last.cost().example_passes()),
          FormatCount(last.cost().exchanges()),
          FormatSeconds(run.seconds().total())};
}

Json PhaseRow(const v1::Run& run) {
  const v1::PhaseSeconds& seconds = run.seconds();
  const auto cell = [&](double phase) {
    return seconds.total() > 0 ? absl::StrFormat("%s (%s)", FormatSeconds(phase), FormatPercent(phase / seconds.total()))
                               : "";
  };
  return {IdOf(run), cell(seconds.client_compute()), cell(seconds.transport()), cell(seconds.reduction()),
          cell(seconds.server_arithmetic()), cell(seconds.waiting()), FormatSeconds(seconds.total())};
}

}  // namespace

std::string ReportPage(const std::vector<RunHistory>& histories) {
  Json runs = {{"title", "Runs"},
               {"columns",
                {"run", "state", "preset", "parameters", "iterations", "best held-out loss", "example-passes",
                 "synchronisations", "time"}},
               {"rows", Json::array()}};
  Json phases = {{"title", "Time by phase"},
                 {"columns", {"run", "client compute", "transport", "reduction", "server arithmetic", "waiting", "total"}},
                 {"rows", Json::array()}};
  Json series = Json::array();
  std::vector<std::string> names;
  for (const RunHistory& history : histories) {
    names.push_back(IdOf(history.run));
    runs["rows"].push_back(SummaryRow(history.run));
    phases["rows"].push_back(PhaseRow(history.run));
    Json iterations = Json::array();
    for (const v1::IterationReport& report : history.iterations) iterations.push_back(Json::parse(ToJson(report)));
    series.push_back({{"name", names.back()}, {"iterations", std::move(iterations)}});
  }
  const Json data = {{"title", absl::StrCat("hfopt: ", absl::StrJoin(names, ", "))},
                     {"tables", {std::move(runs), std::move(phases)}},
                     {"series", std::move(series)}};
  // "<" could end the script element that holds the data, or begin a comment in it; JSON allows it to be escaped.
  return absl::StrReplaceAll(kReportTemplate, {{"/*data*/", absl::StrReplaceAll(data.dump(), {{"<", "\\u003c"}})}});
}

}  // namespace hfopt::cli
