#include "client/cpp/windows.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/cpp/sub_batches.h"

namespace hfopt::client {

absl::StatusOr<Examples> ExamplesOf(const v1::Slice& slice, int64_t training_examples, int64_t held_out_examples) {
  if (slice.data_set() != v1::DATA_SET_TRAINING && slice.data_set() != v1::DATA_SET_HELD_OUT) {
    return absl::InvalidArgumentError(absl::StrCat("slice.data_set: ", static_cast<int>(slice.data_set()),
                                                   " is neither TRAINING (1) nor HELD_OUT (2)"));
  }
  const bool training = slice.data_set() == v1::DATA_SET_TRAINING;
  if (slice.shard() >= slice.shards()) {
    return absl::InvalidArgumentError(
        absl::StrCat("slice.shard: ", slice.shard(), " is not one of ", slice.shards(), " shards"));
  }
  const int64_t examples = training ? training_examples : held_out_examples;
  const int64_t lo = PartBegin(examples, slice.shard(), slice.shards());
  const int64_t hi = PartBegin(examples, int64_t{slice.shard()} + 1, slice.shards());
  const uint64_t size = hi - lo;
  if (slice.count() == 0) return Examples{.data = training ? DataSet::kTraining : DataSet::kHeldOut};
  if (slice.begin() >= size || slice.count() > size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slice: window of ", slice.count(), " from ", slice.begin(), " does not fit into shard ", slice.shard(), " of ",
        slice.shards(), ", which has ", size, " of the ", examples, training ? " training" : " held-out", " examples"));
  }
  const int64_t begin = lo + slice.begin();
  const int64_t count = slice.count();
  const int64_t before_end = std::min(count, hi - begin);
  Examples result{.data = training ? DataSet::kTraining : DataSet::kHeldOut, .ranges = {{begin, begin + before_end}}};
  if (before_end < count) result.ranges.push_back({lo, lo + count - before_end});
  return result;
}

}  // namespace hfopt::client
