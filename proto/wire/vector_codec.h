#ifndef HFOPT_PROTO_WIRE_VECTOR_CODEC_H_
#define HFOPT_PROTO_WIRE_VECTOR_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hfopt/v1/vector.pb.h"

// Eigen vectors to and from the messages of hfopt/v1/vector.proto. Everything here is instantiated for float and
// double, does not block, and is thread-compatible: distinct objects may be used from distinct threads.
namespace hfopt::wire {

template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

// Largest data of a chunk we send: of the sizes measured, the one that costs the least CPU for each byte. With its few
// bytes of framing it stays far below gRPC's default limit of 4 MiB for a message.
inline constexpr size_t kMaxChunkBytes = 1 << 20;

// ELEMENT_TYPE_FLOAT32 or ELEMENT_TYPE_FLOAT64.
template <typename Scalar>
v1::ElementType ElementTypeOf();

// "float32", "float64", or "element type 7" for a number that this version does not know.
std::string ElementTypeName(v1::ElementType type);

// The 16 bytes that name this content: equal for equal bits, and for different bits, sizes or element types different
// (up to the chance of a collision of 128-bit XXH3, which protects against accidents, not against an adversary).
template <typename Scalar>
std::string ContentName(const Vector<Scalar>& vector);

// `name` is empty for the vectors of answers.
v1::VectorHeader MakeHeader(uint64_t transfer, std::string name, uint64_t size, v1::ElementType element_type);

// Fills `chunk` with the bytes of `vector` from byte `offset` on, at most kMaxChunkBytes, and returns how many these
// are: 0 at the end. `offset` is a multiple of the element size. A reused chunk keeps its buffer. To send a vector:
//     for (uint64_t offset = 0; const size_t bytes = FillChunk(vector, offset, transfer, &chunk); offset += bytes) ...
template <typename Scalar>
size_t FillChunk(const Vector<Scalar>& vector, uint64_t offset, uint64_t transfer, v1::VectorChunk* chunk);

// Puts one transfer together. Chunks go straight into their place, in any order.
template <typename Scalar>
class VectorAssembler {
 public:
  // INVALID_ARGUMENT when the header announces another element type, or another size than `expected_size`: nothing is
  // allocated before that is known. `recycled` lends its memory; its content is lost.
  static absl::StatusOr<VectorAssembler> Create(const v1::VectorHeader& header, int64_t expected_size,
                                                Vector<Scalar> recycled = {});

  // INVALID_ARGUMENT when the chunk is empty, belongs to another transfer, is not made of whole elements, passes the
  // end, or overlaps what is there; the vector is then unchanged.
  absl::Status Add(const v1::VectorChunk& chunk);

  bool complete() const { return received_bytes_ == total_bytes(); }
  // OK when complete; otherwise INVALID_ARGUMENT naming the first gap.
  absl::Status CheckComplete() const;

  uint64_t transfer() const { return transfer_; }
  const std::string& name() const { return name_; }
  uint64_t total_bytes() const { return vector_.size() * sizeof(Scalar); }
  uint64_t received_bytes() const { return received_bytes_; }

  // Requires complete().
  Vector<Scalar> Take() &&;
  // Gives the memory of an unfinished transfer back for another one.
  Vector<Scalar> Recycle() && { return std::move(vector_); }

 private:
  VectorAssembler(const v1::VectorHeader& header, Vector<Scalar> vector);

  uint64_t transfer_;
  std::string name_;
  Vector<Scalar> vector_;
  uint64_t received_bytes_ = 0;
  std::map<uint64_t, uint64_t>
      received_;  // begin -> end of the byte ranges that are there; disjoint, neighbours merged
};

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_VECTOR_CODEC_H_
