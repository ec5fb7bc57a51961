#include "proto/wire/vector_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::wire {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kTransfer = 7;

template <typename Scalar>
Vector<Scalar> Ramp(int64_t size) {
  return Vector<Scalar>::LinSpaced(size, Scalar(-1), Scalar(1));
}

template <typename Scalar>
VectorAssembler<Scalar> Assembler(int64_t size) {
  return VectorAssembler<Scalar>::Create(MakeHeader(kTransfer, "name", size, ElementTypeOf<Scalar>()), size).value();
}

v1::VectorChunk Chunk(uint64_t offset, size_t bytes, uint64_t transfer = kTransfer) {
  v1::VectorChunk chunk;
  chunk.set_transfer(transfer);
  chunk.set_offset(offset);
  chunk.set_data(std::string(bytes, '\1'));
  return chunk;
}

template <typename Scalar>
std::vector<v1::VectorChunk> ChunksOf(const Vector<Scalar>& vector) {
  std::vector<v1::VectorChunk> chunks;
  v1::VectorChunk chunk;
  for (uint64_t offset = 0; const size_t bytes = FillChunk(vector, offset, kTransfer, &chunk); offset += bytes) {
    chunks.push_back(chunk);
  }
  return chunks;
}

TEST(Bfloat16, RoundsToTheNearestAndTiesToEven) {
  // 1 + k / 128 are the neighbours of 1; what lies half-way goes to the even one.
  Vector<float> x{{1 + 1.f / 256, 1 + 3.f / 256, 1 + 1.01f / 256, -1 - 1.f / 256, 3.14159265f, 1e-40f, 3.4028235e38f,
                   std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}};
  RoundToBfloat16(x);
  const float rounded[] = {1, 1 + 2.f / 128, 1 + 1.f / 128, -1, 3.140625f};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(x[i], rounded[i]) << i;
  EXPECT_EQ(x[5], 0x1p-133f);  // denormals are numbers too; this is the smallest
  EXPECT_EQ(x[6], std::numeric_limits<float>::infinity());
  EXPECT_EQ(x[7], std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(x[8]));
}

TEST(Bfloat16, CarriesRoundedNumbersInHalfTheBytes) {
  Vector<float> sent = Vector<float>::Random(1001);
  RoundToBfloat16(sent);
  const Vector<Bfloat16> halves = sent.cast<Bfloat16>();
  auto assembler = VectorAssembler<Bfloat16>::Create(MakeHeader(kTransfer, "", 1001, v1::ELEMENT_TYPE_BFLOAT16), 1001);
  ASSERT_TRUE(assembler.ok()) << assembler.status();
  EXPECT_EQ(assembler->total_bytes(), 2002);
  v1::VectorChunk chunk = Chunk(0, 2002);
  chunk.mutable_data()->assign(reinterpret_cast<const char*>(halves.data()), 2002);
  ASSERT_TRUE(assembler->Add(chunk).ok());
  EXPECT_EQ(std::move(*assembler).Take().map().cast<float>(), sent);
}

template <typename Scalar>
class VectorCodec : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(VectorCodec, Scalars);

TYPED_TEST(VectorCodec, CarriesEverySizeUnchanged) {
  const int64_t chunk = kMaxChunkBytes / sizeof(TypeParam);
  for (const int64_t size : {int64_t{0}, int64_t{1}, chunk - 1, chunk, chunk + 1, 3 * chunk + 5}) {
    const Vector<TypeParam> sent = Ramp<TypeParam>(size);
    VectorAssembler<TypeParam> assembler = Assembler<TypeParam>(size);
    const std::vector<v1::VectorChunk> chunks = ChunksOf<TypeParam>(sent);
    EXPECT_EQ(chunks.size(), static_cast<size_t>((size + chunk - 1) / chunk));
    for (const v1::VectorChunk& c : chunks) {
      EXPECT_FALSE(assembler.complete());
      ASSERT_TRUE(assembler.Add(c).ok());
    }
    ASSERT_TRUE(assembler.complete());
    EXPECT_TRUE(assembler.CheckComplete().ok());
    EXPECT_EQ(std::move(assembler).Take().map(), sent);
  }
}

TYPED_TEST(VectorCodec, TakesChunksInAnyOrder) {
  const Vector<TypeParam> sent = Ramp<TypeParam>(2000);
  std::mt19937 generator(1);
  for (int trial = 0; trial < 50; ++trial) {
    // Cut at random elements, then shuffle.
    std::vector<uint64_t> cuts = {0, 2000};
    for (int i = 0; i < 12; ++i) cuts.push_back(generator() % 2000);
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    std::vector<v1::VectorChunk> chunks;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const char* bytes = reinterpret_cast<const char*>(sent.data() + cuts[i]);
      chunks.push_back(Chunk(cuts[i] * sizeof(TypeParam), 0));
      chunks.back().set_data(bytes, (cuts[i + 1] - cuts[i]) * sizeof(TypeParam));
    }
    std::shuffle(chunks.begin(), chunks.end(), generator);

    VectorAssembler<TypeParam> assembler = Assembler<TypeParam>(2000);
    for (const v1::VectorChunk& c : chunks) {
      EXPECT_FALSE(assembler.complete());
      ASSERT_TRUE(assembler.Add(c).ok());
      EXPECT_FALSE(assembler.Add(c).ok()) << "the same chunk twice";
    }
    EXPECT_EQ(std::move(assembler).Take().map(), sent);
  }
}

