#include "proto/wire/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::wire {
namespace {

using Json = nlohmann::json;

constexpr char kMetadata[] = "__metadata__";
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr uint64_t kLengthBytes = 8;

uint64_t ElementBytes(v1::ElementType type) { return type == v1::ELEMENT_TYPE_FLOAT64 ? 8 : 4; }

const char* DtypeName(v1::ElementType type) { return type == v1::ELEMENT_TYPE_FLOAT64 ? "F64" : "F32"; }

// False when an extent is no Eigen::Index or the product overflows.
bool TensorBytes(v1::ElementType type, const std::vector<uint64_t>& shape, uint64_t* bytes) {
  *bytes = ElementBytes(type);
  return std::all_of(shape.begin(), shape.end(), [&](uint64_t extent) {
    return extent <= INT64_MAX && !__builtin_mul_overflow(*bytes, extent, bytes);
  });
}

template <typename Matrix>
absl::Span<const char> BytesOf(const Matrix& m) {
  return {reinterpret_cast<const char*>(m.data()), m.size() * sizeof(typename Matrix::Scalar)};
}

absl::StatusOr<std::string> MakeFileHeader(absl::Span<const TensorView* const> tensors,
                                           const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t offset = 0;
  for (const TensorView* t : tensors) {
    uint64_t bytes = 0;
    if (!TensorBytes(t->element_type, t->shape, &bytes) || bytes != t->bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", t->name, "': ", t->bytes.size(), " bytes do not fill ",
                                                     DtypeName(t->element_type), " [", absl::StrJoin(t->shape, ", "),
                                                     "]"));
    }
    if (t->name == kMetadata || header.contains(t->name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", t->name, "': the name is taken; names must differ"));
    }
    header[t->name] = {
        {"dtype", DtypeName(t->element_type)}, {"shape", t->shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("a name or metadata text is not UTF-8: ", error.what()));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the numbers are aligned for who maps the file
  return text;
}

absl::Status WriteAll(int descriptor, const char* bytes, size_t size) {
  while (size > 0) {
    const ssize_t written = write(descriptor, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, "cannot write");
    bytes += written;
    size -= written;
  }
  return absl::OkStatus();
}

absl::Status WriteAndSync(int descriptor, const std::string& header, absl::Span<const TensorView* const> tensors) {
  const uint64_t length = header.size();
  absl::Status status = WriteAll(descriptor, reinterpret_cast<const char*>(&length), kLengthBytes);
  status.Update(WriteAll(descriptor, header.data(), header.size()));
  for (const TensorView* t : tensors) {
    if (!status.ok()) return status;
    HFOPT_FAILPOINT_OR_RETURN("file.write");
    status = WriteAll(descriptor, t->bytes.data(), t->bytes.size());
  }
  if (!status.ok()) return status;
  HFOPT_FAILPOINT_OR_RETURN("file.sync");
  return fsync(descriptor) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "cannot sync");
}

// The header's text as JSON; discarded when it is not JSON or an object in it has the same key twice, of which JSON
// libraries silently keep one.
Json ParseHeader(const std::string& text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  bool duplicate = false;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) duplicate |= !keys.back().insert(value.get<std::string>()).second;
    return true;
  };
  Json header = Json::parse(text, watch, /*allow_exceptions=*/false);
  return duplicate ? Json(Json::value_t::discarded) : header;
}

bool IsListOfSizes(const Json& value) {
  return value.is_array() &&
         std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_number_unsigned(); });
}

