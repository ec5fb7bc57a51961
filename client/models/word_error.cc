#include "client/models/word_error.h"

#include <algorithm>
#include <numeric>

namespace hfopt::models {

int64_t WordErrors(const std::vector<std::string>& reference, const std::vector<std::string>& hypothesis) {
  // errors[j]: from the reference read so far to the first j words of the hypothesis.
  std::vector<int64_t> errors(hypothesis.size() + 1);
  std::iota(errors.begin(), errors.end(), 0);
  for (const std::string& word : reference) {
    int64_t diagonal = errors[0]++;
    for (size_t j = 1; j < errors.size(); ++j) {
      const int64_t substitution = diagonal + (word == hypothesis[j - 1] ? 0 : 1);
      diagonal = errors[j];
      errors[j] = std::min({substitution, errors[j] + 1, errors[j - 1] + 1});
    }
  }
  return errors.back();
}

}  // namespace hfopt::models