TYPED_TEST(VectorCodec, CarriesNonFiniteNumbers) {
  using Limits = std::numeric_limits<TypeParam>;
  const Vector<TypeParam> sent{{Limits::infinity(), -Limits::infinity(), Limits::denorm_min(), TypeParam(-0.0)}};
  VectorAssembler<TypeParam> assembler = Assembler<TypeParam>(4);
  ASSERT_TRUE(assembler.Add(ChunksOf<TypeParam>(sent).at(0)).ok());
  EXPECT_EQ(ContentName<TypeParam>(std::move(assembler).Take().map()), ContentName<TypeParam>(sent));
}

TYPED_TEST(VectorCodec, ReceivesIntoTheMemoryThatItIsGiven) {
  SharedVector<TypeParam> memory = NewSharedVector<TypeParam>(100);
  auto assembler = VectorAssembler<TypeParam>::Create(MakeHeader(1, "", 100, ElementTypeOf<TypeParam>()), 100,
                                                      [&](int64_t) { return memory; });
  ASSERT_TRUE(assembler.ok());
  const absl::StatusOr<char*> place = assembler->Claim(1, 3 * sizeof(TypeParam), 97 * sizeof(TypeParam));
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(*place, memory.bytes() + 3 * sizeof(TypeParam));
}

TEST(VectorAssembler, RefusesAnotherElementType) {
  const auto assembler = VectorAssembler<float>::Create(MakeHeader(kTransfer, "", 8, v1::ELEMENT_TYPE_FLOAT64), 8);
  EXPECT_EQ(assembler.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(assembler.status().message(), "transfer 7: vector of float64, but the run uses float32");
}

TEST(VectorAssembler, RefusesAnotherSizeBeforeAllocating) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{9}, ~uint64_t{0}}) {
    const auto assembler = VectorAssembler<float>::Create(MakeHeader(kTransfer, "", size, v1::ELEMENT_TYPE_FLOAT32), 8,
                                                          [](int64_t) -> SharedVector<float> {
                                                            ADD_FAILURE() << "allocated";
                                                            return {};
                                                          });
    EXPECT_EQ(assembler.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(assembler.status().message()), HasSubstr("but the model has 8 parameters"));
  }
}

struct Refusal {
  v1::VectorChunk chunk;
  const char* message;
};

TEST(VectorAssembler, RefusesBadChunksAndStaysAsItWas) {
  VectorAssembler<float> assembler = Assembler<float>(100);
  ASSERT_TRUE(assembler.Add(Chunk(100, 100)).ok());
  const Refusal refusals[] = {
      {Chunk(0, 0), "chunk of 0 bytes at byte 0 is empty"},
      {Chunk(2, 4), "chunk of 4 bytes at byte 2 is not made of whole elements of 4 bytes"},
      {Chunk(4, 5), "chunk of 5 bytes at byte 4 is not made of whole elements of 4 bytes"},
      {Chunk(396, 8), "chunk of 8 bytes at byte 396 passes the vector's end at byte 400"},
      {Chunk(400, 4), "passes the vector's end"},
      {Chunk(~uint64_t{3}, 8), "passes the vector's end"},
      {Chunk(100, 100), "chunk of 100 bytes at byte 100 overlaps bytes 100 to 200, which are already there"},
      {Chunk(96, 8), "overlaps bytes 100 to 200"},
      {Chunk(196, 8), "overlaps bytes 100 to 200"},
      {Chunk(120, 4), "overlaps bytes 100 to 200"},
      {Chunk(0, 400), "overlaps bytes 100 to 200"},
      {Chunk(0, 4, 8), "was given to the vector of transfer 7"},
  };
  for (const Refusal& refusal : refusals) {
    const absl::Status status = assembler.Add(refusal.chunk);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(refusal.message));
  }
  EXPECT_EQ(assembler.received_bytes(), 100u);
  EXPECT_TRUE(assembler.Add(Chunk(200, 200)).ok());
  EXPECT_TRUE(assembler.Add(Chunk(0, 100)).ok());
  EXPECT_TRUE(assembler.complete());
}

TEST(VectorAssembler, NamesTheFirstGap) {
  VectorAssembler<double> assembler = Assembler<double>(10);
  EXPECT_THAT(std::string(assembler.CheckComplete().message()),
              HasSubstr("0 of 80 bytes received; the first gap is at byte 0"));
  ASSERT_TRUE(assembler.Add(Chunk(32, 8)).ok());
  EXPECT_THAT(std::string(assembler.CheckComplete().message()),
              HasSubstr("8 of 80 bytes received; the first gap is at byte 0"));
  ASSERT_TRUE(assembler.Add(Chunk(0, 16)).ok());
  EXPECT_THAT(std::string(assembler.CheckComplete().message()),
              HasSubstr("24 of 80 bytes received; the first gap is at byte 16"));
}

TEST(ContentName, IsSixteenBytesOfContentSizeAndType) {
  const Vector<float> zeros4 = Vector<float>::Zero(4), zeros2 = Vector<float>::Zero(2);
  const Vector<double> same_bytes = Vector<double>::Zero(2);
  Vector<float> one_bit = zeros4;
  one_bit[3] = -0.0f;
  EXPECT_EQ(ContentName<float>(zeros4).size(), 16u);
  EXPECT_EQ(ContentName<float>(zeros4), ContentName<float>(Vector<float>::Zero(4)));
  EXPECT_NE(ContentName<float>(zeros4), ContentName<float>(zeros2));
  EXPECT_NE(ContentName<float>(zeros4), ContentName<double>(same_bytes));
  EXPECT_NE(ContentName<float>(zeros4), ContentName<float>(one_bit));
}

}  // namespace
}  // namespace hfopt::wire
