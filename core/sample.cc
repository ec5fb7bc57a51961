#include "core/sample.h"

#include <algorithm>

namespace hfopt {
namespace {

// a b / c, rounded down or up, without overflow. a, b >= 0, c > 0, and the result fits.
int64_t MulDiv(int64_t a, int64_t b, int64_t c, bool round_up = false) {
  const auto product = static_cast<unsigned __int128>(a) * static_cast<unsigned __int128>(b);
  return static_cast<int64_t>((product + (round_up ? c - 1 : 0)) / c);
}

}  // namespace

int64_t DataLayout::ShardBegin(DataSet data, int shard) const { return MulDiv(shard, examples(data), shards); }

int64_t Sample::size() const {
  int64_t size = 0;
  for (const Window& window : windows) size += window.count;
  return size;
}

Sample DrawSample(const DataLayout& layout, DataSet data, int64_t size, int64_t cursor) {
  const int64_t n = layout.examples(data);
  Sample sample{.data = data, .windows = std::vector<Window>(layout.shards)};
  if (n == 0) return sample;
  size = std::clamp<int64_t>(size, 0, n);
  for (int s = 0; s < layout.shards; ++s) {
    const int64_t shard_size = layout.ShardSize(data, s);
    sample.windows[s].count = MulDiv(size, shard_size, n, /*round_up=*/true);
    // All of a shard is one sample, whatever the cursor: the same data is the same window.
    if (sample.windows[s].count < shard_size) sample.windows[s].begin = MulDiv(cursor % n, shard_size, n);
  }
  return sample;
}

}  // namespace hfopt
