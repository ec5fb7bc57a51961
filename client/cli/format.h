#ifndef HFOPT_CLIENT_CLI_FORMAT_H_
#define HFOPT_CLIENT_CLI_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/generated_enum_reflection.h"
#include "google/protobuf/message.h"
#include "google/protobuf/timestamp.pb.h"

namespace hfopt::cli {

enum class OutputFormat { kTable, kJson };

// A message as protobuf JSON, fields by their names in the proto files, zeros included. One line, or indented.
enum class JsonStyle { kIndented, kLine };
std::string ToJson(const google::protobuf::Message& message, JsonStyle style = JsonStyle::kIndented);

// Text in aligned columns.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // cells.size() == number of columns.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  // A line for the titles, unless all are empty, and one for each row.
  std::string ToString() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

std::string PadLeft(absl::string_view text, size_t width);
std::string PadRight(absl::string_view text, size_t width);

std::string FormatLoss(double loss);                              // "1.2346"
std::string FormatSeconds(double seconds);                        // "0.42 s", "12.3 s", "4 min 05 s", "2 h 13 min"
std::string FormatClock(double seconds);                          // "0:42", "12:05", "1:02:03"
std::string FormatPercent(double share);                          // "12.3 %"
std::string FormatCount(uint64_t count);                          // "226,554"
std::string FormatBytes(uint64_t bytes);                          // "12.8 MB"
std::string FormatTime(const google::protobuf::Timestamp& time);  // local: "2024-05-03 17:20:01"

// "RUN_STATE_WAITING_FOR_WORKERS" -> "waiting for workers": without the enum's prefix, in small letters. The value's
// number when it is of a later version.
std::string FormatEnum(const google::protobuf::EnumDescriptor& type, int value);
template <typename Enum>
std::string FormatEnum(Enum value) {
  return FormatEnum(*google::protobuf::GetEnumDescriptor<Enum>(), value);
}

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_FORMAT_H_
