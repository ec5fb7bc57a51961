#include "client/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/cli/format.h"
#include "client/cli/time_left.h"

namespace hfopt::cli {
namespace {

constexpr char kBold[] = "1", kDim[] = "2", kGreen[] = "32", kYellow[] = "33", kRed[] = "31";

// Rows between two lines of titles.
constexpr int kPage = 25;

// Narrower terminals go without the columns that matter least.
constexpr int kWide = 104;

std::string ShortCgStop(v1::CgStop stop) {
  switch (stop) {
    case v1::CG_STOP_SMALL_PROGRESS:
      return "progress";
    case v1::CG_STOP_MAX_ITERATIONS:
      return "cap";
    case v1::CG_STOP_NON_POSITIVE_CURVATURE:
      return "curvature";
    case v1::CG_STOP_PRECONDITIONER_NOT_POSITIVE:
      return "precond.";
    default:
      return FormatEnum(stop);
  }
}

}  // namespace

std::string FormatMetric(const v1::IterationReport& report) {
  if (report.metrics().empty()) return "-";
  // The first by name: a map of Protocol Buffers has no order. A rate of errors that counts several for each example is no percentage.
  const auto& [name, value] = *std::min_element(report.metrics().begin(), report.metrics().end(),
                                                [](const auto& a, const auto& b) { return a.first < b.first; });
  return absl::EndsWith(name, "errors") && value <= 1 ? FormatPercent(value) : absl::StrFormat("%.4g", value);
}

ProgressStyle ProgressStyle::Of(int file_descriptor) {
  ProgressStyle style;
  style.columns = isatty(file_descriptor) != 0;
  style.colour = style.columns && std::getenv("NO_COLOR") == nullptr;
  if (winsize size{}; ioctl(file_descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) style.width = size.ws_col;
  return style;
}

Progress::Progress(std::ostream& out, ProgressStyle style, const v1::Run& run)
    : out_(out), style_(std::move(style)), options_(run.options()) {}

void Progress::Show(const v1::WatchRunResponse& event) {
  if (event.has_iteration()) ShowIteration(event.iteration());
  if (event.has_run()) ShowState(event.run());
  out_.flush();
}

std::vector<Progress::Cell> Progress::Cells(const v1::IterationReport& report) const {
  const std::optional<double> left = EstimateSecondsLeft(reports_, options_);
  return {{"iter", absl::StrCat(report.iteration()), 4},
          {"held-out", FormatLoss(report.held_out_loss()), 8},
          {style_.error_title, FormatMetric(report), std::max<size_t>(style_.error_title.size(), 7)},
          {"lambda", absl::StrFormat("%.2g", report.damping()), 7},
          {"rho", absl::StrFormat("%.2f", report.reduction_ratio()), 6},
          {"CG", absl::StrCat(report.cg_iterations()), 3},
          {"stopped by", ShortCgStop(report.cg_stop()), 10},
          {"gradient", absl::StrCat(report.gradient_examples()), 8},
          {"curvature", absl::StrCat(report.curvature_examples()), 9, /*only_if_wide=*/true},
          {"h-out n", absl::StrCat(report.held_out_examples()), 8, /*only_if_wide=*/true},
          {"passes", absl::StrFormat("%.1f", report.cost().example_passes()), 6},
          {"time", FormatClock(seconds_), 6},
          {"left", left.has_value() ? FormatClock(*left) : "-", 6}};
}

void Progress::ShowIteration(const v1::IterationReport& report) {
  reports_.push_back(report);
  seconds_ += report.seconds().total();
  if (!style_.columns) {
    const std::optional<double> left = EstimateSecondsLeft(reports_, options_);
    out_ << absl::StrFormat(
        "iteration %d: held-out %s, %s %s, lambda %.3g, rho %.2f, CG %d (%s), samples %d/%d/%d, passes %.2f, %.1f "
        "s%s%s\n",
        report.iteration(), FormatLoss(report.held_out_loss()), style_.error_title, FormatMetric(report),
        report.damping(), report.reduction_ratio(), report.cg_iterations(), FormatEnum(report.cg_stop()),
        report.gradient_examples(), report.curvature_examples(), report.held_out_examples(),
        report.cost().example_passes(), seconds_,
        left.has_value() ? absl::StrCat(", about ", FormatClock(*left), " left") : "",
        report.accepted() ? "" : ", rejected");
    return;
  }
  std::string titles, row;
  for (const Cell& cell : Cells(report)) {
    if (cell.only_if_wide && style_.width < kWide) continue;
    const char* const gap = titles.empty() ? "" : "  ";
    absl::StrAppend(&titles, gap, PadLeft(cell.title, cell.width));
    absl::StrAppend(&row, gap, PadLeft(cell.text, cell.width));
  }
  if (rows_since_titles_++ % kPage == 0) out_ << Styled(kBold, titles) << "\n";
  if (!report.accepted()) absl::StrAppend(&row, "  rejected");
  out_ << (report.accepted() ? row : Styled(kYellow, row)) << "\n";
}

void Progress::ShowState(const v1::Run& run) {
  std::string text = FormatEnum(run.state());
  const char* code = kDim;
  if (run.state() == v1::RUN_STATE_ENDED) {
    code = kGreen;
    absl::StrAppend(&text, ": ", FormatEnum(run.termination().reason()), ": ", run.termination().detail());
  } else if (!run.state_detail().empty()) {
    absl::StrAppend(&text, ": ", run.state_detail());
  }
  if (run.state() == v1::RUN_STATE_FAILED) code = kRed;
  out_ << Styled(code, text) << "\n";
}

std::string Progress::Styled(const char* code, const std::string& text) const {
  return style_.colour ? absl::StrCat("\033[", code, "m", text, "\033[0m") : text;
}

}  // namespace hfopt::cli
