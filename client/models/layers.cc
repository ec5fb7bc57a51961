#include "client/models/layers.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hfopt::models {

int64_t NumParameters(const std::vector<int64_t>& layers) {
  int64_t n = 0;
  for (size_t l = 1; l < layers.size(); ++l) n += layers[l] * (layers[l - 1] + 1);
  return n;
}

absl::Status CheckTheta(absl::string_view model, const std::vector<int64_t>& layers, int64_t theta_size) {
  if (theta_size == NumParameters(layers)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(model, " ", absl::StrJoin(layers, "-"), ": theta has ", theta_size,
                                                 " elements, the model has ", NumParameters(layers), " parameters"));
}

absl::Status CheckExamples(absl::string_view model, const client::Examples& examples, int64_t num_examples) {
  for (const client::IndexRange& r : examples.ranges) {
    if (0 <= r.begin && r.begin <= r.end && r.end <= num_examples) continue;
    return absl::OutOfRangeError(absl::StrCat(model, ": examples ", r.begin, " to ", r.end, " were asked for, the ",
                                              examples.data == client::DataSet::kTraining ? "training" : "held-out",
                                              " data have ", num_examples,
                                              "; do all workers and the server use the same data?"));
  }
  return absl::OkStatus();
}

absl::Status CheckWidths(absl::string_view model, const std::vector<int64_t>& layers) {
  for (const int64_t width : layers) {
    if (1 <= width && width <= 1'000'000) continue;
    return absl::InvalidArgumentError(absl::StrCat(model, ": layers has the width ", width, " in ",
                                                   absl::StrJoin(layers, "-"), "; allowed is 1 to 1000000"));
  }
  return absl::OkStatus();
}

}  // namespace hfopt::models
