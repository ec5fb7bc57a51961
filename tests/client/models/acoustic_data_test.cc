#include "client/models/acoustic_data.h"

#include <algorithm>
#include <cmath>
#include <memory>
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
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kFolder = HFOPT_SOURCE_FOLDER "/client/models/an4";
constexpr AcousticTargets kBoth[] = {AcousticTargets::kMonophone, AcousticTargets::kTiedTriphone};

std::shared_ptr<const AcousticData> An4() {
  static const auto& data = *new std::shared_ptr<const AcousticData>(*LoadAcousticData(kFolder));
  return data;
}

std::shared_ptr<const AcousticSource<float>> Source(const AcousticSourceOptions& options) {
  return *AcousticSource<float>::Create(An4(), options);
}

// The first feature of each example's middle frame and its label: enough to tell orders apart.
std::vector<float> Fingerprint(const AcousticSource<float>& source, DataSet set, int64_t begin, int64_t size) {
  Matrix<float> inputs(source.input_size(), size);
  source.Inputs(set, begin, inputs);
  std::vector<int32_t> labels(size);
  source.Labels(set, begin, absl::MakeSpan(labels));
  std::vector<float> fingerprint(labels.begin(), labels.end());
  for (int64_t j = 0; j < size; ++j) fingerprint.push_back(inputs(5 * 40, j));
  return fingerprint;
}

TEST(AcousticData, HasTheCorpusDescribedInItsReadme) {
  EXPECT_EQ(An4()->train.frames(), 226554);
  EXPECT_EQ(An4()->heldout.frames(), 26180);
  EXPECT_EQ(An4()->test.frames(), 35440);
  EXPECT_EQ(An4()->train.utterances.size(), 848);
  EXPECT_EQ(An4()->heldout.utterances.size(), 100);
  EXPECT_EQ(An4()->test.utterances.size(), 130);
  EXPECT_EQ(An4()->states(AcousticTargets::kMonophone), 102);
  EXPECT_EQ(An4()->states(AcousticTargets::kTiedTriphone), 512);
  EXPECT_EQ(An4()->phones.size(), 34);
  EXPECT_EQ(An4()->phones[0], "SIL");
  EXPECT_THAT(An4()->heldout.utterances[0].words, ElementsAre("ENTER", "FIVE"));
  int64_t words = 0;
  for (const Utterance& u : An4()->test.utterances) words += static_cast<int64_t>(u.words.size());
  EXPECT_EQ(words, 773);
}

