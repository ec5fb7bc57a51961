#ifndef HFOPT_CLIENT_CPP_SHUFFLE_H_
#define HFOPT_CLIENT_CPP_SHUFFLE_H_

#include <cstdint>
#include <vector>

namespace hfopt::client {

// The generator SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"; constants of
// Vigna's public-domain splitmix64.c). Equal seeds give equal numbers on every machine and in every language.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}

  uint64_t Next();
  // An integer in [0, n): the high 64 bits of Next() * n. n > 0; the bias is below n / 2^64.
  uint64_t Below(uint64_t n);

 private:
  uint64_t state_;
};

// The numbers 0 .. n - 1 in the order that fixes a data set's examples for a seed (Fisher-Yates):
//     for i = n - 1 .. 1: swap(order[i], order[generator.Below(i + 1)]).
// proto/testdata/shuffle.json holds test vectors for workers in other languages. n >= 0.
std::vector<int64_t> ShuffledIndices(uint64_t seed, int64_t n);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_SHUFFLE_H_
