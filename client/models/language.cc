#include "client/models/language.h"

#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/models/file.h"
#include "client/models/status_macros.h"

namespace hfopt::models {

absl::StatusOr<Lexicon> LoadLexicon(const std::string& path, const std::vector<std::string>& phones) {
  HFOPT_ASSIGN_OR_RETURN(const TextTable table, TextTable::Read(path, {"word", "phones"}));
  std::map<std::string, int> phone_index, word_index;
  for (const std::string& phone : phones) phone_index.emplace(phone, phone_index.size());
  for (int row = 0; row < table.rows(); ++row) word_index[table.text(row, "word")] = 0;
  Lexicon lexicon;
  for (auto& [word, index] : word_index) {
    index = static_cast<int>(lexicon.words.size());
    lexicon.words.push_back(word);
  }
  for (int row = 0; row < table.rows(); ++row) {
    Pronunciation pronunciation{.word = word_index[table.text(row, "word")]};
    for (const std::string& phone :
         std::vector<std::string>(absl::StrSplit(table.text(row, "phones"), ' ', absl::SkipEmpty()))) {
      const auto found = phone_index.find(phone);
      if (found == phone_index.end()) {
        return table.Error(row, absl::StrCat("phone \"", phone, "\" is not among those of targets.tsv"));
      }
      pronunciation.phones.push_back(found->second);
    }
    if (pronunciation.phones.empty()) return table.Error(row, "a word without phones");
    lexicon.pronunciations.push_back(std::move(pronunciation));
  }
  if (lexicon.words.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": has no words"));
  return lexicon;
}

absl::StatusOr<Eigen::MatrixXd> LoadBigram(const std::string& path, const std::vector<std::string>& words) {
  HFOPT_ASSIGN_OR_RETURN(const TextTable table, TextTable::Read(path, {"kind", "a", "b", "logp"}));
  std::map<std::string, double> unigram, backoff;
  std::map<std::pair<std::string, std::string>, double> bigram;
  for (int row = 0; row < table.rows(); ++row) {
    HFOPT_ASSIGN_OR_RETURN(const double logp, table.Real(row, "logp"));
    const std::string &kind = table.text(row, "kind"), &a = table.text(row, "a"), &b = table.text(row, "b");
    if (kind == "unigram") {
      unigram[b] = logp;
    } else if (kind == "backoff") {
      backoff[a] = logp;
    } else if (kind == "bigram") {
      bigram[{a, b}] = logp;
    } else {
      return table.Error(row, absl::StrCat("kind \"", kind, "\"; expected unigram, backoff or bigram"));
    }
  }
  std::vector<std::string> previous = words, next = words;
  previous.push_back("<s>");
  next.push_back("</s>");
  Eigen::MatrixXd log_probability(next.size(), previous.size());
  for (size_t a = 0; a < previous.size(); ++a) {
    for (size_t b = 0; b < next.size(); ++b) {
      if (const auto found = bigram.find({previous[a], next[b]}); found != bigram.end()) {
        log_probability(b, a) = found->second;
      } else if (!backoff.contains(previous[a]) || !unigram.contains(next[b])) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": has neither a bigram of \"", previous[a], "\" and \"",
                                                       next[b],
                                                       "\" nor a back-off of the first and a unigram of the second"));
      } else {
        log_probability(b, a) = backoff[previous[a]] + unigram[next[b]];
      }
    }
  }
  return log_probability;
}

}  // namespace hfopt::models
