#include "proto/wire/safetensors.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::wire {
namespace {

using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  ~Safetensors() override { unlink(path_.c_str()); }

  // A file with this header (its length in front) and `data_bytes` zeros.
  void WriteRaw(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string content(reinterpret_cast<const char*>(&length), 8);
    WriteContent(content + header + std::string(data_bytes, '\0'));
  }
  void WriteContent(const std::string& content) { std::ofstream(path_, std::ios::binary) << content; }
  std::string Content() {
    std::ifstream file(path_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  std::string Refusal() {
    const auto file = ReadSafetensors(path_);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << file.status();
    return std::string(file.status().message());
  }

  const std::string path_ = ::testing::TempDir() + "safetensors_test." + std::to_string(getpid());
};

TEST_F(Safetensors, KeepsVectorsMatricesAndMetadata) {
  const Vector<float> theta = Vector<float>::LinSpaced(5, -1, 1);
  const Eigen::MatrixXf pairs = Eigen::MatrixXf::Random(5, 3);
  const Vector<double> wide = Vector<double>::LinSpaced(3, 0, 1);
  const Eigen::MatrixXd none(4, 0);
  const std::map<std::string, std::string> metadata = {{"hfopt.checkpoint", R"({"iteration": "7"})"}, {"ä", "\n\""}};

  ASSERT_TRUE(WriteSafetensors(
                  path_, {View("theta", theta), View("pairs", pairs), View("wide", wide), View("none", none)}, metadata)
                  .ok());
  const auto file = ReadSafetensors(path_);
  ASSERT_TRUE(file.ok()) << file.status();

  EXPECT_EQ(file->metadata(), metadata);
  EXPECT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->tensors().at("pairs").shape, (std::vector<uint64_t>{3, 5}));
  EXPECT_EQ(file->Vector<float>("theta").value(), theta);
  EXPECT_EQ(file->Matrix<float>("pairs").value(), pairs);
  EXPECT_EQ(file->Vector<double>("wide").value(), wide);
  EXPECT_EQ(file->Matrix<double>("none").value(), none);
}

TEST_F(Safetensors, AlignsEveryTensorToItsElements) {
  const Vector<float> odd = Vector<float>::Zero(3);
  const Vector<double> wide = Vector<double>::Zero(2);
  for (const char* key : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"}) {
    ASSERT_TRUE(WriteSafetensors(path_, {View("odd", odd), View("wide", wide)}, {{key, ""}}).ok());
    const auto file = ReadSafetensors(path_);
    ASSERT_TRUE(file.ok());
    EXPECT_EQ(file->tensors().at("wide").begin % 8, 0u);
    EXPECT_EQ(file->tensors().at("odd").begin % 4, 0u);
  }
}

TEST_F(Safetensors, WritesTheBytesOfTheFormat) {
  const Vector<float> x{{1.0f}};
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", x)}).ok());
  const std::string header = R"({"x":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}})";  // 54 bytes, padded to 56
  EXPECT_EQ(Content(), std::string("\x38\0\0\0\0\0\0\0", 8) + header + "  " + std::string("\0\0\x80\x3f", 4));
}

TEST_F(Safetensors, ReadsAFileReplacedAfterItWasOpened) {
  const Vector<float> before = Vector<float>::Ones(3), after = Vector<float>::Zero(3);
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", before)}).ok());
  const auto file = ReadSafetensors(path_);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(WriteSafetensors(path_ + ".new", {View("x", after)}).ok());
  ASSERT_EQ(rename((path_ + ".new").c_str(), path_.c_str()), 0);
  EXPECT_EQ(file->Vector<float>("x").value(), before);
}

TEST_F(Safetensors, NamesTheMissingFileTensorAndType) {
  EXPECT_EQ(ReadSafetensors(path_).status().code(), absl::StatusCode::kNotFound);
  const Vector<float> x = Vector<float>::Ones(3);
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", x)}).ok());
  const auto file = ReadSafetensors(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->Vector<float>("y").status().message(), path_ + ": has no tensor 'y'");
  EXPECT_EQ(file->Vector<double>("x").status().message(),
            path_ + ": tensor 'x' is F32 of 1 dimensions; wanted F64 of 1");
  EXPECT_EQ(file->Matrix<float>("x").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(Safetensors, RefusesWhatItCannotWrite) {
  const Vector<float> x = Vector<float>::Ones(3);
  EXPECT_EQ(WriteSafetensors(path_, {View("x", x), View("x", x)}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path_, {View("__metadata__", x)}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path_, {}, {{"key", "\xff"}}).code(), absl::StatusCode::kInvalidArgument);
  TensorView wrong = View("x", x);
  wrong.shape = {4};
  EXPECT_THAT(std::string(WriteSafetensors(path_, {wrong}).message()), HasSubstr("12 bytes do not fill F32 [4]"));
  EXPECT_EQ(WriteSafetensors(path_ + "/none/x", {View("x", x)}).code(), absl::StatusCode::kNotFound);
}

TEST_F(Safetensors, ReportsAFullDisk) {
  const Vector<float> x = Vector<float>::Ones(3);
  EXPECT_EQ(WriteSafetensors("/dev/full", {View("x", x)}).code(), absl::StatusCode::kResourceExhausted);
}

struct Rubbish {
  std::string header;
  size_t data_bytes;
  const char* message;
};

TEST_F(Safetensors, RefusesRubbishWithTheReason) {
  const Rubbish rubbish[] = {
      {"", 0, "no JSON object"},
      {"[]", 0, "no JSON object"},
      {"{", 0, "no JSON object"},
      {"{\"\xff\": 1}", 0, "no JSON object"},
      {std::string(100'000, '['), 0, "no JSON object"},
      {R"({"__metadata__": {"a": 1}})", 0, "not text only"},
      {R"({"__metadata__": "a"})", 0, "not text only"},
      {R"({"x": 1})", 0, "exactly dtype, shape and data_offsets"},
      {R"({"x": {"dtype": "F32", "shape": [1]}})", 4, "exactly dtype, shape and data_offsets"},
      {R"({"x": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}})", 4, "neither F32 nor F64"},
      {R"({"x": {"dtype": 32, "shape": [1], "data_offsets": [0, 4]}})", 4, "neither F32 nor F64"},
      {R"({"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}})", 4, "no list of sizes"},
      {R"({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4, "no list of sizes"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.5]}})", 4, "no pair of positions"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}})", 4, "no pair of positions"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})", 3, "lies at bytes 0 to 4 of 3"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4, "lies at bytes 4 to 0 of 4"},
      {R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4, "4 bytes, which do not fill F32 [2]"},
      {R"({"x": {"dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4]}})", 4, "do not fill"},
      {R"({"x": {"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", 0, "do not fill"},
      {R"({"x": {"dtype": "F32", "shape": [9223372036854775808, 0], "data_offsets": [0, 0]}})", 0, "do not fill"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})", 8, "end at byte"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})", 8, "overlap or leave a hole"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
       4, "overlap or leave a hole"},
      {R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
       4, "distinct keys"},
  };
  for (const Rubbish& r : rubbish) {
    WriteRaw(r.header, r.data_bytes);
    EXPECT_THAT(Refusal(), HasSubstr(r.message)) << r.header.substr(0, 200);
  }
}

