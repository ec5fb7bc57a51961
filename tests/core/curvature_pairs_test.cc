#include "core/curvature_pairs.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

// The rule as Morales & Nocedal state it, by searching every cycle for k: the reference for a rule that only counts.
std::set<int64_t> KeptAfter(int64_t k, int64_t m) {
  std::set<int64_t> kept;
  for (int64_t i = 0; i <= k; ++i) {
    if (i < m) kept.insert(i);
    for (int64_t c = 1; (int64_t{1} << c) <= i; ++c) {
      for (int64_t l = 1; l <= m / 2; ++l) {
        if (i == (m / 2 + l - 1) << c) {
          kept.erase((2 * l - 1) << (c - 1));
          kept.insert(i);
        }
      }
    }
  }
  return kept;
}

class Spacing : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Memory, Spacing, ::testing::Values(2, 4, 8, 16));

TEST_P(Spacing, FollowsTheRuleOfMoralesAndNocedal) {
  const int m = GetParam();
  EvenlySpacedIterations spacing(m);
  std::set<int64_t> kept;
  for (int64_t k = 0; k < 1000; ++k) {
    const auto decision = spacing.Offer(k);
    if (decision.replaces >= 0) {
      ASSERT_TRUE(decision.keep);
      ASSERT_EQ(kept.erase(decision.replaces), 1u) << "replaces what is there";
    }
    if (decision.keep) kept.insert(k);
    if (k < 130 || k % 37 == 0) {
      ASSERT_THAT(kept, ElementsAreArray(KeptAfter(k, m))) << k;
    }
  }
}

TEST_P(Spacing, KeepsTheMemoryFullAndTheGapsWithinAFactorTwo) {
  const int m = GetParam();
  EvenlySpacedIterations spacing(m);
  std::set<int64_t> kept;
  for (int64_t k = 0; k < 1000; ++k) {
    const auto decision = spacing.Offer(k);
    kept.erase(decision.replaces);
    if (decision.keep) kept.insert(k);
    ASSERT_EQ(static_cast<int64_t>(kept.size()), std::min<int64_t>(k + 1, m));
    ASSERT_EQ(*kept.begin(), 0);
    int64_t least = k + 1, most = 1;
    for (auto it = kept.begin(); std::next(it) != kept.end(); ++it) {
      const int64_t gap = *std::next(it) - *it;
      least = std::min(least, gap);
      most = std::max(most, gap);
    }
    if (kept.size() > 1) {
      ASSERT_LE(most, 2 * least) << k;
    }
    // What follows the newest is at most twice the spacing, too: the kept ones span the solve.
    if (k >= m) {
      ASSERT_LE(k - *kept.rbegin(), 2 * most) << k;
    }
  }
}

TEST(EvenlySpacedPairs, KeepsThePairsOfTheIterationsInOrder) {
  EvenlySpacedPairs<double> spaced(4);
  for (int k = 0; k <= 12; ++k) {
    const bool changed = spaced.Offer(k, Vector<double>::Constant(2, k), Vector<double>::Constant(2, -k));
    EXPECT_EQ(changed, k < 4 || k == 4 || k == 6 || k == 8 || k == 12) << k;
  }
  std::vector<double> iterations;
  for (const auto& pair : spaced.pairs()) {
    iterations.push_back(pair->p[0]);
    EXPECT_EQ(pair->Gp, -pair->p) << "direction and product stay together";
  }
  EXPECT_THAT(iterations, ElementsAre(0, 4, 8, 12));
}

TEST(EvenlySpacedPairs, CopiesWhatItKeeps) {
  EvenlySpacedPairs<float> spaced(2);
  Vector<float> p = Vector<float>::Ones(3), Gp = Vector<float>::Zero(3);
  spaced.Offer(0, p, Gp);
  const PairList<float> before = spaced.pairs();
  p.setZero();
  spaced.Offer(1, p, Gp);
  EXPECT_EQ(spaced.pairs()[0], before[0]) << "a pair that stays is shared, not copied again";
  EXPECT_EQ(spaced.pairs()[0]->p, Vector<float>::Ones(3));
}

}  // namespace
}  // namespace hfopt
