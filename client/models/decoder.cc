#include "client/models/decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "client/models/status_macros.h"

namespace hfopt::models {
namespace {

constexpr double kImpossible = -std::numeric_limits<double>::infinity();
constexpr int kSilence = 0;  // phone
constexpr int kNoWords = -1;

// The network's outputs for state k of phone i of a word. Only a tied triphone at an edge of the word has more than
// one.
std::vector<int> Outputs(const AcousticData& data, AcousticTargets targets, const std::vector<int>& phones, size_t i,
                         int k) {
  const int monophone = AcousticData::kStatesPerPhone * phones[i] + k;
  if (targets == AcousticTargets::kMonophone) return {monophone};
  std::vector<int> any(data.phones.size());
  std::iota(any.begin(), any.end(), 0);
  const std::vector<int> lefts = i > 0 ? std::vector<int>{phones[i - 1]} : any;
  const std::vector<int> rights = i + 1 < phones.size() ? std::vector<int>{phones[i + 1]} : any;
  std::set<int> outputs;
  for (const int left : lefts) {
    for (const int right : rights) {
      outputs.insert(data.tied_states[(monophone * any.size() + left) * any.size() + right]);
    }
  }
  return {outputs.begin(), outputs.end()};
}

}  // namespace

struct Decoder::Token {
  double score = kImpossible;
  int words = kNoWords;

  void Improve(const Token& other) {
    if (other.score > score) *this = other;
  }
  Token operator+(double log_probability) const { return {score + log_probability, words}; }
};

Decoder::Decoder(const AcousticData& data, AcousticTargets targets, Lexicon lexicon, Eigen::MatrixXd bigram)
    : lexicon_(std::move(lexicon)), bigram_(std::move(bigram)) {
  for (const Pronunciation& p : lexicon_.pronunciations) {
    pronunciations_.push_back(AddChain(data, targets, p.phones, p.word));
  }
  for (int word = 0; word <= num_words(); ++word) silences_.push_back(AddChain(data, targets, {kSilence}, word));
}

absl::StatusOr<Decoder> Decoder::Load(const std::string& folder, const AcousticData& data, AcousticTargets targets) {
  HFOPT_ASSIGN_OR_RETURN(Lexicon lexicon, LoadLexicon(folder + "/lexicon.tsv", data.phones));
  HFOPT_ASSIGN_OR_RETURN(Eigen::MatrixXd bigram, LoadBigram(folder + "/bigram.tsv", lexicon.words));
  return Decoder(data, targets, std::move(lexicon), std::move(bigram));
}

Decoder::Chain Decoder::AddChain(const AcousticData& data, AcousticTargets targets, const std::vector<int>& phones,
                                 int word) {
  const int begin = static_cast<int>(states_.size());
  for (size_t i = 0; i < phones.size(); ++i) {
    for (int k = 0; k < AcousticData::kStatesPerPhone; ++k) {
      const double stay = data.self_loop[AcousticData::kStatesPerPhone * phones[i] + k];
      states_.push_back({Outputs(data, targets, phones, i, k), std::log(stay), std::log1p(-stay)});
    }
  }
  return {begin, static_cast<int>(states_.size()), word};
}

std::vector<std::string> Decoder::Decode(const Eigen::MatrixXf& log_likelihoods, double acoustic_scale) const {
  struct Node {
    int word;
    int before;
  };
  const int V = num_words();
  std::vector<Node> word_tree;
  std::vector<Token> tokens(states_.size());
  std::vector<Token> ends(V), histories(V + 1), entries(V);

  // The token of the frame before that leaves the chain, or that may end there.
  const auto last = [&](const Chain& chain) { return tokens[chain.end - 1]; };
  const auto leaving = [&](const Chain& chain) { return last(chain) + states_[chain.end - 1].move; };
  const auto log_likelihood = [&](const State& state, int64_t frame) {
    float best = log_likelihoods(state.outputs[0], frame);
    for (const int output : state.outputs) best = std::max(best, log_likelihoods(output, frame));
    return best;
  };
  // One frame further in all states, the last first: each takes the better of staying and coming from the state before.
  const auto advance = [&](const Chain& chain, const Token& entry, int64_t frame) {
    for (int s = chain.end - 1; s >= chain.begin; --s) {
      Token token = s == chain.begin ? entry : tokens[s - 1] + states_[s - 1].move;
      token.Improve(tokens[s] + states_[s].stay);
      tokens[s] = token + acoustic_scale * log_likelihood(states_[s], frame);
    }
  };

  if (log_likelihoods.cols() == 0) return {};
  advance(silences_[V], {.score = 0}, 0);
  for (int64_t frame = 1; frame < log_likelihoods.cols(); ++frame) {
    // Words that end, with silence after them or not; `histories` by the last word.
    ends.assign(V, {});
    for (const Chain& p : pronunciations_) ends[p.word].Improve(leaving(p));
    for (int word = 0; word <= V; ++word) {
      histories[word] = leaving(silences_[word]);
      if (word < V) histories[word].Improve(ends[word]);
    }
    // Words that begin. Each that is possible is a node of the tree.
    for (int word = 0; word < V; ++word) {
      entries[word] = {};
      for (int before = 0; before <= V; ++before) entries[word].Improve(histories[before] + bigram_(word, before));
      if (entries[word].score == kImpossible) continue;
      word_tree.push_back({word, entries[word].words});
      entries[word].words = static_cast<int>(word_tree.size()) - 1;
    }
    for (const Chain& p : pronunciations_) advance(p, entries[p.word], frame);
    for (int word = 0; word <= V; ++word) advance(silences_[word], word < V ? ends[word] : Token{}, frame);
  }

  Token best;
  for (const std::vector<Chain>* chains : {&pronunciations_, &silences_}) {
    for (const Chain& chain : *chains) best.Improve(last(chain) + bigram_(V, chain.word));
  }
  std::vector<std::string> words;
  for (int node = best.words; node != kNoWords; node = word_tree[node].before) {
    words.push_back(lexicon_.words[word_tree[node].word]);
  }
  std::reverse(words.begin(), words.end());
  return words;
}

}  // namespace hfopt::models
