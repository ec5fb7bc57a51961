#ifndef HFOPT_CLIENT_MODELS_CHECKS_H_
#define HFOPT_CLIENT_MODELS_CHECKS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/cpp/model.h"

namespace hfopt::models {

// INVALID_ARGUMENT when `what` ("theta", "direction") has not as many elements as the model has parameters.
template <typename Scalar>
absl::Status CheckSize(const client::Model<Scalar>& model, absl::string_view what, int64_t elements);

// What every evaluation asks first: INVALID_ARGUMENT when theta has not n elements, OUT_OF_RANGE when an example is not
// in the model's data.
template <typename Scalar>
absl::Status CheckArguments(const client::Model<Scalar>& model, int64_t elements_of_theta,
                            const client::Examples& examples);

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_CHECKS_H_
