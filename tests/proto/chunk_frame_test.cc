#include "proto/wire/chunk_frame.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "grpcpp/support/slice.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.pb.h"

namespace hfopt::wire {
namespace {

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// `bytes` as they may arrive: cut anywhere.
grpc::ByteBuffer Cut(const std::string& bytes, std::mt19937& random) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t size = std::min<size_t>(bytes.size() - begin, random() % 7 == 0 ? random() % 400 : random() % 5);
    slices.emplace_back(bytes.substr(begin, size));
    begin += size;
  }
  if (slices.empty()) slices.emplace_back(std::string());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

v1::SessionRequest ChunkMessage(uint64_t transfer, uint64_t offset, const std::string& data) {
  v1::SessionRequest message;
  message.mutable_vector_chunk()->set_transfer(transfer);
  message.mutable_vector_chunk()->set_offset(offset);
  message.mutable_vector_chunk()->set_data(data);
  return message;
}

std::string RandomData(size_t size, std::mt19937& random) {
  std::string data(size, '\0');
  for (char& c : data) c = static_cast<char>(random());
  return data;
}

TEST(FrameChunk, IsWhatTheGeneratedMessagesReadOnBothEnds) {
  std::mt19937 random(1);
  for (const uint64_t number : {uint64_t{0}, uint64_t{1}, uint64_t{127}, uint64_t{128}, uint64_t{1} << 40, ~uint64_t{0}}) {
    for (const size_t size : {0, 1, 127, 128, 70'000}) {
      const auto data = std::make_shared<std::string>(RandomData(size, random));
      const std::string bytes = BytesOf(FrameChunk(number, number / 3, *data, data));
      v1::SessionRequest request;
      ASSERT_TRUE(request.ParseFromString(bytes));
      EXPECT_EQ(request.vector_chunk().transfer(), number);
      EXPECT_EQ(request.vector_chunk().offset(), number / 3);
      EXPECT_EQ(request.vector_chunk().data(), *data);
      v1::SessionResponse response;
      ASSERT_TRUE(response.ParseFromString(bytes));
      EXPECT_EQ(response.vector_chunk().data(), *data);
      EXPECT_EQ(bytes.size() - (size == 0 ? 2 : 0), request.ByteSizeLong()) << "the canonical fields, and an empty one";
    }
  }
}

TEST(FrameChunk, CopiesNothingAndKeepsTheOwner) {
  auto data = std::make_shared<std::string>(5000, 'x');
  const std::weak_ptr<std::string> watch = data;
  {
    grpc::ByteBuffer frame = FrameChunk(1, 0, *data, data);
    data.reset();
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(frame.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(reinterpret_cast<const char*>(slices[1].begin()), watch.lock()->data());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(FindChunk, ReadsOursAndTheGeneratedOnesHoweverTheyAreCut) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    const uint64_t transfer = random() % 3 == 0 ? 0 : random(), offset = random() % 3 == 0 ? 0 : random();
    const auto data = std::make_shared<std::string>(RandomData(random() % 3000, random));
    const std::string ours = BytesOf(FrameChunk(transfer, offset, *data, data));
    const std::string theirs = ChunkMessage(transfer, offset, *data).SerializeAsString();
    for (const std::string& bytes : {ours, theirs}) {
      grpc::ByteBuffer message = Cut(bytes, random);
      const std::optional<ChunkFrame> chunk = FindChunk(message);
      ASSERT_TRUE(chunk.has_value());
      EXPECT_EQ(chunk->transfer, transfer);
      EXPECT_EQ(chunk->offset, offset);
      ASSERT_EQ(chunk->size, data->size());
      std::string copy(chunk->size, '\0');
      CopyChunk(message, *chunk, copy.data());
      EXPECT_EQ(copy, *data);
    }
  }
}

TEST(FindChunk, LeavesEverythingElseToTheParser) {
  std::mt19937 random(3);
  const std::string chunk = ChunkMessage(5, 8, "12345678").SerializeAsString();
  v1::SessionRequest hello;
  hello.mutable_hello()->set_worker_id("w");
  v1::SessionRequest renewal;
  renewal.mutable_lease_renewal();
  std::string unknown_field = chunk;
  unknown_field[1] += 2;
  unknown_field += std::string("\x78\x01");  // field 15 inside the chunk
  for (const std::string& bytes : {std::string(), hello.SerializeAsString(), renewal.SerializeAsString(), chunk + chunk,
                                   chunk + renewal.SerializeAsString(), unknown_field}) {
    grpc::ByteBuffer message = Cut(bytes, random);
    EXPECT_FALSE(FindChunk(message).has_value());
    v1::SessionRequest parsed, expected;
    ASSERT_TRUE(expected.ParseFromString(bytes));
    ASSERT_TRUE(ParseFrame(message, &parsed));
    EXPECT_EQ(parsed.SerializeAsString(), expected.SerializeAsString());
  }
}

// Whatever FindChunk takes, the generated parser reads the same; whatever it does not take, may be anything.
TEST(FindChunk, AgreesWithTheParserOnDamagedMessages) {
  std::mt19937 random(4);
  int taken = 0, unreadable = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    std::string bytes = ChunkMessage(random() % 300, random() % 300, RandomData(random() % 40, random)).SerializeAsString();
    for (int damage = random() % 3; damage >= 0 && !bytes.empty(); --damage) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.resize(at);
          break;
        default:
          bytes.insert(at, 1, static_cast<char>(random()));
      }
    }
    grpc::ByteBuffer message = Cut(bytes, random);
    v1::SessionRequest parsed;
    const bool readable = ParseFrame(message, &parsed);
    EXPECT_EQ(readable, v1::SessionRequest().ParseFromString(bytes));
    unreadable += !readable;
    const std::optional<ChunkFrame> chunk = FindChunk(message);
    if (!chunk.has_value()) continue;
    ++taken;
    ASSERT_TRUE(readable);
    std::string data(chunk->size, '\0');
    CopyChunk(message, *chunk, data.data());
    EXPECT_EQ(parsed.vector_chunk().data(), data);
    EXPECT_EQ(parsed.vector_chunk().transfer(), chunk->transfer);
    EXPECT_EQ(parsed.vector_chunk().offset(), chunk->offset);
  }
  EXPECT_GT(taken, 1000);
  EXPECT_GT(unreadable, 1000);
}

TEST(Frame, CarriesMessagesOfEverySizeAlsoEmptyOnes) {
  for (const size_t size : {0, 1, 5000, 3'000'000}) {
    v1::SessionRequest message, parsed;
    if (size > 0) message.mutable_hello()->set_model_signature(std::string(size, 's'));
    grpc::ByteBuffer frame = Frame(message);
    ASSERT_TRUE(frame.Valid());
    ASSERT_TRUE(ParseFrame(frame, &parsed));
    EXPECT_EQ(parsed.SerializeAsString(), message.SerializeAsString());
  }
}

}  // namespace
}  // namespace hfopt::wire
