#include "client/models/npy.h"

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"
#include "tests/client/models/test_files.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kSix("\1\0\2\0\3\0\4\0\5\0\xff\xff", 12);  // as uint16: 1 .. 5, 65535

TEST(Npy, ReadsShapeAndElements) {
  const auto bytes = ParseNpy<uint8_t>("a", NpyBytes("|u1", "3,", "\1\2\xff"), {3});
  ASSERT_THAT(bytes, IsOk());
  EXPECT_THAT(bytes->shape, ElementsAre(3));
  EXPECT_THAT(bytes->values, ElementsAre(1, 2, 255));

  const auto words = ParseNpy<uint16_t>("a", NpyBytes("<u2", "2, 3", kSix), {kAnyLength, 3});
  ASSERT_THAT(words, IsOk());
  EXPECT_THAT(words->shape, ElementsAre(2, 3));
  EXPECT_THAT(words->values, ElementsAre(1, 2, 3, 4, 5, 65535));

  const auto ints = ParseNpy<int32_t>("a", NpyBytes("<i4", "1, 1", "\xfe\xff\xff\xff"), {1, kAnyLength});
  ASSERT_THAT(ints, IsOk());
  EXPECT_THAT(ints->values, ElementsAre(-2));

  EXPECT_THAT(ParseNpy<uint8_t>("a", NpyBytes("|u1", "0, 3", ""), {kAnyLength, 3}), IsOk());
}

TEST(Npy, ErrorsNameFileFoundAndExpected) {
  const std::string expected = "expected a NumPy 1.0 file of type <u2 and shape (any, 3)";
  const auto error = [&](const std::string& bytes, const std::string& found) {
    EXPECT_THAT(ParseNpy<uint16_t>("folder/x.npy", bytes, {kAnyLength, 3}),
                IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("folder/x.npy: " + found), HasSubstr(expected))));
  };
  error("", "does not start as a NumPy 1.0 file, 0 bytes");
  error("hello, world", "does not start");
  error(NpyBytes("<u2", "2, 3", kSix).substr(0, 40), "ends inside its header, 40 of ");
  error(NpyBytes("|u1", "2, 3", kSix), "has type |u1");
  error(NpyBytes(">u2", "2, 3", kSix), "has type >u2");
  error(NpyBytes("<u2", "2, 3", kSix, "True"), "has fortran_order True");
  error(NpyBytes("<u2", "3, 2", kSix), "has shape (3, 2)");
  error(NpyBytes("<u2", "6,", kSix), "has shape (6)");
  error(NpyBytes("<u2", "-2, 3", kSix), "header is not");
  error(NpyBytes("<u2", "two, 3", kSix), "header is not");
  error(NpyBytes("<u2", "2, 3", kSix.substr(1)), "has 11 bytes of elements, but shape (2, 3) needs 12");
  error(NpyBytes("<u2", "2, 3", kSix + "x"), "has 13 bytes of elements, but shape (2, 3) needs 12");
  error(NpyBytes("<u2", "9000000000000000000, 3", kSix), "has the impossible shape");
}

TEST(Npy, MissingFileIsNotFound) {
  EXPECT_THAT(ReadNpy<uint8_t>("/no/such.npy", {1}), IsError(StatusCode::kNotFound, HasSubstr("/no/such.npy")));
}

TEST(Npy, RefusesEveryShorterFile) {
  const std::string bytes = NpyBytes("<u2", "2, 3", kSix);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ParseNpy<uint16_t>("a", bytes.substr(0, size), {kAnyLength, 3}).ok()) << size;
  }
}

TEST(Npy, SurvivesDamage) {
  const std::string bytes = NpyBytes("<u2", "2, 3", kSix);
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const auto array = ParseNpy<uint16_t>("a", Damaged(bytes, seed), {kAnyLength, 3});
    if (array.ok()) {
      EXPECT_EQ(array->values.size(), 6);
    }
  }
}

}  // namespace
}  // namespace hfopt::models
