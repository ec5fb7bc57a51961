#include "client/models/checks.h"

#include "absl/strings/str_cat.h"
#include "client/models/status_macros.h"

namespace hfopt::models {

template <typename Scalar>
absl::Status CheckSize(const client::Model<Scalar>& model, absl::string_view what, int64_t elements) {
  if (elements == model.num_parameters()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(model.signature(), ": ", what, " has ", elements,
                                                 " elements, the model has ", model.num_parameters(), " parameters"));
}

template <typename Scalar>
absl::Status CheckArguments(const client::Model<Scalar>& model, int64_t elements_of_theta,
                            const client::Examples& examples) {
  HFOPT_RETURN_IF_ERROR(CheckSize(model, "theta", elements_of_theta));
  for (const client::IndexRange& r : examples.ranges) {
    if (!(0 <= r.begin && r.begin <= r.end && r.end <= model.num_examples(examples.data))) {
      return absl::OutOfRangeError(
          absl::StrCat(model.signature(), ": examples ", r.begin, " to ", r.end, " were asked for, the ",
                       examples.data == client::DataSet::kTraining ? "training" : "held-out", " data have ",
                       model.num_examples(examples.data), "; do all workers and the server use the same data?"));
    }
  }
  return absl::OkStatus();
}

template absl::Status CheckSize(const client::Model<float>&, absl::string_view, int64_t);
template absl::Status CheckSize(const client::Model<double>&, absl::string_view, int64_t);
template absl::Status CheckArguments(const client::Model<float>&, int64_t, const client::Examples&);
template absl::Status CheckArguments(const client::Model<double>&, int64_t, const client::Examples&);

}  // namespace hfopt::models
