#include "client/models/file.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"
#include "tests/client/models/test_files.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TextTable, ReadsColumnsByNameAndSkipsRemarks) {
  const TempFolder folder;
  const auto table = TextTable::Read(folder.Write("t", "# remark\nb\ta\n-2\tx y\r\n\n0.5\t\n"), {"a"});

  ASSERT_THAT(table, IsOk());
  EXPECT_EQ(table->rows(), 2);
  EXPECT_EQ(table->text(0, "a"), "x y");
  EXPECT_EQ(*table->Integer(0, "b"), -2);
  EXPECT_EQ(table->text(1, "a"), "");
  EXPECT_EQ(*table->Real(1, "b"), 0.5);
}

TEST(TextTable, ErrorsNameFileAndLine) {
  const TempFolder folder;
  const auto error = [&](const std::string& text, const std::string& what) {
    const std::string path = folder.Write("t.tsv", text);
    EXPECT_THAT(TextTable::Read(path, {"a", "b"}),
                IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr(path), HasSubstr(what))));
  };
  error("", "empty");
  error("# only a remark\n", "empty");
  error("a\tc\n", "line 1: no column \"b\"");
  error("a\tb\n1\t2\n3\n", "line 3: 1 tab-separated fields, but 2 column names");
  error("a\tb\n1\t2\t3\n", "line 2: 3 tab-separated fields, but 2 column names");
}

TEST(TextTable, RefusesFieldsThatAreNoNumbers) {
  const TempFolder folder;
  const auto table = TextTable::Read(folder.Write("t", "a\nseven\nnan\n1e999\n1.5\n"), {"a"});
  ASSERT_THAT(table, IsOk());

  EXPECT_THAT(table->Integer(0, "a"), IsError(StatusCode::kInvalidArgument, HasSubstr("line 2: a \"seven\"")));
  EXPECT_THAT(table->Integer(3, "a"), IsError(StatusCode::kInvalidArgument, HasSubstr("line 5: a \"1.5\"")));
  for (const int row : {0, 1, 2}) {
    EXPECT_THAT(table->Real(row, "a"), IsError(StatusCode::kInvalidArgument, HasSubstr("is no finite number"))) << row;
  }
}

TEST(ReadFile, SaysWhatIsWrong) {
  const TempFolder folder;
  EXPECT_THAT(ReadFile(folder.path() + "/none"), IsError(StatusCode::kNotFound, HasSubstr("/none")));
  EXPECT_THAT(ReadFile(folder.path()), IsError(StatusCode::kDataLoss, HasSubstr(folder.path())));
}

}  // namespace
}  // namespace hfopt::models
