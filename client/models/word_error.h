#ifndef HFOPT_CLIENT_MODELS_WORD_ERROR_H_
#define HFOPT_CLIENT_MODELS_WORD_ERROR_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hfopt::models {

// The fewest substitutions, deletions and insertions that turn `reference` into `hypothesis` (Levenshtein 1966).
int64_t WordErrors(const std::vector<std::string>& reference, const std::vector<std::string>& hypothesis);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_WORD_ERROR_H_
