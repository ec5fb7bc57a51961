#include "server/run/arithmetic_threads.h"

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/barrier.h"
#include "core/vector.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"

namespace hfopt::server {
namespace {

constexpr int kLong = 4 * (1 << 18) + 5;  // five parts

TEST(ArithmeticThreads, AnswerWithTheSameBitsWhateverTheirNumberAndFromSeveralRunsAtOnce) {
  support::Random random(3);
  const Vector<float> a = random.Vector(kLong).cast<float>(), b = random.Vector(kLong).cast<float>();
  const double alone = Dot(a, b);
  const absl::Cleanup as_before = [] { ShareOutArithmetic(1); };
  for (const int threads : {1, 2, 3, 16}) {
    ShareOutArithmetic(threads);
    std::vector<std::thread> runs;
    std::atomic<int> equal = 0;
    for (int run = 0; run < 4; ++run) {
      runs.emplace_back([&] {
        for (int i = 0; i < 5; ++i) equal += Dot(a, b) == alone;
      });
    }
    for (std::thread& run : runs) run.join();
    EXPECT_EQ(equal, 20) << threads;
  }
}

TEST(ArithmeticThreads, ComputeAtOnce) {
  const absl::Cleanup as_before = [] { ShareOutArithmetic(1); };
  ShareOutArithmetic(3);
  absl::Barrier* const meeting = new absl::Barrier(3);  // which a thread that computed alone would never leave
  ForParts(3 * (1 << 18), [&](int64_t, int64_t) {
    if (meeting->Block()) delete meeting;
  });
}

TEST(ArithmeticThreads, ComputeEveryPartOnceAndAreDoneWhenTheCallReturns) {
  const absl::Cleanup as_before = [] { ShareOutArithmetic(1); };
  ShareOutArithmetic(4);
  for (int i = 0; i < 20; ++i) {
    std::vector<char> visits(kLong);
    ForParts(kLong, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) ++visits[k];
    });
    int64_t once = 0;
    for (const char v : visits) once += v == 1;
    ASSERT_EQ(once, kLong);
  }
}

}  // namespace
}  // namespace hfopt::server
