#include "client/models/language.h"

#include <string>
#include <vector>

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

TEST(LoadLexicon, WordsAreSortedAndMayHaveSeveralPronunciations) {
  const TempFolder folder;
  const auto lexicon =
      LoadLexicon(folder.Write("lexicon.tsv", "word\tphones\nB\tX Y\nA\tY\nB\tY X Y\n"), {"SIL", "X", "Y"});

  ASSERT_THAT(lexicon, IsOk());
  EXPECT_THAT(lexicon->words, ElementsAre("A", "B"));
  ASSERT_EQ(lexicon->pronunciations.size(), 3);
  EXPECT_EQ(lexicon->pronunciations[0].word, 1);
  EXPECT_THAT(lexicon->pronunciations[0].phones, ElementsAre(1, 2));
  EXPECT_EQ(lexicon->pronunciations[1].word, 0);
  EXPECT_THAT(lexicon->pronunciations[2].phones, ElementsAre(2, 1, 2));
}

TEST(LoadLexicon, RefusesUnknownPhonesAndEmptyWords) {
  const TempFolder folder;
  const auto error = [&](const std::string& text, const std::string& what) {
    EXPECT_THAT(LoadLexicon(folder.Write("lexicon.tsv", text), {"SIL", "X"}),
                IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("lexicon.tsv"), HasSubstr(what))));
  };
  error("word\tphones\nA\tX\nB\tX Z\n", "line 3: phone \"Z\"");
  error("word\tphones\nA\t \n", "line 2: a word without phones");
  error("word\tphones\n", "has no words");
}

constexpr char kBigram[] =
    "kind\ta\tb\tlogp\n"
    "unigram\t-\tA\t-1\nunigram\t-\tB\t-2\nunigram\t-\t</s>\t-3\n"
    "backoff\t<s>\t-\t-0.1\nbackoff\tA\t-\t-0.2\nbackoff\tB\t-\t-0.3\n"
    "bigram\tA\tB\t-0.5\nbigram\t<s>\tB\t-0.7\n";

TEST(LoadBigram, BacksOff) {
  const TempFolder folder;
  const auto bigram = LoadBigram(folder.Write("bigram.tsv", kBigram), {"A", "B"});

  ASSERT_THAT(bigram, IsOk());
  Eigen::MatrixXd expected(3, 3);  // rows A, B, </s>; columns A, B, <s>
  expected << -1.2, -1.3, -1.1,    //
      -0.5, -2.3, -0.7,            //
      -3.2, -3.3, -3.1;
  EXPECT_TRUE(bigram->isApprox(expected, 1e-15)) << *bigram;
}

TEST(LoadBigram, RefusesWhatLacksAWord) {
  const TempFolder folder;
  EXPECT_THAT(LoadBigram(folder.Write("bigram.tsv", kBigram), {"A", "B", "C"}),
              IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("bigram.tsv"), HasSubstr("\"A\" and \"C\""))));
  EXPECT_THAT(LoadBigram(folder.Write("bigram.tsv", std::string(kBigram) + "trigram\tA\tB\t-1\n"), {"A", "B"}),
              IsError(StatusCode::kInvalidArgument, HasSubstr("line 10: kind \"trigram\"")));
  EXPECT_THAT(LoadBigram(folder.Write("bigram.tsv", std::string(kBigram) + "bigram\tA\tA\tlow\n"), {"A", "B"}),
              IsError(StatusCode::kInvalidArgument, HasSubstr("line 10: logp \"low\"")));
}

}  // namespace
}  // namespace hfopt::models
