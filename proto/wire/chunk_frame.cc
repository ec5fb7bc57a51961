#include "proto/wire/chunk_frame.h"

#include <array>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/proto_buffer_writer.h"
#include "hfopt/v1/evaluation_service.pb.h"

namespace hfopt::wire {
namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

static_assert(static_cast<int>(v1::SessionRequest::kVectorChunkFieldNumber) ==
              static_cast<int>(v1::SessionResponse::kVectorChunkFieldNumber));

// Tags of the protobuf encoding: field number and wire type.
constexpr uint32_t Varint(int field) { return static_cast<uint32_t>(field) << 3; }
constexpr uint32_t LengthDelimited(int field) { return static_cast<uint32_t>(field) << 3 | 2; }
constexpr uint32_t kChunk = LengthDelimited(v1::SessionRequest::kVectorChunkFieldNumber);
constexpr uint32_t kOffset = Varint(v1::VectorChunk::kOffsetFieldNumber);
constexpr uint32_t kData = LengthDelimited(v1::VectorChunk::kDataFieldNumber);
constexpr uint32_t kTransfer = Varint(v1::VectorChunk::kTransferFieldNumber);

}  // namespace

grpc::ByteBuffer FrameChunk(uint64_t transfer, uint64_t offset, absl::Span<const char> data,
                            std::shared_ptr<const void> owner) {
  // Fields may come in any order; the data comes last, so that everything else is one slice before it.
  std::array<uint8_t, 64> header;
  uint8_t* end = header.data();
  const size_t inner = (transfer != 0 ? 1 + CodedOutputStream::VarintSize64(transfer) : 0) +
                       (offset != 0 ? 1 + CodedOutputStream::VarintSize64(offset) : 0) + 1 +
                       CodedOutputStream::VarintSize64(data.size()) + data.size();
  end = CodedOutputStream::WriteTagToArray(kChunk, end);
  end = CodedOutputStream::WriteVarint64ToArray(inner, end);
  if (transfer != 0) {
    end = CodedOutputStream::WriteTagToArray(kTransfer, end);
    end = CodedOutputStream::WriteVarint64ToArray(transfer, end);
  }
  if (offset != 0) {
    end = CodedOutputStream::WriteTagToArray(kOffset, end);
    end = CodedOutputStream::WriteVarint64ToArray(offset, end);
  }
  end = CodedOutputStream::WriteTagToArray(kData, end);
  end = CodedOutputStream::WriteVarint64ToArray(data.size(), end);

  using Owner = std::shared_ptr<const void>;
  const grpc::Slice slices[] = {
      grpc::Slice(header.data(), end - header.data()),
      grpc::Slice(
          const_cast<char*>(data.data()), data.size(), [](void* holder) { delete static_cast<Owner*>(holder); },
          new Owner(std::move(owner)))};
  return grpc::ByteBuffer(slices, 2);
}

grpc::ByteBuffer Frame(const google::protobuf::MessageLite& message) {
  grpc::ByteBuffer buffer;
  if (message.ByteSizeLong() == 0) {  // for which a writer leaves the buffer without a message
    const grpc::Slice empty;
    return grpc::ByteBuffer(&empty, 1);
  }
  {
    grpc::ProtoBufferWriter writer(&buffer, /*block_size=*/4096, static_cast<int>(message.ByteSizeLong()));
    message.SerializeToZeroCopyStream(&writer);
  }
  return buffer;
}

std::optional<ChunkFrame> FindChunk(grpc::ByteBuffer& message) {
  grpc::ProtoBufferReader reader(&message);
  if (!reader.status().ok()) return std::nullopt;
  CodedInputStream in(&reader);
  uint64_t length = 0;
  // The chunk ends where the message does.
  if (in.ReadTag() != kChunk || !in.ReadVarint64(&length) || length != message.Length() - in.CurrentPosition()) {
    return std::nullopt;
  }
  ChunkFrame chunk;
  bool has_transfer = false, has_offset = false, has_data = false;
  while (const uint32_t tag = in.ReadTag()) {
    bool good = false;
    switch (tag) {
      case kTransfer:
        good = !std::exchange(has_transfer, true) && in.ReadVarint64(&chunk.transfer);
        break;
      case kOffset:
        good = !std::exchange(has_offset, true) && in.ReadVarint64(&chunk.offset);
        break;
      case kData: {
        uint32_t size = 0;
        good = !std::exchange(has_data, true) && in.ReadVarint32(&size);
        chunk.size = size;
        chunk.position = in.CurrentPosition();
        good = good && size <= message.Length() - chunk.position && in.Skip(static_cast<int>(size));
        break;
      }
    }
    if (!good) return std::nullopt;
  }
  return in.ConsumedEntireMessage() ? std::optional(chunk) : std::nullopt;
}

void CopyChunk(grpc::ByteBuffer& message, const ChunkFrame& chunk, char* to) {
  grpc::ProtoBufferReader reader(&message);
  CodedInputStream in(&reader);
  in.Skip(static_cast<int>(chunk.position));
  in.ReadRaw(to, static_cast<int>(chunk.size));
}

bool ParseFrame(grpc::ByteBuffer& message, google::protobuf::MessageLite* parsed) {
  grpc::ProtoBufferReader reader(&message);
  return reader.status().ok() && parsed->ParseFromZeroCopyStream(&reader);
}

}  // namespace hfopt::wire
