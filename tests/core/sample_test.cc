#include "core/sample.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace hfopt {
namespace {

// How often each example of the training data is in the sample.
std::vector<int> Uses(const DataLayout& layout, const Sample& sample) {
  std::vector<int> uses(layout.training_examples);
  for (int s = 0; s < layout.shards; ++s) {
    const int64_t size = layout.ShardSize(DataSet::kTraining, s);
    for (int64_t j = 0; j < sample.windows[s].count; ++j) {
      ++uses[layout.ShardBegin(DataSet::kTraining, s) + (sample.windows[s].begin + j) % size];
    }
  }
  return uses;
}

std::vector<DataLayout> Layouts() {
  std::vector<DataLayout> layouts;
  for (const int shards : {1, 2, 3, 7, 16}) {
    for (const int64_t n : {1, 5, 16, 97, 240}) layouts.push_back({.shards = shards, .training_examples = n});
  }
  return layouts;
}

TEST(DataLayout, ShardsPartitionTheDataEvenly) {
  for (const DataLayout& layout : Layouts()) {
    const int64_t n = layout.training_examples;
    int64_t total = 0;
    for (int s = 0; s < layout.shards; ++s) {
      const int64_t size = layout.ShardSize(DataSet::kTraining, s);
      EXPECT_EQ(layout.ShardBegin(DataSet::kTraining, s), s * n / layout.shards);
      EXPECT_GE(size, n / layout.shards);
      EXPECT_LE(size, n / layout.shards + 1);
      total += size;
    }
    EXPECT_EQ(total, n);
    EXPECT_EQ(layout.ShardBegin(DataSet::kTraining, layout.shards), n);
  }
}

TEST(DataLayout, TellsTrainingFromHeldOutData) {
  const DataLayout layout{.shards = 2, .training_examples = 10, .held_out_examples = 4};
  EXPECT_EQ(layout.ShardSize(DataSet::kTraining, 0), 5);
  EXPECT_EQ(layout.ShardSize(DataSet::kHeldOut, 0), 2);
}

TEST(DataLayout, DoesNotOverflow) {
  const int64_t n = int64_t{1} << 62;
  const DataLayout layout{.shards = 1 << 20, .training_examples = n};
  EXPECT_EQ(layout.ShardBegin(DataSet::kTraining, 1 << 20), n);
  EXPECT_EQ(layout.ShardBegin(DataSet::kTraining, (1 << 20) - 1), n - (n >> 20));
}

TEST(DrawSample, HasTheSizeAskedForOrOneMoreForEachShard) {
  for (const DataLayout& layout : Layouts()) {
    const int64_t n = layout.training_examples;
    for (int64_t size = 0; size <= n + 2; ++size) {
      const Sample sample = DrawSample(layout, DataSet::kTraining, size, 3 * size);
      EXPECT_GE(sample.size(), std::min(size, n));
      EXPECT_LT(sample.size(), size + layout.shards);
      const std::vector<int> uses = Uses(layout, sample);
      EXPECT_EQ(std::accumulate(uses.begin(), uses.end(), int64_t{0}), sample.size());
      EXPECT_TRUE(n == 0 || *std::max_element(uses.begin(), uses.end()) <= 1) << "an example is in a sample once";
    }
  }
}

TEST(DrawSample, TakesFromEachShardInProportion) {
  const DataLayout layout{.shards = 4, .training_examples = 10};  // shards of 2, 3, 2, 3
  const Sample sample = DrawSample(layout, DataSet::kTraining, 5, 0);
  for (int s = 0; s < 4; ++s) {
    EXPECT_EQ(sample.windows[s].count, (layout.ShardSize(DataSet::kTraining, s) + 1) / 2) << s;
  }
}

TEST(DrawSample, SeesEverythingExactlyOnceInOnePassWhereSizesDivide) {
  for (const int shards : {1, 2, 4}) {
    for (const int64_t size : {4, 12, 60}) {
      const DataLayout layout{.shards = shards, .training_examples = 240};
      for (int64_t first = 0; first < 2400; first += 240 + size) {  // a pass may begin anywhere
        std::vector<int> uses(240);
        for (int64_t cursor = first; cursor < first + 240; cursor += size) {
          const std::vector<int> more = Uses(layout, DrawSample(layout, DataSet::kTraining, size, cursor));
          for (int i = 0; i < 240; ++i) uses[i] += more[i];
        }
        EXPECT_EQ(uses, std::vector<int>(240, 1));
      }
    }
  }
}

TEST(DrawSample, LeavesNothingOutInOnePassWhateverTheSizes) {
  for (const DataLayout& layout : Layouts()) {
    const int64_t n = layout.training_examples;
    std::vector<int> uses(n);
    int64_t drawn = 0, cursor = 11;
    // Growing samples, as the optimizer draws them; their windows may overlap by one example for each shard.
    for (int64_t size = 1; drawn < n; drawn += size, cursor += size, size = size + 1 + size / 3) {
      const std::vector<int> more = Uses(layout, DrawSample(layout, DataSet::kTraining, size, cursor));
      for (int64_t i = 0; i < n; ++i) uses[i] += more[i];
    }
    EXPECT_GE(*std::min_element(uses.begin(), uses.end()), 1) << layout.shards << " shards of " << n;
  }
}

TEST(DrawSample, GoesOnWhereTheSampleBeforeEnded) {
  const DataLayout layout{.shards = 2, .training_examples = 20};
  EXPECT_EQ(DrawSample(layout, DataSet::kTraining, 6, 0).windows, (std::vector<Window>{{0, 3}, {0, 3}}));
  EXPECT_EQ(DrawSample(layout, DataSet::kTraining, 6, 6).windows, (std::vector<Window>{{3, 3}, {3, 3}}));
  EXPECT_EQ(DrawSample(layout, DataSet::kTraining, 6, 18).windows, (std::vector<Window>{{9, 3}, {9, 3}})) << "wraps";
  EXPECT_EQ(DrawSample(layout, DataSet::kTraining, 6, 24).windows, (std::vector<Window>{{2, 3}, {2, 3}}));
}

TEST(DrawSample, AllOfTheDataIsOneSampleWhateverTheCursor) {
  for (const DataLayout& layout : Layouts()) {
    const int64_t n = layout.training_examples;
    const Sample all = DrawSample(layout, DataSet::kTraining, n, 0);
    EXPECT_EQ(all.size(), n);
    for (const int64_t cursor : {int64_t{1}, n / 2, n, 5 * n + 3}) {
      EXPECT_EQ(DrawSample(layout, DataSet::kTraining, n, cursor), all);
      EXPECT_EQ(DrawSample(layout, DataSet::kTraining, 1000 * n, cursor), all) << "more than there is";
    }
  }
}

TEST(DrawSample, AtCursorZeroLargerSamplesContainSmallerOnes) {
  for (const DataLayout& layout : Layouts()) {
    for (int64_t size = 1; size < layout.training_examples; ++size) {
      const Sample small = DrawSample(layout, DataSet::kTraining, size, 0);
      const Sample large = DrawSample(layout, DataSet::kTraining, size + 1, 0);
      for (int s = 0; s < layout.shards; ++s) EXPECT_LE(small.windows[s].count, large.windows[s].count);
      // So equal sizes are equal samples: the optimizer tells by the size whether it knows the loss.
      if (small.size() == large.size()) {
        EXPECT_EQ(small, large);
      }
    }
  }
}

TEST(DrawSample, MoreShardsThanExamplesLeavesShardsEmpty) {
  const DataLayout layout{.shards = 7, .training_examples = 3};
  const Sample sample = DrawSample(layout, DataSet::kTraining, 3, 2);
  EXPECT_EQ(sample.windows.size(), 7u);
  EXPECT_EQ(sample.size(), 3);
}

TEST(DrawSample, OfNoDataIsEmpty) {
  const Sample sample = DrawSample({.shards = 3}, DataSet::kHeldOut, 5, 5);
  EXPECT_EQ(sample.windows, std::vector<Window>(3));
  EXPECT_EQ(sample.data, DataSet::kHeldOut);
}

TEST(DrawSample, DoesNotOverflow) {
  const int64_t n = int64_t{1} << 61;
  const DataLayout layout{.shards = 3, .training_examples = n};
  const Sample sample = DrawSample(layout, DataSet::kTraining, n / 2, n - 1);
  EXPECT_GE(sample.size(), n / 2);
  EXPECT_LT(sample.size(), n / 2 + 3);
  for (int s = 0; s < 3; ++s) {
    EXPECT_GE(sample.windows[s].begin, 0);
    EXPECT_LT(sample.windows[s].begin, layout.ShardSize(DataSet::kTraining, s));
  }
}

}  // namespace
}  // namespace hfopt
