#include "client/models/word_error.h"

#include <algorithm>
#include <string>
#include <vector>

#include "client/cpp/shuffle.h"
#include "gtest/gtest.h"

namespace hfopt::models {
namespace {

using Words = std::vector<std::string>;

// The definition, without a table.
int64_t Distance(const Words& a, const Words& b) {
  if (a.empty() || b.empty()) return static_cast<int64_t>(a.size() + b.size());
  const Words a_rest(a.begin() + 1, a.end()), b_rest(b.begin() + 1, b.end());
  return std::min(
      {Distance(a_rest, b_rest) + (a[0] == b[0] ? 0 : 1), Distance(a_rest, b) + 1, Distance(a, b_rest) + 1});
}

TEST(WordErrors, CountsSubstitutionsDeletionsAndInsertions) {
  EXPECT_EQ(WordErrors({}, {}), 0);
  EXPECT_EQ(WordErrors({"A", "B"}, {}), 2);
  EXPECT_EQ(WordErrors({}, {"A", "B", "C"}), 3);
  EXPECT_EQ(WordErrors({"ENTER", "FIVE"}, {"ENTER", "FIVE"}), 0);
  EXPECT_EQ(WordErrors({"ENTER", "FIVE"}, {"ENTER", "NINE"}), 1);
  EXPECT_EQ(WordErrors({"A", "B", "C"}, {"B", "C", "D"}), 2);
}

TEST(WordErrors, IsTheLevenshteinDistance) {
  client::SplitMix64 generator(1);
  const auto words = [&] {
    Words words(generator.Below(6));
    for (std::string& w : words) w = std::string(1, static_cast<char>('A' + generator.Below(3)));
    return words;
  };
  for (int i = 0; i < 200; ++i) {
    const Words a = words(), b = words();
    EXPECT_EQ(WordErrors(a, b), Distance(a, b));
  }
}

}  // namespace
}  // namespace hfopt::models
