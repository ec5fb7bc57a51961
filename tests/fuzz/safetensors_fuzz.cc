// Any bytes as a safetensors file: refused, or every tensor can be read in the type and shape that the header says.

#include "proto/wire/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  const fuzz::MemoryFile memory(absl::string_view(reinterpret_cast<const char*>(data), size));
  const auto file = wire::ReadSafetensors(memory.path());
  if (!file.ok()) return 0;
  for (const auto& [name, tensor] : file->tensors()) {
    const bool is_double = tensor.element_type == v1::ELEMENT_TYPE_FLOAT64;
    if (tensor.shape.size() == 1) fuzz::Require(is_double ? file->Vector<double>(name).ok() : file->Vector<float>(name).ok());
    if (tensor.shape.size() == 2) fuzz::Require(is_double ? file->Matrix<double>(name).ok() : file->Matrix<float>(name).ok());
    fuzz::Require(!(is_double ? file->Vector<float>(name).ok() : file->Vector<double>(name).ok()));
  }
  return 0;
}
