#include "client/cli/format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "google/protobuf/util/json_util.h"

namespace hfopt::cli {

std::string ToJson(const google::protobuf::Message& message, JsonStyle style) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = style == JsonStyle::kIndented;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails only for a malformed Any or Timestamp, which our messages do not hold.
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return std::string(absl::StripTrailingAsciiWhitespace(json));
}

std::string PadLeft(absl::string_view text, size_t width) {
  return absl::StrCat(std::string(width - std::min(width, text.size()), ' '), text);
}

std::string PadRight(absl::string_view text, size_t width) {
  return absl::StrCat(text, std::string(width - std::min(width, text.size()), ' '));
}

std::string Table::ToString() const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);
  std::vector<const std::vector<std::string>*> lines;
  if (std::any_of(titles.begin(), titles.end(), [](const auto& t) { return !t.empty(); })) lines.push_back(&titles);
  for (const auto& row : rows_) lines.push_back(&row);

  std::vector<size_t> widths(columns_.size());
  for (const auto* line : lines) {
    for (size_t c = 0; c < widths.size(); ++c) widths[c] = std::max(widths[c], (*line)[c].size());
  }
  std::string text;
  for (const auto* line : lines) {
    std::string out;
    for (size_t c = 0; c < widths.size(); ++c) {
      const bool right = columns_[c].align == Align::kRight;
      absl::StrAppend(&out, c == 0 ? "" : "  ",
                      right ? PadLeft((*line)[c], widths[c]) : PadRight((*line)[c], widths[c]));
    }
    absl::StrAppend(&text, absl::StripTrailingAsciiWhitespace(out), "\n");
  }
  return text;
}

std::string FormatLoss(double loss) {
  // Four decimals where they say enough; five digits for the small losses of least squares, and for the large.
  const double size = std::abs(loss);
  return (0.1 <= size && size < 1e4) || size == 0 ? absl::StrFormat("%.4f", loss) : absl::StrFormat("%.5g", loss);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 1) return absl::StrFormat("%.2f s", seconds);
  if (seconds < 99.95) return absl::StrFormat("%.1f s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  return absl::StrFormat("%d h %02d min", whole / 3600, whole / 60 % 60);
}

std::string FormatClock(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string FormatPercent(double share) { return absl::StrFormat("%.1f %%", 100 * share); }

std::string FormatCount(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (int i = static_cast<int>(text.size()) - 3; i > 0; i -= 3) text.insert(i, 1, ',');
  return text;
}

std::string FormatBytes(uint64_t bytes) {
  const char* unit = "B";
  double value = static_cast<double>(bytes);
  for (const char* next : {"kB", "MB", "GB", "TB"}) {
    if (value < 1000) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat("%.*f %s", *unit == 'B' ? 0 : 1, value, unit);
}

std::string FormatTime(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(time.seconds()), absl::LocalTimeZone());
}

std::string FormatEnum(const google::protobuf::EnumDescriptor& type, int value) {
  const google::protobuf::EnumValueDescriptor* const found = type.FindValueByNumber(value);
  if (found == nullptr) return absl::StrCat(value);
  absl::string_view name = found->name();
  absl::ConsumePrefix(&name, absl::StripSuffix(type.FindValueByNumber(0)->name(), "UNSPECIFIED"));
  return absl::AsciiStrToLower(absl::StrReplaceAll(name, {{"_", " "}}));
}

}  // namespace hfopt::cli
