#ifndef HFOPT_CLIENT_MODELS_IDX_H_
#define HFOPT_CLIENT_MODELS_IDX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hfopt::models {

// The format of the MNIST files: big-endian, here of unsigned bytes only.
struct IdxArray {
  std::vector<int64_t> shape;
  std::vector<uint8_t> values;  // C order; as many as the product of the shape
};

// Reads `path`, gzipped or not, which must have `dimensions` dimensions (3 for images, 1 for labels) and nothing after
// its elements. Errors name the file, what was expected and what was found. A file of more than 4 GiB of elements is
// refused.
absl::StatusOr<IdxArray> ReadIdx(const std::string& path, int dimensions);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_IDX_H_
