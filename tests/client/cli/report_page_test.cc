#include "client/cli/report_page.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

RunHistory History(const std::string& id, int iterations) {
  RunHistory history;
  history.run.set_name("runs/" + id);
  history.run.set_state(v1::RUN_STATE_FAILED);
  for (int i = 1; i <= iterations; ++i) {
    v1::IterationReport report;
    report.set_iteration(i);
    report.set_held_out_loss(1.0 / i);
    report.mutable_cost()->set_exchanges(20 * i);
    history.iterations.push_back(report);
  }
  if (iterations > 0) *history.run.mutable_last_iteration() = history.iterations.back();
  return history;
}

// The JSON document in the page.
json DataOf(const std::string& page) {
  const std::string begin = R"(<script type="application/json" id="data">)";
  const size_t from = page.find(begin) + begin.size();
  return json::parse(page.substr(from, page.find("</script>", from) - from));
}

TEST(ReportPage, HoldsEveryIterationOfEveryRun) {
  const json data = DataOf(ReportPage({History("a", 3), History("b", 0)}));
  EXPECT_EQ(data.at("title"), "hfopt: a, b");
  ASSERT_EQ(data.at("series").size(), 2u);
  EXPECT_EQ(data.at("series")[0].at("name"), "a");
  ASSERT_EQ(data.at("series")[0].at("iterations").size(), 3u);
  EXPECT_EQ(data.at("series")[0].at("iterations")[1].at("held_out_loss"), 0.5);
  EXPECT_EQ(data.at("series")[0].at("iterations")[2].at("cost").at("exchanges"), "60");
  EXPECT_EQ(data.at("series")[1].at("iterations").size(), 0u);
  for (const json& table : data.at("tables")) {
    for (const json& row : table.at("rows")) EXPECT_EQ(row.size(), table.at("columns").size()) << table.at("title");
  }
}

TEST(ReportPage, StandsAlone) {
  const std::string page = ReportPage({History("a", 1)});
  for (const char* mark : {"/*data*/", "/*uPlot.min.css*/", "/*uPlot.iife.min.js*/"}) {
    EXPECT_THAT(page, Not(HasSubstr(mark)));
  }
  EXPECT_THAT(page, HasSubstr("var uPlot="));
  EXPECT_THAT(page, Not(HasSubstr("src=")));
}

TEST(ReportPage, TextCannotLeaveItsElement) {
  RunHistory history = History("a", 1);
  history.run.set_state_detail("</script><script>alert(1)</script>");
  const std::string page = ReportPage({history});
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(DataOf(page).dump(), HasSubstr("alert(1)</script>"));
}

}  // namespace
}  // namespace hfopt::cli
