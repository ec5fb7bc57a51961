#include "client/cpp/model.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::client {
namespace {

std::vector<int64_t> Indices(const Examples& examples) {
  std::vector<int64_t> indices;
  for (const IndexRange& r : examples.ranges) {
    for (int64_t i = r.begin; i < r.end; ++i) indices.push_back(i);
  }
  return indices;
}

TEST(Examples, EveryPartOfAWindowThatWrapsHasItsPositions) {
  const Examples window{DataSet::kHeldOut, {{6, 9}, {2, 6}}};
  const std::vector<int64_t> all = {6, 7, 8, 2, 3, 4, 5};
  ASSERT_EQ(Indices(window), all);
  for (int64_t begin = 0; begin <= window.size(); ++begin) {
    for (int64_t end = begin; end <= window.size(); ++end) {
      const Examples part = window.Part(begin, end);
      EXPECT_EQ(Indices(part), std::vector<int64_t>(all.begin() + begin, all.begin() + end)) << begin << " " << end;
      EXPECT_EQ(part.data, DataSet::kHeldOut);
      EXPECT_EQ(part.size(), end - begin);
    }
  }
}

TEST(Examples, PartHasNoEmptyRanges) {
  const Examples window{DataSet::kTraining, {{6, 9}, {2, 6}}};

  EXPECT_EQ(window.Part(0, 3).ranges.size(), 1);
  EXPECT_EQ(window.Part(3, 7).ranges.size(), 1);
  EXPECT_TRUE(window.Part(4, 4).ranges.empty());
}

}  // namespace
}  // namespace hfopt::client
