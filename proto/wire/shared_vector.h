#ifndef HFOPT_PROTO_WIRE_SHARED_VECTOR_H_
#define HFOPT_PROTO_WIRE_SHARED_VECTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "Eigen/Core"

namespace hfopt::wire {

// n numbers in memory that goes back to where it came from when the last holder lets go. A copy is another holder of the same
// numbers. Who made it may write them until it is handed on; from then on nobody does.
template <typename Scalar>
class SharedVector {
 public:
  using Map = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>>;
  using ConstMap = Eigen::Map<const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>>;

  SharedVector() = default;
  // The first `size` numbers of `memory`, which has room for them.
  SharedVector(std::shared_ptr<void> memory, int64_t size)
      : data_(memory, static_cast<Scalar*>(memory.get())), size_(size) {}

  Map map() { return {data_.get(), size_}; }
  ConstMap map() const { return {data_.get(), size_}; }
  int64_t size() const { return size_; }
  const char* bytes() const { return reinterpret_cast<const char*>(data_.get()); }
  size_t num_bytes() const { return size_ * sizeof(Scalar); }
  const std::shared_ptr<Scalar>& holder() const { return data_; }

 private:
  std::shared_ptr<Scalar> data_;
  int64_t size_ = 0;
};

// Memory for vectors of one size, on page boundaries, given out again when it comes back: pages that are fresh cost more than the
// copy into them. Thread-safe. What is out may come back after the pool has gone.
class BufferPool {
 public:
  // Blocks of `bytes`; at most `most_idle` wait for their next use, the rest goes back to the system.
  explicit BufferPool(size_t bytes, size_t most_idle = 8);

  size_t bytes() const { return bytes_; }

  // The content is undefined. Throws std::bad_alloc.
  std::shared_ptr<void> Get();

  // How many numbers a block has room for, and a vector of so many.
  template <typename Scalar>
  int64_t size() const {
    return static_cast<int64_t>(bytes_ / sizeof(Scalar));
  }
  template <typename Scalar>
  SharedVector<Scalar> GetVector() {
    return {Get(), size<Scalar>()};
  }

 private:
  struct Idle;
  size_t bytes_;
  std::shared_ptr<Idle> idle_;
};

// One vector in memory of its own.
template <typename Scalar>
SharedVector<Scalar> NewSharedVector(int64_t size) {
  return BufferPool(size * sizeof(Scalar), 0).GetVector<Scalar>();
}

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_SHARED_VECTOR_H_
