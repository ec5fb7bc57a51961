#include "client/cli/format.h"

#include "gtest/gtest.h"
#include "hfopt/v1/run.pb.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

TEST(Format, TableAlignsColumns) {
  Table table({{"RUN"}, {"COUNT", Table::Align::kRight}, {"NOTE"}});
  table.AddRow({"a", "1", "x"});
  table.AddRow({"longer", "12345", ""});
  EXPECT_EQ(table.ToString(),
            "RUN     COUNT  NOTE\n"
            "a           1  x\n"
            "longer  12345\n");
}

TEST(Format, TableWithoutTitlesHasNoLineForThem) {
  Table table({{""}, {""}});
  table.AddRow({"name", "value"});
  EXPECT_EQ(table.ToString(), "name  value\n");
}

TEST(Format, JsonKeepsNamesAndZeros) {
  v1::Cost cost;
  cost.set_products(3);
  const auto json = nlohmann::json::parse(ToJson(cost));
  EXPECT_EQ(json.at("products"), "3");
  EXPECT_EQ(json.at("gradient_examples"), "0");
}

TEST(Format, JsonLineIsOneLine) {
  v1::Run run;
  run.add_workers()->set_worker_id("w");
  EXPECT_EQ(ToJson(run, JsonStyle::kLine).find('\n'), std::string::npos);
  EXPECT_NE(ToJson(run, JsonStyle::kIndented).find('\n'), std::string::npos);
}

TEST(Format, Durations) {
  EXPECT_EQ(FormatSeconds(0.424), "0.42 s");
  EXPECT_EQ(FormatSeconds(12.34), "12.3 s");
  EXPECT_EQ(FormatSeconds(99.99), "1 min 40 s");
  EXPECT_EQ(FormatSeconds(7980), "2 h 13 min");
  EXPECT_EQ(FormatClock(4.6), "0:05");
  EXPECT_EQ(FormatClock(3599.6), "1:00:00");
}

TEST(Format, Numbers) {
  EXPECT_EQ(FormatLoss(1.23456), "1.2346");
  EXPECT_EQ(FormatLoss(123456.7), "1.2346e+05");
  EXPECT_EQ(FormatLoss(0.00031385365), "0.00031385");
  EXPECT_EQ(FormatLoss(2.956341e-06), "2.9563e-06");
  EXPECT_EQ(FormatLoss(0), "0.0000");
  EXPECT_EQ(FormatPercent(0.1234), "12.3 %");
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(226554), "226,554");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(12'800'000), "12.8 MB");
}

TEST(Format, EnumsLoseTheirPrefix) {
  EXPECT_EQ(FormatEnum(v1::RUN_STATE_WAITING_FOR_WORKERS), "waiting for workers");
  EXPECT_EQ(FormatEnum(v1::CG_STOP_SMALL_PROGRESS), "small progress");
  EXPECT_EQ(FormatEnum(v1::Termination::REASON_TARGET_REACHED), "target reached");
  EXPECT_EQ(FormatEnum(static_cast<v1::RunState>(77)), "77") << "of a later version";
}

}  // namespace
}  // namespace hfopt::cli
