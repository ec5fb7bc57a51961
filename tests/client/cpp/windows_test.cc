#include "client/cpp/windows.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::client {
namespace {

using ::testing::HasSubstr;

v1::Slice Slice(v1::DataSet data_set, uint32_t shard, uint32_t shards, uint64_t begin, uint64_t count) {
  v1::Slice slice;
  slice.set_data_set(data_set);
  slice.set_shard(shard);
  slice.set_shards(shards);
  slice.set_begin(begin);
  slice.set_count(count);
  return slice;
}

std::vector<int64_t> Indices(const Examples& examples) {
  std::vector<int64_t> indices;
  for (const IndexRange& r : examples.ranges) {
    for (int64_t i = r.begin; i < r.end; ++i) indices.push_back(i);
  }
  return indices;
}

TEST(ExamplesOf, FollowsTheSamplingRuleForEveryWindow) {
  for (const int64_t examples : {1, 7, 10, 23}) {
    for (int64_t shards = 1; shards <= 5; ++shards) {
      for (int64_t shard = 0; shard < shards; ++shard) {
        const int64_t lo = shard * examples / shards, hi = (shard + 1) * examples / shards;
        for (int64_t begin = 0; begin < hi - lo; ++begin) {
          for (int64_t count = 0; count <= hi - lo; ++count) {
            std::vector<int64_t> expected;
            for (int64_t j = 0; j < count; ++j) expected.push_back(lo + (begin + j) % (hi - lo));
            const auto got = ExamplesOf(Slice(v1::DATA_SET_TRAINING, shard, shards, begin, count), examples, 0);
            ASSERT_TRUE(got.ok()) << got.status();
            EXPECT_EQ(Indices(*got), expected);
            EXPECT_LE(got->ranges.size(), 2u);
          }
        }
      }
    }
  }
}

TEST(ExamplesOf, KeepsTheDataSetsApart) {
  const auto training = ExamplesOf(Slice(v1::DATA_SET_TRAINING, 0, 1, 0, 100), 100, 10);
  const auto held_out = ExamplesOf(Slice(v1::DATA_SET_HELD_OUT, 0, 1, 0, 10), 100, 10);
  EXPECT_EQ(training.value().data, DataSet::kTraining);
  EXPECT_EQ(training->size(), 100);
  EXPECT_EQ(held_out.value().data, DataSet::kHeldOut);
  EXPECT_EQ(held_out->size(), 10);
}

TEST(ExamplesOf, DoesNotOverflowOnHugeDataSets) {
  const int64_t examples = int64_t{1} << 62;
  const uint32_t shards = 0xffffffff;
  const auto got = ExamplesOf(Slice(v1::DATA_SET_TRAINING, shards - 1, shards, 0, 1), examples, 0);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->ranges[0].begin, int64_t{4611686017353646079});  // floor((S - 1) 2^62 / S), in Python
}

TEST(ExamplesOf, RefusesWithTheNumbers) {
  const auto refusal = [](const v1::Slice& slice) {
    const auto got = ExamplesOf(slice, 10, 4);
    EXPECT_EQ(got.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(got.status().message());
  };
  EXPECT_EQ(refusal(Slice(v1::DATA_SET_UNSPECIFIED, 0, 1, 0, 1)),
            "slice.data_set: 0 is neither TRAINING (1) nor HELD_OUT (2)");
  EXPECT_EQ(refusal(Slice(v1::DATA_SET_TRAINING, 2, 2, 0, 1)), "slice.shard: 2 is not one of 2 shards");
  EXPECT_EQ(refusal(Slice(v1::DATA_SET_TRAINING, 0, 0, 0, 1)), "slice.shard: 0 is not one of 0 shards");
  EXPECT_EQ(refusal(Slice(v1::DATA_SET_TRAINING, 1, 3, 3, 1)),
            "slice: window of 1 from 3 does not fit into shard 1 of 3, which has 3 of the 10 training examples");
  EXPECT_EQ(refusal(Slice(v1::DATA_SET_HELD_OUT, 0, 1, 0, 5)),
            "slice: window of 5 from 0 does not fit into shard 0 of 1, which has 4 of the 4 held-out examples");
  EXPECT_THAT(refusal(Slice(v1::DATA_SET_TRAINING, 0, 1, ~uint64_t{0}, 2)), HasSubstr("does not fit"));
  EXPECT_THAT(refusal(Slice(v1::DATA_SET_TRAINING, 0, 1, 0, ~uint64_t{0})), HasSubstr("does not fit"));
}

}  // namespace
}  // namespace hfopt::client
