#ifndef HFOPT_PROTO_WIRE_VECTOR_CODEC_H_
#define HFOPT_PROTO_WIRE_VECTOR_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "hfopt/v1/vector.pb.h"
#include "proto/wire/shared_vector.h"

// Eigen vectors to and from the messages of hfopt/v1/vector.proto. Everything here is instantiated for float and
// double, and what receives vectors for Bfloat16 too; does not block, and is thread-compatible: distinct objects may be used from distinct threads.
namespace hfopt::wire {

template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

// The upper half of a float; conversions round to nearest, ties to even.
using Bfloat16 = Eigen::bfloat16;

// Rounds float32 in place to what ELEMENT_TYPE_BFLOAT16 can carry.
inline void RoundToBfloat16(Eigen::Ref<Vector<float>> vector) { vector = vector.cast<Bfloat16>().cast<float>(); }

// Largest data of a chunk we send: of the sizes measured, the one that costs the least CPU for each byte. With its few
// bytes of framing it stays far below gRPC's default limit of 4 MiB for a message.
inline constexpr size_t kMaxChunkBytes = 1 << 20;
// Of uploads and downloads of parameters: one arrives within the server's --transfer-idle also on a link of 2 kB/s.
inline constexpr size_t kSlowLinkChunkBytes = 1 << 17;

// ELEMENT_TYPE_FLOAT32, ELEMENT_TYPE_FLOAT64 or ELEMENT_TYPE_BFLOAT16.
template <typename Scalar>
v1::ElementType ElementTypeOf();

// "float32", "float64", or "element type 7" for a number that this version does not know.
std::string ElementTypeName(v1::ElementType type);

// The 16 bytes that name this content: equal for equal bits, and for different bits, sizes or element types different
// (up to the chance of a collision of 128-bit XXH3, which protects against accidents, not against an adversary).
template <typename Scalar>
std::string ContentName(const Eigen::Ref<const Vector<Scalar>>& vector);

// `name` is empty for the vectors of answers.
v1::VectorHeader MakeHeader(uint64_t transfer, std::string name, uint64_t size, v1::ElementType element_type);

// Fills `chunk` with the bytes of `vector` from byte `offset` on, at most `max_bytes`, and returns how many these
// are: 0 at the end. `offset` is a multiple of the element size. A reused chunk keeps its buffer. To send a vector:
//     for (uint64_t offset = 0; const size_t bytes = FillChunk(vector, offset, transfer, &chunk); offset += bytes) ...
template <typename Scalar>
size_t FillChunk(const Vector<Scalar>& vector, uint64_t offset, uint64_t transfer, v1::VectorChunk* chunk,
                 size_t max_bytes = kMaxChunkBytes);

// INVALID_ARGUMENT when the header announces another element type, or another size than `expected_size`.
template <typename Scalar>
absl::Status CheckHeader(const v1::VectorHeader& header, int64_t expected_size);

// Puts one transfer together. Chunks go straight into their place, in any order.
template <typename Scalar>
class VectorAssembler {
 public:
  using Allocate = absl::FunctionRef<SharedVector<Scalar>(int64_t size)>;

  // The error of CheckHeader, before anything is allocated.
  static absl::StatusOr<VectorAssembler> Create(const v1::VectorHeader& header, int64_t expected_size,
                                                Allocate allocate = NewSharedVector<Scalar>);

  // Where `size` bytes from `offset` on have to go, which count as received from now on. INVALID_ARGUMENT when they are
  // none, belong to another transfer, are not made of whole elements, pass the end, or overlap what is there; nothing
  // is changed then.
  absl::StatusOr<char*> Claim(uint64_t transfer, uint64_t offset, uint64_t size);
  // The same for a chunk, which is copied into its place.
  absl::Status Add(const v1::VectorChunk& chunk);

  bool complete() const { return received_bytes_ == total_bytes(); }
  // OK when complete; otherwise INVALID_ARGUMENT naming the first gap.
  absl::Status CheckComplete() const;

  uint64_t transfer() const { return transfer_; }
  const std::string& name() const { return name_; }
  uint64_t total_bytes() const { return vector_.num_bytes(); }
  uint64_t received_bytes() const { return received_bytes_; }

  // Requires complete().
  SharedVector<Scalar> Take() &&;

 private:
  VectorAssembler(const v1::VectorHeader& header, SharedVector<Scalar> vector);

  uint64_t transfer_;
  std::string name_;
  SharedVector<Scalar> vector_;
  uint64_t received_bytes_ = 0;
  std::map<uint64_t, uint64_t>
      received_;  // begin -> end of the byte ranges that are there; disjoint, neighbours merged
};

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_VECTOR_CODEC_H_
