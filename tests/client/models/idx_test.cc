#include "client/models/idx.h"

#include <zlib.h>

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

const std::string kImages("\0\0\x08\3\0\0\0\2\0\0\0\1\0\0\0\3abcdef", 22);  // 2 x 1 x 3

class Idx : public testing::Test {
 protected:
  std::string WriteGzipped(const std::string& bytes) const {
    const std::string path = folder_.Write("x.gz", "");
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
    return path;
  }

  TempFolder folder_;
};

TEST_F(Idx, ReadsPlainAndGzippedFiles) {
  for (const std::string& path : {folder_.Write("x", kImages), WriteGzipped(kImages)}) {
    const auto array = ReadIdx(path, 3);
    ASSERT_THAT(array, IsOk());
    EXPECT_THAT(array->shape, ElementsAre(2, 1, 3));
    EXPECT_THAT(array->values, ElementsAre('a', 'b', 'c', 'd', 'e', 'f'));
  }
}

TEST_F(Idx, ErrorsNameFileFoundAndExpected) {
  const auto error = [&](const std::string& bytes, const std::string& found) {
    const std::string path = folder_.Write("x", bytes);
    EXPECT_THAT(ReadIdx(path, 3), IsError(StatusCode::kInvalidArgument,
                                          AllOf(HasSubstr(path + ": " + found), HasSubstr("with 3 dimensions"))));
  };
  error("", "does not start as an IDX file");
  error("rubbish", "does not start as an IDX file");
  error(std::string("\0\0\x0d\3", 4) + kImages.substr(4), "has element type 13");
  error(std::string("\0\0\x08\1\0\0\0\2ab", 10), "has 1 dimensions");
  error(kImages.substr(0, 10), "ends inside its header, 10 of 16 bytes");
  error(kImages.substr(0, 20), "ends after 4 of 6 elements");
  error(kImages + "g", "goes on after its 6 elements");
  error(std::string("\0\0\x08\3\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16),
        "claims more than 4294967296 elements");
  error(std::string("\0\0\x08\3\x0f\xff\xff\xff\0\0\0\1\0\0\0\1a", 17), "ends after 1 of 268435455 elements");
}

TEST_F(Idx, MissingFileIsNotFound) {
  EXPECT_THAT(ReadIdx(folder_.path() + "/none", 3), IsError(StatusCode::kNotFound, HasSubstr("/none")));
}

TEST_F(Idx, RefusesEveryShorterFile) {
  const std::string gzipped = ReadAll(WriteGzipped(kImages));
  for (const std::string& bytes : {kImages, gzipped}) {
    // The last 8 bytes of a gzipped file are a check of what came before.
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_FALSE(ReadIdx(folder_.Write("x", bytes.substr(0, size)), 3).ok()) << size << " of " << bytes.size();
    }
  }
}

TEST_F(Idx, SurvivesDamage) {
  const std::string gzipped = ReadAll(WriteGzipped(kImages));
  for (uint64_t seed = 0; seed < 300; ++seed) {
    for (const std::string& bytes : {kImages, gzipped}) {
      const auto array = ReadIdx(folder_.Write("x", Damaged(bytes, seed)), 3);
      if (array.ok()) {
        EXPECT_EQ(array->values.size(), 6);
      }
    }
  }
}

}  // namespace
}  // namespace hfopt::models
