#ifndef HFOPT_CLIENT_CLI_EVALUATION_H_
#define HFOPT_CLIENT_CLI_EVALUATION_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/model.h"
#include "client/models/model_factory.h"

namespace hfopt::cli {

// A result, for programs and for people.
struct Figure {
  std::string key;    // "test_word_error_rate"
  double value = 0;   // 0.142
  std::string title;  // "test word error rate"
  std::string text;   // "14.2 % (110 of 773 words)"
};

// How good a model of the task is with these parameters: of an4 and an4-cd the cross-entropy and frame error of the
// held-out and test parts and their word error rates, the decoder's acoustic scale chosen on the held-out part alone;
// of other tasks the held-out loss and metrics; of pinn-* also the error against the exact solution, of inverse also
// |m - truth| / |truth|. Takes seconds.
template <typename Scalar>
absl::StatusOr<std::vector<Figure>> Evaluate(const models::ModelSpec& spec, const client::Vector<Scalar>& theta);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_EVALUATION_H_
