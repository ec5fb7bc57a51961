#ifndef HFOPT_PROTO_WIRE_SAFETENSORS_H_
#define HFOPT_PROTO_WIRE_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "hfopt/v1/vector.pb.h"

// Files of the safetensors format, in which checkpoints and parameters are kept: 8 bytes with the header's length, a
// JSON header
// {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}, then
// the numbers, little-endian. We write and read tensors of F32 and F64. Every tool that reads safetensors reads our
// files.
namespace hfopt::wire {

// A tensor to be written. It looks at memory that it does not own.
struct TensorView {
  std::string name;
  v1::ElementType element_type = v1::ELEMENT_TYPE_UNSPECIFIED;
  std::vector<uint64_t> shape;  // row-major
  absl::Span<const char> bytes;
};

// A vector of n elements has the shape [n]. A matrix has the shape [columns, rows]: as Eigen keeps columns together,
// each row of the file's tensor is a column of the matrix. The vector or matrix must outlive the view.
template <typename Scalar>
TensorView View(std::string name, const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>& vector);
template <typename Scalar>
TensorView View(std::string name, const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>& matrix);

// Creates `path` or overwrites it, and returns once its content has reached the disk (fsync). Atomicity is the
// caller's: on an error a part of the file may be there, and until the directory is synced too, power loss may undo its
// creation. INVALID_ARGUMENT for duplicate names and text that is not UTF-8; otherwise the error of the file system.
absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata = {});

// An open file whose header was found sound. Tensors are read when asked for, into their final place. Replacing the
// file by a rename changes nothing for who has it open. Movable. Const functions may be called from several threads.
class SafetensorsFile {
 public:
  struct Tensor {
    v1::ElementType element_type = v1::ELEMENT_TYPE_UNSPECIFIED;
    std::vector<uint64_t> shape;
    uint64_t begin = 0;  // in bytes, from the beginning of the file
    uint64_t end = 0;
  };

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

  // NOT_FOUND when there is no such tensor, FAILED_PRECONDITION when it has another element type or number of
  // dimensions, DATA_LOSS when the file became shorter since it was opened.
  template <typename Scalar>
  absl::StatusOr<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> Vector(const std::string& name) const;
  template <typename Scalar>
  absl::StatusOr<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>> Matrix(const std::string& name) const;

 private:
  friend absl::StatusOr<SafetensorsFile> ReadSafetensors(const std::string& path);
  SafetensorsFile(std::string path, int descriptor);

  absl::Status ReadHeader();
  absl::StatusOr<const Tensor*> Find(const std::string& name, v1::ElementType element_type, size_t dimensions) const;
  absl::Status ReadBytes(uint64_t begin, uint64_t size, char* bytes) const;

  std::string path_;
  int descriptor_ = -1;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

// Opens a file and reads its header. NOT_FOUND when there is no file; DATA_LOSS, with the reason, when it is no
// safetensors file of F32 and F64 tensors: nothing in it is trusted, and the tensors have to cover the file without
// overlap or hole.
absl::StatusOr<SafetensorsFile> ReadSafetensors(const std::string& path);

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_SAFETENSORS_H_
