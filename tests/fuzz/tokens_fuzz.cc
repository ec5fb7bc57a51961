// Any bytes as a file of tokens.

#include "server/access/token_file.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const hfopt::fuzz::MemoryFile file(absl::string_view(reinterpret_cast<const char*>(data), size));
  const auto tokens = hfopt::server::TokenFile::Open(file.path(), [](const std::string&) {});
  if (tokens.ok()) hfopt::fuzz::Require(!(*tokens)->Find("no token has these bytes").has_value());
  return 0;
}
