#include "client/models/layers.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hfopt::models {

int64_t NumParameters(const std::vector<int64_t>& layers) {
  int64_t n = 0;
  for (size_t l = 1; l < layers.size(); ++l) n += layers[l] * (layers[l - 1] + 1);
  return n;
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
