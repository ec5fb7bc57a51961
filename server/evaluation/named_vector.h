#ifndef HFOPT_SERVER_EVALUATION_NAMED_VECTOR_H_
#define HFOPT_SERVER_EVALUATION_NAMED_VECTOR_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/types/span.h"
#include "hfopt/v1/vector.pb.h"
#include "proto/wire/shared_vector.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::server {

// A vector of a run whose element type is known only at run time: sessions and pools move vectors, they do not compute.
using AnyVector = std::variant<wire::SharedVector<float>, wire::SharedVector<double>>;

inline int64_t Size(const AnyVector& vector) {
  return std::visit([](const auto& v) -> int64_t { return v.size(); }, vector);
}
inline absl::Span<const char> Bytes(const AnyVector& vector) {
  return std::visit([](const auto& v) { return absl::MakeConstSpan(v.bytes(), v.num_bytes()); }, vector);
}
inline v1::ElementType ElementTypeOf(const AnyVector& vector) {
  return vector.index() == 0 ? v1::ELEMENT_TYPE_FLOAT32 : v1::ELEMENT_TYPE_FLOAT64;
}

// What the server sends: named by its content, never changed once made, alive until the last session has sent it.
struct NamedVector {
  std::string name;
  AnyVector vector;
  // The same numbers in half the bytes, for those to whom they go in chunks; where they have been rounded to it.
  std::optional<wire::SharedVector<wire::Bfloat16>> halves = std::nullopt;

  // What goes in chunks.
  v1::ElementType chunk_type() const { return halves.has_value() ? v1::ELEMENT_TYPE_BFLOAT16 : ElementTypeOf(vector); }
  absl::Span<const char> chunk_bytes() const {
    return halves.has_value() ? absl::MakeConstSpan(halves->bytes(), halves->num_bytes()) : Bytes(vector);
  }
};
using NamedVectorPtr = std::shared_ptr<const NamedVector>;

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_NAMED_VECTOR_H_
