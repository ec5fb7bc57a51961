// Any bytes as data files of the models: .npy and IDX, gzipped or not.

#include "client/models/idx.h"
#include "client/models/npy.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  fuzz::Input input(data, size);
  const uint8_t kind = input.Byte();
  const absl::string_view bytes = input.Rest();
  const auto check = [](const auto& array) {
    if (!array.ok()) return;
    int64_t product = 1;
    for (const int64_t length : array->shape) product *= length;
    fuzz::Require(product == static_cast<int64_t>(array->values.size()));
  };
  switch (kind % 5) {
    case 0:
      check(models::ParseNpy<uint8_t>("input", bytes, {models::kAnyLength, models::kAnyLength}));
      break;
    case 1:
      check(models::ParseNpy<uint16_t>("input", bytes, {models::kAnyLength, 2}));
      break;
    case 2:
      check(models::ParseNpy<int32_t>("input", bytes, {models::kAnyLength}));
      break;
    default:
      const fuzz::MemoryFile file(bytes);
      check(models::ReadIdx(file.path(), kind % 5 == 3 ? 1 : 3));
  }
  return 0;
}
