#ifndef HFOPT_PROTO_WIRE_CHUNK_FRAME_H_
#define HFOPT_PROTO_WIRE_CHUNK_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/types/span.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"

// The messages of a session as gRPC moves them. Chunks, which are nearly all of the bytes, are framed and read by hand: not copied
// on their way out, copied once, into their place, on their way in. The bytes on the wire are those of the generated messages, which
// everything else goes through; peers may use those alone.
namespace hfopt::wire {

// A SessionRequest or SessionResponse (the field has one number in both) with a vector_chunk. `owner` keeps `data` alive until gRPC
// has sent it or given up.
grpc::ByteBuffer FrameChunk(uint64_t transfer, uint64_t offset, absl::Span<const char> data,
                            std::shared_ptr<const void> owner);

// Any other message.
grpc::ByteBuffer Frame(const google::protobuf::MessageLite& message);

// A chunk within a message that was received.
struct ChunkFrame {
  uint64_t transfer = 0;
  uint64_t offset = 0;  // of the chunk in its vector, in bytes
  size_t size = 0;
  size_t position = 0;  // of its data in the message, in bytes
};

// The message's vector_chunk, if it has one and nothing else; empty for every other message, also for a broken one: those are for
// ParseFrame.
std::optional<ChunkFrame> FindChunk(grpc::ByteBuffer& message);

// Copies the data of a chunk that FindChunk found, chunk.size bytes, to `to`.
void CopyChunk(grpc::ByteBuffer& message, const ChunkFrame& chunk, char* to);

// False when the message is no encoding of its type.
bool ParseFrame(grpc::ByteBuffer& message, google::protobuf::MessageLite* parsed);

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_CHUNK_FRAME_H_
