#include "client/cpp/shuffle.h"

#include <numeric>
#include <utility>

#include "absl/numeric/int128.h"

namespace hfopt::client {

uint64_t SplitMix64::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

uint64_t SplitMix64::Below(uint64_t n) { return absl::Uint128High64(absl::uint128(Next()) * n); }

std::vector<int64_t> ShuffledIndices(uint64_t seed, int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  SplitMix64 generator(seed);
  for (int64_t i = n - 1; i >= 1; --i) std::swap(order[i], order[generator.Below(i + 1)]);
  return order;
}

}  // namespace hfopt::client
