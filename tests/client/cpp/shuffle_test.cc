#include "client/cpp/shuffle.h"

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace hfopt::client {
namespace {

nlohmann::json TestVectors() {
  std::ifstream file(HFOPT_SOURCE_FOLDER "/proto/testdata/shuffle.json");
  return nlohmann::json::parse(file);
}

uint64_t Number(const nlohmann::json& text) { return std::stoull(text.get<std::string>()); }

TEST(SplitMix64, GivesThePublishedNumbers) {
  const nlohmann::json vectors = TestVectors();
  for (const nlohmann::json& vector : vectors["generator"]) {
    SplitMix64 generator(Number(vector["seed"]));
    for (const nlohmann::json& number : vector["next"]) EXPECT_EQ(generator.Next(), Number(number)) << vector;
  }
}

TEST(SplitMix64, BelowIsTheHighHalfOfTheProduct) {
  for (const uint64_t n : {uint64_t{1}, uint64_t{10}, uint64_t{1} << 63, ~uint64_t{0}}) {
    SplitMix64 numbers(7), generator(7);
    for (int i = 0; i < 100; ++i) {
      const uint64_t expected = static_cast<uint64_t>((static_cast<unsigned __int128>(numbers.Next()) * n) >> 64);
      const uint64_t number = generator.Below(n);
      EXPECT_EQ(number, expected);
      EXPECT_LT(number, n);
    }
  }
}

TEST(ShuffledIndices, HaveThePublishedOrder) {
  const nlohmann::json vectors = TestVectors();
  for (const nlohmann::json& vector : vectors["shuffle"]) {
    EXPECT_EQ(ShuffledIndices(Number(vector["seed"]), vector["n"].get<int64_t>()),
              vector["order"].get<std::vector<int64_t>>())
        << vector;
  }
}

TEST(ShuffledIndices, PutEveryIndexAnywhere) {
  constexpr int kSeeds = 20000, kSize = 4;
  int count[kSize][kSize] = {};  // by position and index
  for (int seed = 0; seed < kSeeds; ++seed) {
    const std::vector<int64_t> order = ShuffledIndices(seed, kSize);
    for (int position = 0; position < kSize; ++position) ++count[position][order[position]];
  }

  // Binomial with p = 1/4: standard deviation 61 of 5000.
  for (const auto& row : count) {
    for (const int c : row) EXPECT_NEAR(c, kSeeds / kSize, 300);
  }
}

}  // namespace
}  // namespace hfopt::client
