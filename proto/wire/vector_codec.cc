#include "proto/wire/vector_codec.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hfopt::wire {

static_assert(std::endian::native == std::endian::little,
              "vectors travel as they lie in memory, which must be little-endian");

template <>
v1::ElementType ElementTypeOf<float>() {
  return v1::ELEMENT_TYPE_FLOAT32;
}

template <>
v1::ElementType ElementTypeOf<double>() {
  return v1::ELEMENT_TYPE_FLOAT64;
}

template <>
v1::ElementType ElementTypeOf<Bfloat16>() {
  return v1::ELEMENT_TYPE_BFLOAT16;
}

std::string ElementTypeName(v1::ElementType type) {
  switch (type) {
    case v1::ELEMENT_TYPE_FLOAT32:
      return "float32";
    case v1::ELEMENT_TYPE_FLOAT64:
      return "float64";
    case v1::ELEMENT_TYPE_BFLOAT16:
      return "bfloat16";
    default:
      return absl::StrCat("element type ", static_cast<int>(type));
  }
}

template <typename Scalar>
std::string ContentName(const Eigen::Ref<const Vector<Scalar>>& vector) {
  // The hash itself covers the number of bytes; with the element type, that is the size as well.
  const XXH128_hash_t hash =
      XXH3_128bits_withSeed(vector.data(), vector.size() * sizeof(Scalar), ElementTypeOf<Scalar>());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return std::string(reinterpret_cast<const char*>(canonical.digest), sizeof canonical.digest);
}

v1::VectorHeader MakeHeader(uint64_t transfer, std::string name, uint64_t size, v1::ElementType element_type) {
  v1::VectorHeader header;
  header.set_transfer(transfer);
  header.set_name(std::move(name));
  header.set_size(size);
  header.set_element_type(element_type);
  return header;
}

template <typename Scalar>
size_t FillChunk(const Vector<Scalar>& vector, uint64_t offset, uint64_t transfer, v1::VectorChunk* chunk, size_t max_bytes) {
  const uint64_t total = vector.size() * sizeof(Scalar);
  assert(offset % sizeof(Scalar) == 0 && offset <= total);
  const size_t bytes = std::min<uint64_t>(max_bytes, total - offset);
  chunk->set_transfer(transfer);
  chunk->set_offset(offset);
  chunk->mutable_data()->assign(reinterpret_cast<const char*>(vector.data()) + offset, bytes);
  return bytes;
}

template <typename Scalar>
VectorAssembler<Scalar>::VectorAssembler(const v1::VectorHeader& header, SharedVector<Scalar> vector)
    : transfer_(header.transfer()), name_(header.name()), vector_(std::move(vector)) {}

template <typename Scalar>
absl::Status CheckHeader(const v1::VectorHeader& header, int64_t expected_size) {
  if (header.element_type() != ElementTypeOf<Scalar>()) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", header.transfer(), ": vector of ",
                                                   ElementTypeName(header.element_type()), ", but the run uses ",
                                                   ElementTypeName(ElementTypeOf<Scalar>())));
  }
  if (header.size() != static_cast<uint64_t>(expected_size)) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", header.transfer(), ": vector of ", header.size(),
                                                   " elements, but the model has ", expected_size, " parameters"));
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<VectorAssembler<Scalar>> VectorAssembler<Scalar>::Create(const v1::VectorHeader& header,
                                                                        int64_t expected_size, Allocate allocate) {
  if (absl::Status fits = CheckHeader<Scalar>(header, expected_size); !fits.ok()) return fits;
  return VectorAssembler(header, allocate(expected_size));
}

template <typename Scalar>
absl::StatusOr<char*> VectorAssembler<Scalar>::Claim(uint64_t transfer, uint64_t begin, uint64_t size) {
  const uint64_t total = total_bytes();
  const auto refuse = [&](const auto&... why) {
    return absl::InvalidArgumentError(
        absl::StrCat("transfer ", transfer, ": chunk of ", size, " bytes at byte ", begin, " ", why...));
  };
  if (transfer != transfer_) return refuse("was given to the vector of transfer ", transfer_);
  if (size == 0) return refuse("is empty");
  if (begin % sizeof(Scalar) != 0 || size % sizeof(Scalar) != 0) {
    return refuse("is not made of whole elements of ", sizeof(Scalar), " bytes");
  }
  if (begin > total || size > total - begin) return refuse("passes the vector's end at byte ", total);

  const uint64_t end = begin + size;
  const auto after = received_.lower_bound(begin);
  const auto before = after == received_.begin() ? received_.end() : std::prev(after);
  if (after != received_.end() && after->first < end) {
    return refuse("overlaps bytes ", after->first, " to ", after->second, ", which are already there");
  }
  if (before != received_.end() && before->second > begin) {
    return refuse("overlaps bytes ", before->first, " to ", before->second, ", which are already there");
  }

  received_bytes_ += size;
  const auto merged =
      before != received_.end() && before->second == begin ? before : received_.emplace(begin, end).first;
  merged->second = end;
  if (after != received_.end() && after->first == end) {
    merged->second = after->second;
    received_.erase(after);
  }
  return reinterpret_cast<char*>(vector_.map().data()) + begin;
}

template <typename Scalar>
absl::Status VectorAssembler<Scalar>::Add(const v1::VectorChunk& chunk) {
  const absl::StatusOr<char*> place = Claim(chunk.transfer(), chunk.offset(), chunk.data().size());
  if (place.ok()) std::memcpy(*place, chunk.data().data(), chunk.data().size());
  return place.status();
}

template <typename Scalar>
absl::Status VectorAssembler<Scalar>::CheckComplete() const {
  if (complete()) return absl::OkStatus();
  const auto first = received_.begin();
  const uint64_t gap = first != received_.end() && first->first == 0 ? first->second : 0;
  return absl::InvalidArgumentError(absl::StrCat("transfer ", transfer_, ": ", received_bytes_, " of ", total_bytes(),
                                                 " bytes received; the first gap is at byte ", gap));
}

template <typename Scalar>
SharedVector<Scalar> VectorAssembler<Scalar>::Take() && {
  assert(complete());
  return std::move(vector_);
}

template std::string ContentName<float>(const Eigen::Ref<const Vector<float>>&);
template std::string ContentName<double>(const Eigen::Ref<const Vector<double>>&);
template size_t FillChunk<float>(const Vector<float>&, uint64_t, uint64_t, v1::VectorChunk*, size_t);
template size_t FillChunk<double>(const Vector<double>&, uint64_t, uint64_t, v1::VectorChunk*, size_t);
template absl::Status CheckHeader<float>(const v1::VectorHeader&, int64_t);
template absl::Status CheckHeader<double>(const v1::VectorHeader&, int64_t);
template absl::Status CheckHeader<Bfloat16>(const v1::VectorHeader&, int64_t);
template class VectorAssembler<float>;
template class VectorAssembler<double>;
template class VectorAssembler<Bfloat16>;

}  // namespace hfopt::wire
