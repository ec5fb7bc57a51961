#include "proto/wire/shared_vector.h"

#include <new>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace hfopt::wire {
namespace {

TEST(BufferPool, GivesOutWhatCameBackOnPageBoundaries) {
  BufferPool pool(10'000 * sizeof(float));
  SharedVector<float> a = pool.GetVector<float>();
  ASSERT_EQ(a.size(), 10'000);
  EXPECT_EQ(a.num_bytes(), 40'000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.bytes()) % 4096, 0u);
  const char* const memory = a.bytes();
  a.map().setOnes();
  SharedVector<float> holder = a;
  a = {};
  EXPECT_NE(pool.GetVector<float>().bytes(), memory) << "while somebody holds it";
  EXPECT_EQ(holder.map().sum(), 10'000);
  holder = {};
  EXPECT_EQ(pool.GetVector<float>().bytes(), memory);
}

TEST(BufferPool, KeepsNoMoreThanItsLimitIdle) {
  BufferPool pool(8192, /*most_idle=*/1);
  SharedVector<double> a = pool.GetVector<double>(), b = pool.GetVector<double>();
  const char* const first_back = a.bytes();
  a = {};
  b = {};  // goes to the system
  SharedVector<double> c = pool.GetVector<double>();
  EXPECT_EQ(c.bytes(), first_back);
}

TEST(BufferPool, MayGoBeforeWhatItGaveOut) {
  SharedVector<float> vector;
  {
    BufferPool pool(400);
    vector = pool.GetVector<float>();
  }
  vector.map().setConstant(3);
  EXPECT_EQ(vector.map().sum(), 300);
}

TEST(BufferPool, HasBlocksForVectorsOfNothing) { EXPECT_EQ(BufferPool(0).GetVector<float>().size(), 0); }

TEST(BufferPool, ThrowsWhereThereIsNoSuchMemory) {
  for (const size_t bytes : {~size_t{0}, ~size_t{3}, ~size_t{0} / 2, ~size_t{0} / 2 - 4096}) {
    EXPECT_THROW(BufferPool(bytes).Get(), std::bad_alloc) << bytes;
  }
}

TEST(BufferPool, ServesManyThreads) {
  BufferPool pool(4096);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 2000; ++i) {
        SharedVector<float> v = pool.GetVector<float>();
        v.map().setConstant(static_cast<float>(t));
        const SharedVector<float> handed_on = std::move(v);
        ASSERT_EQ(handed_on.map().minCoeff(), t);
        ASSERT_EQ(handed_on.map().maxCoeff(), t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace hfopt::wire