TEST_F(Safetensors, RefusesAHeaderLongerThanTheFileOrTheLimit) {
  WriteContent("1234567");
  EXPECT_THAT(Refusal(), HasSubstr("has 7 bytes, too few for a header"));
  WriteContent(std::string("\x01\0\0\0\0\0\0\0", 8));
  EXPECT_THAT(Refusal(), HasSubstr("announces a header of 1 bytes; the file has 8"));
  WriteContent(std::string(8, '\xff') + "{}");
  EXPECT_THAT(Refusal(), HasSubstr("announces a header of 18446744073709551615 bytes"));
  WriteRaw("{}", 0);
  ASSERT_EQ(truncate(path_.c_str(), 200'000'000), 0);
  std::fstream(path_, std::ios::binary | std::ios::in | std::ios::out).write("\x01\xe1\xf5\x05", 4);  // 100,000,001
  EXPECT_THAT(Refusal(), HasSubstr("the limit is 100000000"));
}

TEST_F(Safetensors, RefusesEveryTruncation) {
  const Vector<float> x = Vector<float>::Ones(3);
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", x)}, {{"a", "b"}}).ok());
  const std::string content = Content();
  for (size_t size = 0; size < content.size(); ++size) {
    WriteContent(content.substr(0, size));
    Refusal();
  }
}

TEST_F(Safetensors, NeverTrustsADamagedHeader) {
  const Vector<float> x = Vector<float>::Ones(3);
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", x)}, {{"a", "b"}}).ok());
  const std::string content = Content();
  for (size_t i = 0; i < content.size() - 12; ++i) {
    for (const char damage : {'\0', '9', '"', '\xff', '}'}) {
      std::string damaged = content;
      damaged[i] = damage;
      WriteContent(damaged);
      const auto file = ReadSafetensors(path_);
      if (file.ok()) file->Vector<float>("x").IgnoreError();  // a changed name or text goes unseen; nothing crashes
    }
  }
}

TEST_F(Safetensors, ReportsAFileThatShrank) {
  const Vector<float> x = Vector<float>::Ones(3);
  ASSERT_TRUE(WriteSafetensors(path_, {View("x", x)}).ok());
  const auto file = ReadSafetensors(path_);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(truncate(path_.c_str(), Content().size() - 4), 0);
  EXPECT_EQ(file->Vector<float>("x").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace hfopt::wire
