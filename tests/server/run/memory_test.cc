#include "server/run/memory.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::server {
namespace {

using ::testing::HasSubstr;

TEST(Memory, CountsFivePairsOfVectorsForEachUnitOfLbfgsMemory) {
  OptimizerOptions options;
  const int64_t without = VectorsHeld(options, 1);
  options.preconditioner.lbfgs = LbfgsMode::kFrozen;
  options.preconditioner.memory = 16;
  EXPECT_EQ(VectorsHeld(options, 1), without + 5 * 16);
  EXPECT_EQ(VectorsHeld(options, 4), VectorsHeld(options, 1) + 3);
}

TEST(Memory, CountsKeptIteratesOfTheCgGrid) {
  OptimizerOptions options;
  options.conjugate_gradient.max_iterations = 1;
  const int64_t one = VectorsHeld(options, 1);
  options.conjugate_gradient.max_iterations = 10;  // 1, 2, 3, 4, 5, 7, 9
  EXPECT_EQ(VectorsHeld(options, 1), one + 6);
}

TEST(Memory, CountsHalvesOfTheDirectionAndOfEachAnswer) {
  const OptimizerOptions options;
  EXPECT_EQ(VectorsHeld(options, 1, true), VectorsHeld(options, 1) + 2);
  EXPECT_EQ(VectorsHeld(options, 4, true), VectorsHeld(options, 4) + 3);
}

TEST(Memory, RefusesWithBothNumbersAndARemedy) {
  const OptimizerOptions options;
  const int64_t needed = BytesNeeded(options, 2, 1'000'000, 4);
  EXPECT_TRUE(CheckMemory(options, 2, 1'000'000, 4, needed).ok());
  const absl::Status refused = CheckMemory(options, 2, 1'000'000, 4, needed - 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--memory-limit"));
  EXPECT_FALSE(CheckMemory(options, 2, int64_t{1} << 60, 8, INT64_MAX).ok()) << "must not overflow";
}

}  // namespace
}  // namespace hfopt::server
