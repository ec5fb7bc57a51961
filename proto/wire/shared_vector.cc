#include "proto/wire/shared_vector.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace hfopt::wire {
namespace {

constexpr size_t kPage = 4096;

struct Free {
  void operator()(void* block) const { std::free(block); }
};
using Block = std::unique_ptr<void, Free>;

}  // namespace

struct BufferPool::Idle {
  explicit Idle(size_t most) : most(most) {}

  const size_t most;
  std::mutex mu;
  std::vector<Block> blocks;
};

BufferPool::BufferPool(size_t bytes, size_t most_idle)
    : bytes_(bytes), idle_(std::make_shared<Idle>(most_idle)) {}

std::shared_ptr<void> BufferPool::Get() {
  Block block;
  {
    const std::lock_guard<std::mutex> lock(idle_->mu);
    if (!idle_->blocks.empty()) {
      block = std::move(idle_->blocks.back());
      idle_->blocks.pop_back();
    }
  }
  if (block == nullptr) {
    if (bytes_ > PTRDIFF_MAX - kPage) throw std::bad_alloc();  // would be rounded to nothing
    block.reset(std::aligned_alloc(kPage, std::max(kPage, (bytes_ + kPage - 1) / kPage * kPage)));
    if (block == nullptr) throw std::bad_alloc();
  }
  return {block.release(), [idle = idle_](void* returned) {
            Block back(returned);
            const std::lock_guard<std::mutex> lock(idle->mu);
            if (idle->blocks.size() < idle->most) idle->blocks.push_back(std::move(back));
          }};
}

}  // namespace hfopt::wire
