#include "client/models/file.h"

#include <array>
#include <cmath>
#include <fstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/models/status_macros.h"

namespace hfopt::models {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be opened; is the data folder complete and the path right?"));
  std::string bytes;
  std::array<char, 1 << 16> buffer;
  while (file.read(buffer.data(), buffer.size()) || file.gcount() > 0) bytes.append(buffer.data(), file.gcount());
  if (file.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read; is it a file?"));
  return bytes;
}

absl::StatusOr<TextTable> TextTable::Read(const std::string& path, const std::vector<std::string>& columns) {
  HFOPT_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  TextTable table;
  table.path_ = path;
  size_t width = 0;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(bytes, '\n')) {
    ++line_number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    std::vector<std::string> fields = absl::StrSplit(line, '\t');
    if (width == 0) {
      width = fields.size();
      for (size_t c = 0; c < width; ++c) table.columns_.emplace(fields[c], c);
      for (const std::string& column : columns) {
        if (!table.columns_.contains(column)) {
          return absl::InvalidArgumentError(absl::StrCat(path, ", line ", line_number, ": no column \"", column,
                                                         "\" among the tab-separated names \"", line, "\""));
        }
      }
    } else {
      table.rows_.push_back({line_number, std::move(fields)});
      if (const size_t n = table.rows_.back().fields.size(); n != width) {
        return table.Error(table.rows() - 1, absl::StrCat(n, " tab-separated fields, but ", width, " column names"));
      }
    }
  }
  if (width == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": empty, expected a line of column names"));
  return table;
}

absl::StatusOr<int64_t> TextTable::Integer(int row, const std::string& column) const {
  int64_t value = 0;
  if (absl::SimpleAtoi(text(row, column), &value)) return value;
  return Error(row, absl::StrCat(column, " \"", text(row, column), "\" is no integer"));
}

absl::StatusOr<double> TextTable::Real(int row, const std::string& column) const {
  double value = 0;
  if (absl::SimpleAtod(text(row, column), &value) && std::isfinite(value)) return value;
  return Error(row, absl::StrCat(column, " \"", text(row, column), "\" is no finite number"));
}

absl::Status TextTable::Error(int row, absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ", line ", rows_[row].line, ": ", what));
}

}  // namespace hfopt::models
