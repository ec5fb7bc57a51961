#include "client/models/idx.h"

#include <zlib.h>

#include <algorithm>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace hfopt::models {
namespace {

constexpr uint64_t kMaxElements = uint64_t{1} << 32;
constexpr uint8_t kUnsignedByte = 0x08;

struct CloseGz {
  void operator()(gzFile file) const { gzclose(file); }
};
using GzFile = std::unique_ptr<std::remove_pointer_t<gzFile>, CloseGz>;

// Appends up to `size` unpacked bytes. Memory grows with what is there, not with what a header claims. False on a
// damaged file.
bool Read(gzFile file, uint64_t size, std::vector<uint8_t>& bytes) {
  constexpr uint64_t kStep = uint64_t{1} << 22;
  while (size > 0) {
    const size_t old_size = bytes.size();
    const unsigned step = static_cast<unsigned>(std::min(size, kStep));
    bytes.resize(old_size + step);
    const int read = gzread(file, bytes.data() + old_size, step);
    bytes.resize(old_size + std::max(read, 0));
    int error = Z_OK;
    gzerror(file, &error);
    if (read < 0 || error == Z_BUF_ERROR) return false;  // the latter: the packed data are cut off
    if (read == 0) return true;
    size -= read;
  }
  return true;
}

}  // namespace

absl::StatusOr<IdxArray> ReadIdx(const std::string& path, int dimensions) {
  const auto error = [&](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what...,
                                                   "; expected an IDX file (gzipped or not) of bytes with ", dimensions,
                                                   " dimensions; copy the data set again"));
  };
  const GzFile file(gzopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be opened; is the data folder complete and the path right?"));
  }
  std::vector<uint8_t> header;
  const size_t header_size = 4 + 4 * static_cast<size_t>(dimensions);
  if (!Read(file.get(), header_size, header)) return error("cannot be unpacked");
  if (header.size() < 4 || header[0] != 0 || header[1] != 0) return error("does not start as an IDX file");
  if (header[2] != kUnsignedByte)
    return error("has element type ", static_cast<int>(header[2]), ", not 8 (unsigned byte)");
  if (header[3] != dimensions) return error("has ", static_cast<int>(header[3]), " dimensions");
  if (header.size() < header_size)
    return error("ends inside its header, ", header.size(), " of ", header_size, " bytes");

  IdxArray array;
  uint64_t size = 1;
  for (int d = 0; d < dimensions; ++d) {
    const uint8_t* b = &header[4 + 4 * d];
    const uint64_t length = uint64_t{b[0]} << 24 | uint64_t{b[1]} << 16 | uint64_t{b[2]} << 8 | uint64_t{b[3]};
    array.shape.push_back(static_cast<int64_t>(length));
    size *= length;  // no overflow: both are at most 2^32, and length is less
    if (size > kMaxElements) return error("claims more than ", kMaxElements, " elements");
  }
  if (!Read(file.get(), size + 1, array.values)) {
    return error("is damaged after ", array.values.size(), " of ", size, " elements");
  }
  if (array.values.size() > size) return error("goes on after its ", size, " elements");
  if (array.values.size() < size) return error("ends after ", array.values.size(), " of ", size, " elements");
  return array;
}

}  // namespace hfopt::models