// One entry of the header. `data` is the part of the file that follows the header.
absl::StatusOr<SafetensorsFile::Tensor> ParseTensor(const std::string& name, const Json& entry, uint64_t data_begin,
                                                    uint64_t data_size) {
  const auto refuse = [&](const auto&... why) {
    return absl::DataLossError(absl::StrCat("tensor '", name, "' ", why...));
  };
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets")) {
    return refuse("does not have exactly dtype, shape and data_offsets");
  }
  const Json& dtype = entry["dtype"];
  if (dtype != "F32" && dtype != "F64") return refuse("is neither F32 nor F64");
  if (!IsListOfSizes(entry["shape"])) return refuse("has a shape that is no list of sizes");
  if (!IsListOfSizes(entry["data_offsets"]) || entry["data_offsets"].size() != 2) {
    return refuse("has data_offsets that are no pair of positions");
  }
  SafetensorsFile::Tensor tensor;
  tensor.element_type = dtype == "F64" ? v1::ELEMENT_TYPE_FLOAT64 : v1::ELEMENT_TYPE_FLOAT32;
  tensor.shape = entry["shape"].get<std::vector<uint64_t>>();
  const uint64_t begin = entry["data_offsets"][0].get<uint64_t>(), end = entry["data_offsets"][1].get<uint64_t>();
  if (begin > end || end > data_size) return refuse("lies at bytes ", begin, " to ", end, " of ", data_size);
  uint64_t bytes = 0;
  if (!TensorBytes(tensor.element_type, tensor.shape, &bytes) || bytes != end - begin) {
    return refuse("has ", end - begin, " bytes, which do not fill ", DtypeName(tensor.element_type), " [",
                  absl::StrJoin(tensor.shape, ", "), "]");
  }
  tensor.begin = data_begin + begin;
  tensor.end = data_begin + end;
  return tensor;
}

}  // namespace

template <typename Scalar>
TensorView View(std::string name, const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>& vector) {
  return {std::move(name), ElementTypeOf<Scalar>(), {static_cast<uint64_t>(vector.size())}, BytesOf(vector)};
}

template <typename Scalar>
TensorView View(std::string name, const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>& matrix) {
  return {std::move(name),
          ElementTypeOf<Scalar>(),
          {static_cast<uint64_t>(matrix.cols()), static_cast<uint64_t>(matrix.rows())},
          BytesOf(matrix)};
}

absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata) {
  // Wide elements first: every tensor is then aligned to its element.
  std::vector<const TensorView*> order;
  for (const TensorView& t : tensors) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return ElementBytes(a->element_type) > ElementBytes(b->element_type);
  });
  const absl::StatusOr<std::string> header = MakeFileHeader(order, metadata);
  if (!header.ok()) return absl::Status(header.status().code(), absl::StrCat(path, ": ", header.status().message()));

  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot create"));
  absl::Status status = WriteAndSync(descriptor, *header, order);
  if (close(descriptor) != 0) status.Update(absl::ErrnoToStatus(errno, "cannot close"));
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  return absl::OkStatus();
}

