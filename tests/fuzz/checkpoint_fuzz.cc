// Any bytes as a checkpoint: refused, or a state. (The reader leaves the checksum out in this build, as no input would get past it.)

#include <utility>

#include "server/run/checkpoint_file.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  const fuzz::MemoryFile file(absl::string_view(reinterpret_cast<const char*>(data), size));
  auto checkpoint = server::ReadCheckpointFile(file.path());
  if (!checkpoint.ok()) return 0;
  if (checkpoint->meta.element_type() == v1::ELEMENT_TYPE_FLOAT64) {
    server::StateFromCheckpoint<double>(*std::move(checkpoint)).status().IgnoreError();
  } else {
    server::StateFromCheckpoint<float>(*std::move(checkpoint)).status().IgnoreError();
  }
  return 0;
}
