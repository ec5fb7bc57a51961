#include "client/models/npy.h"

#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/models/file.h"
#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie in the file");

template <typename T>
constexpr absl::string_view Descriptor() {
  if constexpr (std::is_same_v<T, uint8_t>) return "|u1";
  if constexpr (std::is_same_v<T, uint16_t>) return "<u2";
  if constexpr (std::is_same_v<T, int32_t>) return "<i4";
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("(",
                      absl::StrJoin(shape, ", ",
                                    [](std::string* out, int64_t n) {
                                      n == kAnyLength ? absl::StrAppend(out, "any") : absl::StrAppend(out, n);
                                    }),
                      ")");
}

// The text between `before` and the next `after`, without blanks round it. False when either is missing.
bool Between(absl::string_view text, absl::string_view before, absl::string_view after, absl::string_view& found) {
  const size_t begin = text.find(before);
  if (begin == absl::string_view::npos) return false;
  text.remove_prefix(begin + before.size());
  const size_t end = text.find(after);
  if (end == absl::string_view::npos) return false;
  found = absl::StripAsciiWhitespace(text.substr(0, end));
  return true;
}

// "226554, 40" or "1797,": the inside of a Python tuple of lengths.
bool ParseShape(absl::string_view text, std::vector<int64_t>& shape) {
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    int64_t length = 0;
    if (!absl::SimpleAtoi(part, &length) || length < 0) return false;
    shape.push_back(length);
  }
  return true;
}

bool Fits(absl::Span<const int64_t> shape, absl::Span<const int64_t> expected) {
  if (shape.size() != expected.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (expected[i] != kAnyLength && shape[i] != expected[i]) return false;
  }
  return true;
}

}  // namespace

template <typename T>
absl::StatusOr<NpyArray<T>> ParseNpy(absl::string_view name, absl::string_view bytes,
                                     absl::Span<const int64_t> expected_shape) {
  const auto error = [&](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", what..., "; expected a NumPy 1.0 file of type ", Descriptor<T>(), " and shape ",
        ShapeText(expected_shape), " in C order; save it anew with numpy.save or copy the data set again"));
  };
  constexpr absl::string_view kMagic("\x93NUMPY\x01\x00", 8);
  constexpr size_t kPrefix = 10;  // magic, version, two bytes of header length
  if (bytes.size() < kPrefix || !absl::StartsWith(bytes, kMagic)) {
    return error("does not start as a NumPy 1.0 file, ", bytes.size(), " bytes");
  }
  const size_t header_size = static_cast<uint8_t>(bytes[8]) + 256 * static_cast<uint8_t>(bytes[9]);
  if (bytes.size() < kPrefix + header_size) {
    return error("ends inside its header, ", bytes.size(), " of ", kPrefix + header_size, " bytes");
  }
  const absl::string_view header = bytes.substr(kPrefix, header_size);
  const absl::string_view data = bytes.substr(kPrefix + header_size);

  absl::string_view descriptor, order, shape_text;
  NpyArray<T> array;
  if (!Between(header, "'descr': '", "'", descriptor) || !Between(header, "'fortran_order':", ",", order) ||
      !Between(header, "'shape': (", ")", shape_text) || !ParseShape(shape_text, array.shape)) {
    return error("header is not a dictionary of descr, fortran_order and shape");
  }
  if (descriptor != Descriptor<T>()) return error("has type ", descriptor);
  if (order != "False") return error("has fortran_order ", order);
  if (!Fits(array.shape, expected_shape)) return error("has shape ", ShapeText(array.shape));

  uint64_t size = sizeof(T);
  for (const int64_t length : array.shape) {
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(length), &size)) {
      return error("has the impossible shape ", ShapeText(array.shape));
    }
  }
  if (data.size() != size) {
    return error("has ", data.size(), " bytes of elements, but shape ", ShapeText(array.shape), " needs ", size);
  }
  array.values.resize(size / sizeof(T));
  if (size > 0) std::memcpy(array.values.data(), data.data(), size);
  return array;
}

template <typename T>
absl::StatusOr<NpyArray<T>> ReadNpy(const std::string& path, absl::Span<const int64_t> expected_shape) {
  HFOPT_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  return ParseNpy<T>(path, bytes, expected_shape);
}

template absl::StatusOr<NpyArray<uint8_t>> ReadNpy(const std::string&, absl::Span<const int64_t>);
template absl::StatusOr<NpyArray<uint16_t>> ReadNpy(const std::string&, absl::Span<const int64_t>);
template absl::StatusOr<NpyArray<int32_t>> ReadNpy(const std::string&, absl::Span<const int64_t>);
template absl::StatusOr<NpyArray<uint8_t>> ParseNpy(absl::string_view, absl::string_view, absl::Span<const int64_t>);
template absl::StatusOr<NpyArray<uint16_t>> ParseNpy(absl::string_view, absl::string_view, absl::Span<const int64_t>);
template absl::StatusOr<NpyArray<int32_t>> ParseNpy(absl::string_view, absl::string_view, absl::Span<const int64_t>);

}  // namespace hfopt::models
