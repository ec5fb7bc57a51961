#include "client/models/image_data.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"
#include "tests/client/models/test_files.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using ::testing::HasSubstr;

const std::string kDigitsFolder = HFOPT_SOURCE_FOLDER "/client/models/digits";

TEST(Digits, HaveTheirSplit) {
  const auto digits = LoadDigits(kDigitsFolder);
  ASSERT_THAT(digits, IsOk());
  const ImageSource<float> source(*digits, 1);

  EXPECT_EQ(source.num_examples(DataSet::kTraining), 1400);
  EXPECT_EQ(source.num_examples(DataSet::kHeldOut), 397);
  EXPECT_EQ(source.input_size(), 64);
  EXPECT_EQ(source.num_classes(), 10);
  Matrix<float> inputs(64, 397);
  source.Inputs(DataSet::kHeldOut, 0, inputs);
  EXPECT_EQ(inputs.minCoeff(), 0);
  EXPECT_EQ(inputs.maxCoeff(), 1);
}

TEST(Digits, DamagedFilesAreNamed) {
  const TempFolder folder;
  folder.LinkAll(kDigitsFolder);
  folder.Write("labels.npy", NpyBytes("|u1", "1797,", std::string(1797, '\x0a')));
  EXPECT_THAT(LoadDigits(folder.path()), IsError(StatusCode::kInvalidArgument, HasSubstr("labels.npy: label 0 is 10")));
  folder.Write("labels.npy", NpyBytes("|u1", "1796,", std::string(1796, '\1')));
  EXPECT_THAT(LoadDigits(folder.path()),
              IsError(StatusCode::kInvalidArgument, HasSubstr("labels.npy: has shape (1796)")));
  folder.Remove("labels.npy");
  EXPECT_THAT(LoadDigits(folder.path()), IsError(StatusCode::kNotFound, HasSubstr("labels.npy")));
  folder.Write("images.npy", NpyBytes("|u1", "2, 8, 8", std::string(128, '\1')));
  EXPECT_THAT(LoadDigits(folder.path()), IsError(StatusCode::kInvalidArgument, HasSubstr("has 2 images")));
}

// Four training and two held-out images of 1 x 2 pixels; image i has the bytes 51 i and 255.
void WriteIdxFolder(const TempFolder& folder, const std::string& held_out_name) {
  const auto bytes = [](int images) {
    std::string idx("\0\0\x08\3\0\0\0", 7);
    idx += static_cast<char>(images) + std::string("\0\0\0\1\0\0\0\2", 8);
    for (int i = 0; i < images; ++i) idx += {static_cast<char>(51 * i), '\xff'};
    return idx;
  };
  folder.Write("train-images-idx3-ubyte", bytes(4));
  folder.Write(held_out_name, bytes(2));
}

TEST(IdxImages, InputsAndTargetsArePixelsInShuffledOrder) {
  for (const std::string held_out_name : {"t10k-images-idx3-ubyte", "test-images-idx3-ubyte"}) {
    const TempFolder folder;
    WriteIdxFolder(folder, held_out_name);
    const auto images = LoadIdxImages(folder.path());
    ASSERT_THAT(images, IsOk());
    const ImageSource<double> source(*images, 1);

    EXPECT_EQ(source.num_examples(DataSet::kHeldOut), 2);
    EXPECT_EQ(source.num_classes(), 0);
    Matrix<double> inputs(2, 4), targets(2, 2);
    source.Inputs(DataSet::kTraining, 0, inputs);
    source.Targets(DataSet::kTraining, 1, targets);
    EXPECT_EQ(targets, inputs.middleCols(1, 2));
    EXPECT_TRUE((inputs.row(1).array() == 1).all());
    std::vector<double> first(inputs.row(0).begin(), inputs.row(0).end());
    std::sort(first.begin(), first.end());
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(first[i], 0.2 * i, 1e-15);
  }
}

TEST(IdxImages, MissingOrContradictingFilesAreNamed) {
  const TempFolder folder;
  EXPECT_THAT(LoadIdxImages(folder.path()), IsError(StatusCode::kNotFound, HasSubstr("train-images-idx3-ubyte.gz")));
  WriteIdxFolder(folder, "t10k-images-idx3-ubyte");
  folder.Write("t10k-images-idx3-ubyte", std::string("\0\0\x08\3\0\0\0\1\0\0\0\1\0\0\0\1z", 17));
  EXPECT_THAT(LoadIdxImages(folder.path()),
              IsError(StatusCode::kInvalidArgument, HasSubstr("training images are 1 x 2, held-out images 1 x 1")));
  folder.Remove("t10k-images-idx3-ubyte");
  EXPECT_THAT(LoadIdxImages(folder.path()), IsError(StatusCode::kNotFound, HasSubstr("t10k-images-idx3-ubyte.gz")));
}

}  // namespace
}  // namespace hfopt::models
