#include "client/cli/progress.h"

#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

v1::WatchRunResponse Iteration(int number, bool accepted = true) {
  v1::WatchRunResponse event;
  v1::IterationReport& report = *event.mutable_iteration();
  report.set_iteration(number);
  report.set_accepted(accepted);
  report.set_held_out_loss(1.25);
  (*report.mutable_metrics())["errors"] = 0.382;
  report.set_damping(0.5);
  report.set_reduction_ratio(0.75);
  report.set_cg_iterations(15);
  report.set_cg_stop(v1::CG_STOP_MAX_ITERATIONS);
  report.set_gradient_examples(3000);
  report.set_curvature_examples(1000);
  report.set_held_out_examples(500);
  report.mutable_cost()->set_example_passes(2.5);
  report.mutable_seconds()->set_total(2);
  return event;
}

v1::Run RunWithBudget() {
  v1::Run run;
  run.mutable_options()->set_max_wall_seconds(92);
  return run;
}

TEST(Progress, WithoutTerminalEachIterationIsAPlainLine) {
  std::ostringstream out;
  Progress progress(out, {.columns = false, .error_title = "frame error"}, RunWithBudget());
  progress.Show(Iteration(1));
  EXPECT_EQ(out.str(),
            "iteration 1: held-out 1.2500, frame error 38.2 %, lambda 0.5, rho 0.75, CG 15 (max iterations), samples "
            "3000/1000/500, "
            "passes 2.50, 2.0 s, about 1:30 left\n");
}

TEST(Progress, OfSeveralMetricsTheFirstByNameIsShownAndOnlyARateAsAPercentage) {
  v1::IterationReport report;
  (*report.mutable_metrics())["squared_error"] = 20.6;
  EXPECT_EQ(FormatMetric(report), "20.6");
  (*report.mutable_metrics())["errors"] = 30.508;
  EXPECT_EQ(FormatMetric(report), "30.51");
  (*report.mutable_metrics())["errors"] = 0.382;
  EXPECT_EQ(FormatMetric(report), "38.2 %");
}

TEST(Progress, SaysWhenAStepWasRejected) {
  std::ostringstream out;
  Progress progress(out, {.columns = false}, v1::Run());
  progress.Show(Iteration(1, /*accepted=*/false));
  EXPECT_THAT(out.str(), HasSubstr(", rejected\n"));
}

TEST(Progress, ColumnsStayInLine) {
  std::ostringstream out;
  Progress progress(out, {.columns = true, .width = 120}, RunWithBudget());
  progress.Show(Iteration(1));
  progress.Show(Iteration(100));
  std::istringstream lines(out.str());
  std::string titles, first, second;
  std::getline(lines, titles);
  std::getline(lines, first);
  std::getline(lines, second);
  EXPECT_THAT(titles, AllOf(HasSubstr("held-out"), HasSubstr("curvature"), HasSubstr("left")));
  EXPECT_EQ(titles.find("rho") + 3, first.find("0.75") + 4);
  EXPECT_EQ(first.size(), second.size());
  EXPECT_EQ(out.str().find('\033'), std::string::npos) << "no colours unless asked for";
}

TEST(Progress, NarrowTerminalsGetFewerColumns) {
  std::ostringstream out;
  Progress progress(out, {.columns = true, .width = 100}, RunWithBudget());
  progress.Show(Iteration(1));
  const std::string titles = out.str().substr(0, out.str().find('\n'));
  EXPECT_THAT(titles, Not(HasSubstr("curvature")));
  EXPECT_LE(titles.size(), 100u);
}

TEST(Progress, ShowsStatesWithTheirReason) {
  std::ostringstream out;
  Progress progress(out, {.columns = false}, v1::Run());
  v1::WatchRunResponse event;
  event.mutable_run()->set_state(v1::RUN_STATE_WAITING_FOR_WORKERS);
  event.mutable_run()->set_state_detail("1 of 2 shards served");
  progress.Show(event);
  event.mutable_run()->set_state(v1::RUN_STATE_ENDED);
  event.mutable_run()->mutable_termination()->set_reason(v1::Termination::REASON_TARGET_REACHED);
  event.mutable_run()->mutable_termination()->set_detail("held-out loss 0.9 <= 1");
  progress.Show(event);
  EXPECT_EQ(out.str(), "waiting for workers: 1 of 2 shards served\nended: target reached: held-out loss 0.9 <= 1\n");
}

TEST(Progress, MetricsOtherThanErrorsAreNumbers) {
  v1::IterationReport report;
  EXPECT_EQ(FormatMetric(report), "-");
  (*report.mutable_metrics())["squared_error"] = 12.3456;
  EXPECT_EQ(FormatMetric(report), "12.35");
}

}  // namespace
}  // namespace hfopt::cli
