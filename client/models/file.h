#ifndef HFOPT_CLIENT_MODELS_FILE_H_
#define HFOPT_CLIENT_MODELS_FILE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hfopt::models {

// The bytes of a file. NOT_FOUND when it cannot be opened, DATA_LOSS when it cannot be read.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// A table of tab-separated values: lines that start with '#' and empty lines are skipped, the first other line names
// the columns.
class TextTable {
 public:
  // INVALID_ARGUMENT, naming file, line and column, when a column of `columns` is missing (others may be there) or a
  // row has more or fewer fields than the header.
  static absl::StatusOr<TextTable> Read(const std::string& path, const std::vector<std::string>& columns);

  int rows() const { return static_cast<int>(rows_.size()); }
  const std::string& text(int row, const std::string& column) const { return rows_[row].fields[columns_.at(column)]; }
  // The numbers of one field, finite; INVALID_ARGUMENT naming file, line and text otherwise.
  absl::StatusOr<int64_t> Integer(int row, const std::string& column) const;
  absl::StatusOr<double> Real(int row, const std::string& column) const;

  // INVALID_ARGUMENT "file, line 12: what".
  absl::Status Error(int row, absl::string_view what) const;

 private:
  struct Row {
    int line = 0;  // counted from 1
    std::vector<std::string> fields;
  };

  std::string path_;
  std::map<std::string, int> columns_;
  std::vector<Row> rows_;
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_FILE_H_
