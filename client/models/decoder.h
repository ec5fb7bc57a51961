#ifndef HFOPT_CLIENT_MODELS_DECODER_H_
#define HFOPT_CLIENT_MODELS_DECODER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/statusor.h"
#include "client/models/acoustic_data.h"
#include "client/models/language.h"

namespace hfopt::models {

// Finds the most likely words of an utterance by Viterbi's algorithm over all paths (no beam). A path is: silence, then
// words, each followed by silence or not; a word is one of its pronunciations, a phone three states from left to right,
// each kept for one frame or more. Its score is the sum of
//     acoustic_scale * (log posterior - log prior of the state) for each frame,
//     log p for each frame that stays in its state, p its self-loop probability, and log(1 - p) for each that moves on,
//     log p(word | word before) for each word and for the end.
// For tied triphones, a phone at a word's edge takes in each frame the best of its states over all phones beyond the
// edge: an approximation that keeps words apart from their neighbours (an4-cd after 5 epochs: 13.2 % word errors;
// supposing silence beyond the edge, 17.5 %).
class Decoder {
 public:
  // `bigram` as from LoadBigram for lexicon.words; phones of the lexicon are those of `data`.
  Decoder(const AcousticData& data, AcousticTargets targets, Lexicon lexicon, Eigen::MatrixXd bigram);

  // Reads lexicon.tsv and bigram.tsv of `folder`.
  static absl::StatusOr<Decoder> Load(const std::string& folder, const AcousticData& data, AcousticTargets targets);

  // log_likelihoods: log posterior - log prior, states x frames. No words when the frames are too few for any path.
  std::vector<std::string> Decode(const Eigen::MatrixXf& log_likelihoods, double acoustic_scale) const;

 private:
  // A pronunciation or a silence: states begin .. end - 1 in a row. `word` is the last word spoken where it ends, V for
  // none.
  struct Chain {
    int begin = 0;
    int end = 0;
    int word = 0;
  };
  struct State {
    std::vector<int> outputs;  // of the network: the best counts
    double stay = 0;
    double move = 0;
  };
  // A hypothesis in one state: its score and its words, a node of a tree whose root is -1.
  struct Token;

  Chain AddChain(const AcousticData& data, AcousticTargets targets, const std::vector<int>& phones, int word);

  int num_words() const { return static_cast<int>(lexicon_.words.size()); }  // V

  Lexicon lexicon_;
  Eigen::MatrixXd bigram_;
  std::vector<State> states_;
  std::vector<Chain> pronunciations_;
  std::vector<Chain> silences_;  // after each word, and at [V] before the first
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_DECODER_H_
