#include "client/cpp/chunk_size.h"

#include <gtest/gtest.h>

namespace hfopt::client {
namespace {

using std::chrono::milliseconds;

// Sends so many bytes over a link, and answers the longest time between the arrivals of two messages.
milliseconds LongestGap(ChunkSize& size, size_t bytes, size_t bytes_per_second) {
  milliseconds longest(0);
  for (size_t sent = 0; sent < bytes;) {
    const size_t chunk = std::min(bytes - sent, size.bytes());
    const milliseconds duration(1000 * chunk / bytes_per_second);
    longest = std::max(longest, duration);
    size.Sent(chunk, duration);
    sent += chunk;
  }
  return longest;
}

TEST(ChunkSize, GrowsToTheCheapestOnAFastLink) {
  ChunkSize size(milliseconds(10'000));
  EXPECT_LE(LongestGap(size, 3 << 20, 100 << 20), milliseconds(11));
  EXPECT_EQ(size.bytes(), ChunkSize::kLargest);
}

TEST(ChunkSize, IsHeardWithinThirdsOfTheLeaseOnASlowLink) {
  // From what carries the smallest chunk in a third of the lease to what carries the largest.
  for (size_t rate = 5'000; rate < 500'000; rate = rate * 5 / 4) {
    ChunkSize size(milliseconds(10'000));
    EXPECT_LE(LongestGap(size, 4 << 20, rate), milliseconds(10'000 / 3)) << rate;
  }
}

TEST(ChunkSize, FollowsALinkThatBecomesSlowAndFastAgain) {
  ChunkSize size(milliseconds(10'000));
  LongestGap(size, 3 << 20, 100 << 20);
  LongestGap(size, 4 << 20, 20'000);
  EXPECT_LE(LongestGap(size, 1 << 20, 20'000), milliseconds(10'000 / 3));
  LongestGap(size, 3 << 20, 100 << 20);
  EXPECT_EQ(size.bytes(), ChunkSize::kLargest);
}

TEST(ChunkSize, DoesNotGrowByTheShortEndsOfVectors) {
  ChunkSize size(milliseconds(10'000));
  for (int i = 0; i < 100; ++i) size.Sent(100, milliseconds(0));
  EXPECT_EQ(size.bytes(), ChunkSize::kSmallest);
}

TEST(ChunkSize, IsNeverBelowTheSmallest) {
  ChunkSize size(milliseconds(3));
  for (int i = 0; i < 100; ++i) size.Sent(size.bytes(), milliseconds(1000));
  EXPECT_EQ(size.bytes(), ChunkSize::kSmallest);
}

}  // namespace
}  // namespace hfopt::client