TEST(AcousticData, TrainingFramesOfTheTablesAreThoseOfTheTargets) {
  for (const AcousticTargets kind : kBoth) {
    const int k = static_cast<int>(kind);
    std::vector<int64_t> frames(An4()->states(kind));
    for (const uint16_t target : An4()->train.targets[k]) ++frames[target];
    EXPECT_EQ(frames, An4()->train_frames[k]);

    double sum = 0;
    for (const double log_prior : An4()->LogPriors(kind)) sum += std::exp(log_prior);
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST(AcousticSplit, WindowRepeatsTheEdgeFramesOfTheUtterance) {
  const AcousticSplit& split = An4()->heldout;
  const Utterance& u = split.utterances[1];
  for (const int64_t frame : {u.begin, u.begin + 3, u.begin + 5, u.begin + 70, u.end - 6, u.end - 2, u.end - 1}) {
    float window[AcousticSplit::kInputs];
    split.Window(frame, window);
    for (int64_t offset = -5; offset <= 5; ++offset) {
      const int64_t source = std::min(std::max(frame + offset, u.begin), u.end - 1);
      for (int64_t f = 0; f < 40; ++f) {
        ASSERT_EQ(window[(offset + 5) * 40 + f], (split.features[source * 40 + f] - 128) / 32.0f)
            << frame << " " << offset;
      }
    }
  }
}

TEST(AcousticSplit, WindowOfAShortUtteranceStaysInside) {
  AcousticSplit split;
  split.utterances = {{.id = "a", .begin = 0, .end = 1}, {.id = "b", .begin = 1, .end = 3}};
  split.utterance_of_frame = {0, 1, 1};
  for (int frame = 0; frame < 3; ++frame)
    split.features.insert(split.features.end(), 40, static_cast<uint8_t>(128 + 32 * frame));
  std::vector<double> window(AcousticSplit::kInputs);
  const auto middle_column = [&](int64_t frame) {
    split.Window(frame, window.data());
    std::vector<double> values;
    for (int64_t i = 0; i < AcousticSplit::kInputs; i += 40) values.push_back(window[i]);
    return values;
  };

  EXPECT_THAT(middle_column(0), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(middle_column(1), ElementsAre(1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2));
  EXPECT_THAT(middle_column(2), ElementsAre(1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2));
}

TEST(AcousticSource, ExamplesAreAllFramesInAnOrderOfTheSeed) {
  const auto source = Source({});
  EXPECT_EQ(source->num_examples(DataSet::kTraining), 226554);
  EXPECT_EQ(source->num_examples(DataSet::kHeldOut), 26180);
  EXPECT_EQ(source->input_size(), 440);
  EXPECT_EQ(source->num_classes(), 102);

  std::vector<int32_t> labels(26180), sorted(An4()->heldout.targets[0].begin(), An4()->heldout.targets[0].end());
  source->Labels(DataSet::kHeldOut, 0, absl::MakeSpan(labels));
  std::sort(labels.begin(), labels.end());
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(labels, sorted);

  EXPECT_EQ(Fingerprint(*source, DataSet::kTraining, 100, 50), Fingerprint(*Source({}), DataSet::kTraining, 100, 50));
  EXPECT_NE(Fingerprint(*source, DataSet::kTraining, 100, 50),
            Fingerprint(*Source({.seed = 2}), DataSet::kTraining, 100, 50));
}

TEST(AcousticSource, TiedTriphonesHaveTheSameFramesAndOtherLabels) {
  const auto mono = Source({}), tied = Source({.targets = AcousticTargets::kTiedTriphone});
  EXPECT_EQ(tied->num_classes(), 512);
  Matrix<float> a(440, 30), b(440, 30);
  mono->Inputs(DataSet::kTraining, 1000, a);
  tied->Inputs(DataSet::kTraining, 1000, b);
  EXPECT_EQ(a, b);
  EXPECT_NE(mono->signature(), tied->signature());
}

// A number for each training example that tells its input from others, sorted.
std::vector<float> SortedKeys(const AcousticSource<float>& source) {
  constexpr int64_t kBlock = 1024;
  const client::Vector<float> weights = client::Vector<float>::LinSpaced(440, 0.1f, 1.7f).array().sin();
  const int64_t size = source.num_examples(DataSet::kTraining);
  std::vector<float> keys;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    Matrix<float> inputs(440, std::min(kBlock, size - begin));
    source.Inputs(DataSet::kTraining, begin, inputs);
    for (int64_t j = 0; j < inputs.cols(); ++j) keys.push_back(weights.dot(inputs.col(j)));
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

TEST(AcousticSource, SmallerFractionsArePartOfLargerOnes) {
  const std::vector<float> quarter = SortedKeys(*Source({.fraction = 0.25}));
  const std::vector<float> half = SortedKeys(*Source({.fraction = 0.5}));

  EXPECT_NEAR(static_cast<double>(quarter.size()), 226554 / 4.0, 6000);
  EXPECT_NEAR(static_cast<double>(half.size()), 226554 / 2.0, 9000);
  EXPECT_TRUE(std::includes(half.begin(), half.end(), quarter.begin(), quarter.end()));
  EXPECT_EQ(Source({.fraction = 0.25})->num_examples(DataSet::kHeldOut), 26180);
}

TEST(AcousticSource, RefusesABadFraction) {
  for (const double fraction : {0.0, -1.0, 1.5, std::nan("")}) {
    EXPECT_THAT(AcousticSource<float>::Create(An4(), {.fraction = fraction}),
                IsError(StatusCode::kInvalidArgument, HasSubstr("fraction of the training utterances is ")));
  }
}

TEST(LoadAcousticData, NamesTheMissingFile) {
  for (const std::string name :
       {"targets.tsv", "cdtargets.tsv", "cdtable.npy", "train.feats.npy", "train.targets.npy", "train.cdtargets.npy",
        "train.utts.npy", "train.utts.tsv", "heldout.feats.npy", "test.cdtargets.npy"}) {
    const TempFolder folder;
    folder.LinkAll(kFolder);
    folder.Remove(name);
    EXPECT_THAT(LoadAcousticData(folder.path()),
                IsError(StatusCode::kNotFound, HasSubstr("/" + name + ": cannot be opened")));
  }
}

TEST(LoadAcousticData, NamesTheShortFile) {
  for (const std::string name :
       {"targets.tsv", "cdtargets.tsv", "cdtable.npy", "heldout.feats.npy", "heldout.targets.npy",
        "heldout.cdtargets.npy", "heldout.utts.npy", "heldout.utts.tsv"}) {
    const TempFolder folder;
    folder.LinkAll(kFolder);
    const std::string bytes = ReadAll(kFolder + "/" + name);
    for (const size_t size : {size_t{0}, size_t{5}, bytes.size() / 2, bytes.size() - 1}) {
      if (size == bytes.size() - 1 && name.ends_with(".tsv")) continue;  // the last line feed does not matter
      folder.Write(name, bytes.substr(0, size));
      const absl::Status status = LoadAcousticData(folder.path()).status();
      EXPECT_FALSE(status.ok()) << name << " " << size;
      EXPECT_THAT(std::string(status.message()), HasSubstr(folder.path())) << name << " " << size;
    }
  }
}

TEST(LoadAcousticData, FilesMustAgree) {
  const TempFolder folder;
  const auto error = [&](const std::string& name, const std::string& bytes, const std::string& what) {
    folder.Write(name, bytes);
    EXPECT_THAT(LoadAcousticData(folder.path()),
                IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr(name), HasSubstr(what))));
    folder.Write(name, ReadAll(kFolder + "/" + name));
  };
  const auto edited = [](const std::string& name, const std::string& from, const std::string& to) {
    std::string text = ReadAll(kFolder + "/" + name);
    return text.replace(text.find(from), from.size(), to);
  };
  folder.LinkAll(kFolder);
  error("targets.tsv", edited("targets.tsv", "0.8591", "1.0"), "line 2: self_loop_prob is 1");
  error("targets.tsv", edited("targets.tsv", "1\tSIL_1\tSIL\t1", "1\tSIL_1\tAA\t1"),
        "line 3: target 1 is state 1 of AA");
  error("cdtargets.tsv", edited("cdtargets.tsv", "\n511\t", "\n0\t"), "cdtarget is 0, expected 511");
  error("heldout.targets.npy", NpyBytes("|u1", "26180,", std::string(26180, '\x66')), "frame 0 has state 102");
  error("heldout.targets.npy", NpyBytes("|u1", "26179,", std::string(26179, '\0')), "has shape (26179)");
  error("heldout.utts.tsv", edited("heldout.utts.tsv", "an292-ffmm-b\tffmm\t148", "an292-ffmm-b\tffmm\t149"),
        "line 3: utterance has 168 frames from 149 on; expected at least 1 from 148 on");
  error("heldout.utts.tsv", edited("heldout.utts.tsv", "\t0\t148\t", "\t0\t99999999\t"), "99999999 frames");
  error("heldout.utts.npy", NpyBytes("<i4", "100, 3", std::string(1200, '\0')), "but 0 from 0 on in");
}

}  // namespace
}  // namespace hfopt::models