SafetensorsFile::SafetensorsFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept { *this = std::move(other); }

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(metadata_, other.metadata_);
  std::swap(tensors_, other.tensors_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::StatusOr<SafetensorsFile> ReadSafetensors(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  SafetensorsFile file(path, descriptor);
  if (const absl::Status status = file.ReadHeader(); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  return file;
}

absl::Status SafetensorsFile::ReadHeader() {
  struct stat info;
  if (fstat(descriptor_, &info) != 0) return absl::ErrnoToStatus(errno, "cannot stat");
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError("is not a regular file");
  const uint64_t file_size = info.st_size;

  if (file_size < kLengthBytes)
    return absl::DataLossError(absl::StrCat("has ", file_size, " bytes, too few for a header"));
  uint64_t length = 0;
  if (auto s = ReadBytes(0, kLengthBytes, reinterpret_cast<char*>(&length)); !s.ok()) return s;
  if (length > kMaxHeaderBytes || length > file_size - kLengthBytes) {
    return absl::DataLossError(absl::StrCat("announces a header of ", length, " bytes; the file has ", file_size,
                                            " and the limit is ", kMaxHeaderBytes));
  }
  std::string text(length, '\0');
  if (auto s = ReadBytes(kLengthBytes, length, text.data()); !s.ok()) return s;
  const Json header = ParseHeader(text);
  if (!header.is_object()) return absl::DataLossError("the header is no JSON object with distinct keys");

  const uint64_t data_begin = kLengthBytes + length;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) {
      const bool is_text = entry.is_object() &&
                           std::all_of(entry.begin(), entry.end(), [](const Json& value) { return value.is_string(); });
      if (!is_text) return absl::DataLossError("the metadata are not text only");
      metadata_ = entry.get<std::map<std::string, std::string>>();
      continue;
    }
    absl::StatusOr<Tensor> tensor = ParseTensor(name, entry, data_begin, file_size - data_begin);
    if (!tensor.ok()) return tensor.status();
    tensors_.emplace(name, *std::move(tensor));
  }

  // In the order of their places the tensors have to follow each other without overlap or hole.
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (const auto& [name, tensor] : tensors_) places.emplace_back(tensor.begin, tensor.end);
  std::sort(places.begin(), places.end());
  uint64_t covered = data_begin;
  for (const auto& [begin, end] : places) {
    if (begin != covered) {
      return absl::DataLossError(absl::StrCat("tensors overlap or leave a hole: one begins at byte ",
                                              begin - data_begin, " of the data, and the one before ends at ",
                                              covered - data_begin));
    }
    covered = end;
  }
  if (covered != file_size) {
    return absl::DataLossError(absl::StrCat("the tensors end at byte ", covered, ", but the file has ", file_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<const SafetensorsFile::Tensor*> SafetensorsFile::Find(const std::string& name,
                                                                     v1::ElementType element_type,
                                                                     size_t dimensions) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return absl::NotFoundError(absl::StrCat(path_, ": has no tensor '", name, "'"));
  const Tensor& tensor = found->second;
  if (tensor.element_type != element_type || tensor.shape.size() != dimensions) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": tensor '", name, "' is ", DtypeName(tensor.element_type), " of ", tensor.shape.size(),
                     " dimensions; wanted ", DtypeName(element_type), " of ", dimensions));
  }
  return &tensor;
}

absl::Status SafetensorsFile::ReadBytes(uint64_t begin, uint64_t size, char* bytes) const {
  while (size > 0) {
    const ssize_t got = pread(descriptor_, bytes, size, begin);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, "cannot read");
    if (got == 0) return absl::DataLossError(absl::StrCat("became shorter: it ends at byte ", begin));
    bytes += got;
    begin += got;
    size -= got;
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> SafetensorsFile::Vector(const std::string& name) const {
  const absl::StatusOr<const Tensor*> tensor = Find(name, ElementTypeOf<Scalar>(), 1);
  if (!tensor.ok()) return tensor.status();
  wire::Vector<Scalar> vector((*tensor)->shape[0]);
  const absl::Status status =
      ReadBytes((*tensor)->begin, (*tensor)->end - (*tensor)->begin, reinterpret_cast<char*>(vector.data()));
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path_, ": ", status.message()));
  return vector;
}

template <typename Scalar>
absl::StatusOr<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>> SafetensorsFile::Matrix(
    const std::string& name) const {
  const absl::StatusOr<const Tensor*> tensor = Find(name, ElementTypeOf<Scalar>(), 2);
  if (!tensor.ok()) return tensor.status();
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> matrix((*tensor)->shape[1], (*tensor)->shape[0]);
  const absl::Status status =
      ReadBytes((*tensor)->begin, (*tensor)->end - (*tensor)->begin, reinterpret_cast<char*>(matrix.data()));
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path_, ": ", status.message()));
  return matrix;
}

template TensorView View(std::string, const Eigen::Matrix<float, Eigen::Dynamic, 1>&);
template TensorView View(std::string, const Eigen::Matrix<double, Eigen::Dynamic, 1>&);
template TensorView View(std::string, const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>&);
template TensorView View(std::string, const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic>&);
template absl::StatusOr<wire::Vector<float>> SafetensorsFile::Vector<float>(const std::string&) const;
template absl::StatusOr<wire::Vector<double>> SafetensorsFile::Vector<double>(const std::string&) const;
template absl::StatusOr<Eigen::MatrixXf> SafetensorsFile::Matrix<float>(const std::string&) const;
template absl::StatusOr<Eigen::MatrixXd> SafetensorsFile::Matrix<double>(const std::string&) const;

}  // namespace hfopt::wire
