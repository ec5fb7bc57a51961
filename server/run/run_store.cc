#include "server/run/run_store.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"

namespace hfopt::server {
namespace {

constexpr size_t kMaxRunIdBytes = 63;
constexpr absl::string_view kCollection = "runs/";

// Rejected text in a message: short and printable.
std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxShown = 80;
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kMaxShown)), text.size() > kMaxShown ? "..." : "", "'");
}

}  // namespace

absl::Status CheckRunId(absl::string_view run_id) {
  const auto is_allowed = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-'; };
  if (!run_id.empty() && run_id.size() <= kMaxRunIdBytes && absl::ascii_islower(run_id[0]) &&
      std::all_of(run_id.begin(), run_id.end(), is_allowed)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("run_id is ", Quoted(run_id), "; allowed: 1 to ", kMaxRunIdBytes,
                                                 " of a-z, 0-9 and -, beginning with a letter"));
}

absl::StatusOr<std::string> RunIdFromName(absl::string_view name) {
  absl::string_view run_id = name;
  if (!absl::ConsumePrefix(&run_id, kCollection) || !CheckRunId(run_id).ok()) {
    return absl::InvalidArgumentError(absl::StrCat("name is ", Quoted(name), "; allowed: ", kCollection,
                                                   "{run_id}, where run_id is 1 to ", kMaxRunIdBytes,
                                                   " of a-z, 0-9 and -, beginning with a letter"));
  }
  return std::string(run_id);
}

}  // namespace hfopt::server
