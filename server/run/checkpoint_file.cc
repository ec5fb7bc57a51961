#include "server/run/checkpoint_file.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "proto/wire/safetensors.h"
#include "proto/wire/vector_codec.h"
#include "xxhash.h"

namespace hfopt::server {
namespace {

constexpr uint32_t kFormatVersion = 1;
constexpr char kCheckpointKey[] = "hfopt.checkpoint";
constexpr char kChecksumKey[] = "hfopt.checksum";

// XXH3-128 over fields, each preceded by its length in 8 little-endian bytes: the checkpoint's JSON; then for each
// tensor, in the byte order of their names, its name, its element type ("float32" or "float64") and its numbers.
class Checksum {
 public:
  explicit Checksum(absl::string_view json) : state_(XXH3_createState()) {
    XXH3_128bits_reset(state_.get());
    Add(json);
  }

  void AddTensor(absl::string_view name, v1::ElementType type, absl::string_view numbers) {
    Add(name);
    Add(wire::ElementTypeName(type));
    Add(numbers);
  }

  std::string Hex() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    return absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(canonical.digest), sizeof(canonical.digest)));
  }

 private:
  void Add(absl::string_view bytes) {
    const uint64_t size = bytes.size();
    XXH3_128bits_update(state_.get(), &size, sizeof(size));
    XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
  }

  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

template <typename Scalar>
absl::string_view BytesOf(const Vector<Scalar>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(Scalar)};
}

absl::Status CheckTensors(const CheckpointView& checkpoint) {
  for (const wire::TensorView& t : checkpoint.tensors) {
    if (t.element_type != checkpoint.meta.element_type() ||
        t.shape != std::vector<uint64_t>{checkpoint.meta.num_parameters()}) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor '", t.name, "' has ", t.bytes.size(), " bytes of ", wire::ElementTypeName(t.element_type),
          "; the checkpoint is of vectors of ", checkpoint.meta.num_parameters(), " elements of ",
          wire::ElementTypeName(checkpoint.meta.element_type())));
    }
  }
  return absl::OkStatus();
}

// Reads all tensors into `checkpoint`, and answers the checksum of what was read.
template <typename Scalar>
absl::StatusOr<std::string> ReadTensors(const wire::SafetensorsFile& file, const std::string& json,
                                        Checkpoint& checkpoint) {
  Checksum checksum(json);
  for (const auto& [name, tensor] : file.tensors()) {
    HFOPT_ASSIGN_OR_RETURN(Vector<Scalar> vector, file.Vector<Scalar>(name));
    checksum.AddTensor(name, tensor.element_type, BytesOf(vector));
    checkpoint.tensors.emplace(name, std::move(vector));
  }
  return checksum.Hex();
}

}  // namespace

absl::Status WriteCheckpointFile(const std::string& path, const CheckpointView& checkpoint) {
  HFOPT_RETURN_IF_ERROR(CheckTensors(checkpoint));
  std::string json;
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  if (const auto status = google::protobuf::util::MessageToJsonString(checkpoint.meta, &json, print); !status.ok()) {
    return absl::InternalError(absl::StrCat("checkpoint as JSON: ", status.ToString()));
  }
  std::map<absl::string_view, const wire::TensorView*> by_name;
  for (const wire::TensorView& t : checkpoint.tensors) by_name.emplace(t.name, &t);
  Checksum checksum(json);
  for (const auto& [name, t] : by_name) {
    checksum.AddTensor(name, t->element_type, absl::string_view(t->bytes.data(), t->bytes.size()));
  }
  return wire::WriteSafetensors(path, checkpoint.tensors, {{kCheckpointKey, json}, {kChecksumKey, checksum.Hex()}});
}

absl::StatusOr<Checkpoint> ReadCheckpointFile(const std::string& path) {
  const auto damaged = [&path](const auto&... why) { return absl::DataLossError(absl::StrCat(path, ": ", why...)); };
  HFOPT_ASSIGN_OR_RETURN(const wire::SafetensorsFile file, wire::ReadSafetensors(path));
  const auto json = file.metadata().find(kCheckpointKey), expected = file.metadata().find(kChecksumKey);
  if (json == file.metadata().end() || expected == file.metadata().end()) {
    return damaged("has no ", kCheckpointKey, " or no ", kChecksumKey, " in its metadata");
  }
  if (file.tensors().empty()) return damaged("has no tensors");
  const wire::SafetensorsFile::Tensor& first = file.tensors().begin()->second;
  for (const auto& [name, t] : file.tensors()) {
    if (t.shape.size() != 1 || t.shape != first.shape || t.element_type != first.element_type) {
      return damaged("tensor '", name, "' is not a vector like '", file.tensors().begin()->first, "'");
    }
  }

  // Nothing of the content is believed before the checksum is right.
  Checkpoint checkpoint;
  HFOPT_ASSIGN_OR_RETURN(const std::string checksum, first.element_type == v1::ELEMENT_TYPE_FLOAT64
                                                         ? ReadTensors<double>(file, json->second, checkpoint)
                                                         : ReadTensors<float>(file, json->second, checkpoint));
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // no fuzzer gets past a checksum
  constexpr bool kIgnoreChecksum = true;
#else
  constexpr bool kIgnoreChecksum = false;
#endif
  if (!kIgnoreChecksum && checksum != expected->second) {
    return damaged("its content has the checksum ", checksum, ", written was ",
                   absl::CHexEscape(expected->second).substr(0, 64));
  }

  google::protobuf::util::JsonParseOptions parse;
  parse.ignore_unknown_fields = true;  // of a later format
  v1::Checkpoint& meta = checkpoint.meta;
  if (const auto s = google::protobuf::util::JsonStringToMessage(json->second, &meta, parse); !s.ok()) {
    return damaged(kCheckpointKey, " is not a checkpoint: ", s.ToString());
  }
  if (meta.format_version() > kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": has format version ", meta.format_version(),
                                                      "; this server reads up to ", kFormatVersion,
                                                      "; use the server that wrote it, or a later one"));
  }
  if (meta.element_type() != first.element_type || meta.num_parameters() != first.shape[0]) {
    return damaged("says it holds ", meta.num_parameters(), " parameters of ",
                   wire::ElementTypeName(meta.element_type()), ", but its tensors have ", first.shape[0], " of ",
                   wire::ElementTypeName(first.element_type));
  }
  return checkpoint;
}

}  // namespace hfopt::server
