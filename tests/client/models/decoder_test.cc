#include "client/models/decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "client/cpp/shuffle.h"
#include "client/models/initialization.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"
#include "tests/client/models/test_files.h"

namespace hfopt::models {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Words = std::vector<std::string>;

constexpr AcousticTargets kMono = AcousticTargets::kMonophone;
constexpr AcousticTargets kTied = AcousticTargets::kTiedTriphone;

// Phones SIL, X and Y; words A (X), B (Y or X Y) and C (Y X); 13 tied states; all probabilities a function of the seed.
struct TinyTask {
  explicit TinyTask(uint64_t seed) {
    client::SplitMix64 generator(seed);
    data.phones = {"SIL", "X", "Y"};
    for (int i = 0; i < 9; ++i) data.self_loop.push_back(0.1 + 0.8 * Uniform(generator));
    for (int i = 0; i < 9 * 3 * 3; ++i) data.tied_states.push_back(static_cast<uint16_t>(generator.Below(13)));
    lexicon = {{"A", "B", "C"}, {{0, {1}}, {1, {2}}, {1, {1, 2}}, {2, {2, 1}}}};
    bigram = Eigen::MatrixXd(4, 4);
    for (double& logp : bigram.reshaped()) logp = -3 * Uniform(generator);
  }

  AcousticData data;
  Lexicon lexicon;
  Eigen::MatrixXd bigram;
};

// Tries every path: which state each frame is in, and which words were begun when.
class BruteForce {
 public:
  BruteForce(const TinyTask& task, AcousticTargets targets, const Eigen::MatrixXf& scores, double scale)
      : task_(task), targets_(targets), scores_(scores), scale_(scale) {
    Enter({0}, 3, true, true, 0, 0);
  }

  const Words& words() const { return best_words_; }
  double lead() const { return best_ - second_; }  // over the best path with other words

 private:
  // Walks through the states of `phones` from `frame` on. `word` was spoken last, or is being spoken; 3: none.
  void Enter(const std::vector<int>& phones, int word, bool is_silence, bool first, int64_t frame, double score) {
    InState(phones, word, is_silence, first, 0, frame, score);
  }

  void InState(const std::vector<int>& phones, int word, bool is_silence, bool first, size_t state, int64_t frame,
               double score) {
    if (frame == scores_.cols()) return;
    score += scale_ * Emission(phones, state, frame);
    const double stay = task_.data.self_loop[3 * phones[state / 3] + state % 3];
    InState(phones, word, is_silence, first, state, frame + 1, score + std::log(stay));
    if (state + 1 < 3 * phones.size()) {
      InState(phones, word, is_silence, first, state + 1, frame + 1, score + std::log(1 - stay));
      return;
    }
    if (frame + 1 == scores_.cols()) Finish(score + task_.bigram(3, word));
    if (!is_silence) Enter({0}, word, true, false, frame + 1, score + std::log(1 - stay));
    for (const Pronunciation& p : task_.lexicon.pronunciations) {
      spoken_.push_back(task_.lexicon.words[p.word]);
      Enter(p.phones, p.word, false, false, frame + 1, score + std::log(1 - stay) + task_.bigram(p.word, word));
      spoken_.pop_back();
    }
  }

  double Emission(const std::vector<int>& phones, size_t state, int64_t frame) const {
    const size_t i = state / 3;
    const int monophone = static_cast<int>(3 * phones[i] + state % 3);
    if (targets_ == kMono) return scores_(monophone, frame);
    double best = -std::numeric_limits<double>::infinity();
    for (int left = 0; left < 3; ++left) {
      for (int right = 0; right < 3; ++right) {
        if ((i > 0 && phones[i - 1] != left) || (i + 1 < phones.size() && phones[i + 1] != right)) continue;
        best = std::max<double>(best, scores_(task_.data.tied_states[(monophone * 3 + left) * 3 + right], frame));
      }
    }
    return best;
  }

  void Finish(double score) {
    if (score > best_) {
      if (spoken_ != best_words_) second_ = best_;
      best_ = score;
      best_words_ = spoken_;
    } else if (spoken_ != best_words_) {
      second_ = std::max(second_, score);
    }
  }

  const TinyTask& task_;
  const AcousticTargets targets_;
  const Eigen::MatrixXf& scores_;
  const double scale_;
  Words spoken_, best_words_;
  double best_ = -std::numeric_limits<double>::infinity();
  double second_ = -std::numeric_limits<double>::infinity();
};

TEST(Decoder, FindsTheBestOfAllPaths) {
  int64_t words = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (const AcousticTargets targets : {kMono, kTied}) {
      const TinyTask task(seed);
      client::SplitMix64 generator(1000 + seed);
      const int64_t frames = 3 + static_cast<int64_t>(seed % 10);
      Eigen::MatrixXf scores(13, frames);
      for (float& s : scores.reshaped()) s = static_cast<float>(4 * Normal(generator));
      const double scale = 0.25 + Uniform(generator);
      const Decoder decoder(task.data, targets, task.lexicon, task.bigram);
      const BruteForce best(task, targets, scores, scale);
      if (best.lead() < 1e-9) continue;

      EXPECT_EQ(decoder.Decode(scores, scale), best.words()) << seed;
      words += static_cast<int64_t>(best.words().size());
    }
  }
  EXPECT_GT(words, 50);  // the test is about something
}

TEST(Decoder, TooFewFramesHaveNoWords) {
  const TinyTask task(1);
  const Decoder decoder(task.data, kMono, task.lexicon, task.bigram);
  for (int frames = 0; frames <= 3; ++frames)
    EXPECT_THAT(decoder.Decode(Eigen::MatrixXf::Zero(9, frames), 1), IsEmpty());
}

TEST(Decoder, FollowsClearFrames) {
  TinyTask task(1);
  const Decoder decoder(task.data, kMono, task.lexicon, task.bigram);
  const std::vector<int> path = {0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7, 8, 3, 4, 5};  // SIL, A, SIL, C
  Eigen::MatrixXf scores = Eigen::MatrixXf::Constant(9, 30, -100);
  for (int t = 0; t < 30; ++t) scores(path[t / 2], t) = 0;

  EXPECT_THAT(decoder.Decode(scores, 1), ElementsAre("A", "C"));
}

TEST(Decoder, LoadNamesTheFileThatIsWrong) {
  const TempFolder folder;
  const TinyTask task(1);
  EXPECT_THAT(Decoder::Load(folder.path(), task.data, kMono),
              IsError(absl::StatusCode::kNotFound, HasSubstr("lexicon.tsv")));
  folder.Write("lexicon.tsv", "word\tphones\nA\tX\n");
  EXPECT_THAT(Decoder::Load(folder.path(), task.data, kMono),
              IsError(absl::StatusCode::kNotFound, HasSubstr("bigram.tsv")));
  folder.Write("bigram.tsv", "kind\ta\tb\tlogp\n");
  EXPECT_THAT(Decoder::Load(folder.path(), task.data, kMono),
              IsError(absl::StatusCode::kInvalidArgument, HasSubstr("bigram.tsv")));
}

}  // namespace
}  // namespace hfopt::models
