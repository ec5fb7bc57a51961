// The hand-written reader of chunks against the generated one: any bytes, in any slices. A chunk that it finds is the chunk that protobuf finds; and
// a vector is put together of nothing but its own bytes.

#include <cstring>
#include <vector>

#include "grpcpp/support/byte_buffer.h"
#include "hfopt/v1/evaluation_service.pb.h"
#include "proto/wire/chunk_frame.h"
#include "proto/wire/vector_codec.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hfopt;
  fuzz::Input input(data, size);
  const v1::VectorHeader header = wire::MakeHeader(1, "v", input.Byte(), v1::ELEMENT_TYPE_FLOAT32);
  auto assembler = wire::VectorAssembler<float>::Create(header, static_cast<int64_t>(header.size()));
  if (!assembler.ok()) return 0;
  while (!input.empty()) {
    const size_t cut = input.Byte();
    const absl::string_view message = input.Piece();
    std::vector<grpc::Slice> slices;
    for (size_t at = 0; at < message.size(); at += cut + 1) {
      const absl::string_view part = message.substr(at, cut + 1);
      slices.emplace_back(part.data(), part.size());
    }
    grpc::ByteBuffer buffer(slices.data(), slices.size());
    const auto found = wire::FindChunk(buffer);
    v1::SessionRequest parsed;
    const bool is_message = parsed.ParseFromArray(message.data(), static_cast<int>(message.size()));
    if (!found.has_value()) continue;
    fuzz::Require(is_message && parsed.has_vector_chunk());
    fuzz::Require(found->transfer == parsed.vector_chunk().transfer() && found->offset == parsed.vector_chunk().offset());
    fuzz::Require(found->size == parsed.vector_chunk().data().size());
    std::vector<char> bytes(found->size);
    wire::CopyChunk(buffer, *found, bytes.data());
    fuzz::Require(std::memcmp(bytes.data(), parsed.vector_chunk().data().data(), bytes.size()) == 0);
    const auto place = assembler->Claim(found->transfer, found->offset, found->size);
    if (place.ok()) std::memcpy(*place, bytes.data(), bytes.size());
  }
  if (assembler->CheckComplete().ok()) std::move(*assembler).Take();
  return 0;
}
