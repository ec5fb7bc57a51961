#ifndef HFOPT_CLIENT_MODELS_LANGUAGE_H_
#define HFOPT_CLIENT_MODELS_LANGUAGE_H_

#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/statusor.h"

namespace hfopt::models {

struct Pronunciation {
  int word = 0;             // index into Lexicon::words
  std::vector<int> phones;  // not empty
};

struct Lexicon {
  std::vector<std::string> words;  // sorted
  std::vector<Pronunciation> pronunciations;
};

// Reads lexicon.tsv (columns word, phones); a word may have several lines. INVALID_ARGUMENT for a phone that is not in
// `phones`.
absl::StatusOr<Lexicon> LoadLexicon(const std::string& path, const std::vector<std::string>& phones);

// Reads bigram.tsv (columns kind, a, b, logp; natural logarithms): log p(b | a) is the bigram's line where there is
// one, else backoff(a) + unigram(b). Answers it for all V words, (V + 1) x (V + 1): rows b are the words and </s>,
// columns a the words and <s>. INVALID_ARGUMENT when a word of the lexicon has no unigram or no back-off.
absl::StatusOr<Eigen::MatrixXd> LoadBigram(const std::string& path, const std::vector<std::string>& words);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_LANGUAGE_H_
