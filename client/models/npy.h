#ifndef HFOPT_CLIENT_MODELS_NPY_H_
#define HFOPT_CLIENT_MODELS_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hfopt::models {

template <typename T>
struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<T> values;  // C order; as many as the product of the shape
};

inline constexpr int64_t kAnyLength = -1;

// Reads the NumPy array file `path`: format 1.0, C order, little-endian elements of exactly type T (uint8_t, uint16_t
// or int32_t), of exactly the expected shape, where kAnyLength allows any length of a dimension. Errors name the file,
// what was expected and what was found. Source of the format: NumPy Enhancement Proposal 1.
template <typename T>
absl::StatusOr<NpyArray<T>> ReadNpy(const std::string& path, absl::Span<const int64_t> expected_shape);

// The same for the bytes of such a file; `name` is for the errors.
template <typename T>
absl::StatusOr<NpyArray<T>> ParseNpy(absl::string_view name, absl::string_view bytes,
                                     absl::Span<const int64_t> expected_shape);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_NPY_H_
