#ifndef HFOPT_CORE_SAMPLE_H_
#define HFOPT_CORE_SAMPLE_H_

#include <cstdint>
#include <vector>

namespace hfopt {

enum class DataSet {
  kTraining,
  kHeldOut,  // decides whether a step is accepted
};

// The examples of a data set have a fixed order 0..N-1, shuffled once by their owner. Logical shard s of S is the index range
// [ShardBegin(s), ShardBegin(s + 1)). The result of a run depends on S, and on nothing else about who computes.
struct DataLayout {
  int shards = 1;
  int64_t training_examples = 0;
  int64_t held_out_examples = 0;

  int64_t examples(DataSet data) const {
    return data == DataSet::kTraining ? training_examples : held_out_examples;
  }
  // floor(shard * N / shards). 0 <= shard <= shards.
  int64_t ShardBegin(DataSet data, int shard) const;
  int64_t ShardSize(DataSet data, int shard) const { return ShardBegin(data, shard + 1) - ShardBegin(data, shard); }

  friend bool operator==(const DataLayout&, const DataLayout&) = default;
};

// Part of one shard: the positions (begin + j) mod shard size, j = 0 .. count - 1. It wraps round inside the shard.
struct Window {
  int64_t begin = 0;
  int64_t count = 0;

  friend bool operator==(const Window&, const Window&) = default;
};

// Names data; holds none. Equal samples mean equal data for ever.
struct Sample {
  DataSet data = DataSet::kTraining;
  std::vector<Window> windows;  // one for each shard

  int64_t size() const;

  friend bool operator==(const Sample&, const Sample&) = default;
};

// A sample of at least `size` examples (at most one more for each shard; all of the data when size >= N), spread over the shards in
// proportion to their sizes. `cursor` counts the examples drawn before: samples drawn at cursor, cursor + size, ... walk
// through the data in its shuffled order and begin again at its end, so all are seen before any is seen again, but for the one more
// of each shard.
Sample DrawSample(const DataLayout& layout, DataSet data, int64_t size, int64_t cursor);

}  // namespace hfopt

#endif  // HFOPT_CORE_SAMPLE_H_
