#ifndef HFOPT_CLIENT_CLI_PROGRESS_H_
#define HFOPT_CLIENT_CLI_PROGRESS_H_

#include <ostream>
#include <string>
#include <vector>

#include "hfopt/v1/run_service.pb.h"

namespace hfopt::cli {

struct ProgressStyle {
  bool columns = false;  // a table that grows; otherwise each line explains itself
  bool colour = false;
  int width = 80;  // of the terminal, in characters
  std::string error_title = "error";

  // Columns on a terminal, colour unless NO_COLOR is set.
  static ProgressStyle Of(int file_descriptor);
};

// Shows a run while it goes on: a line for each iteration and each change of state.
class Progress {
 public:
  // `run` has every option filled in.
  Progress(std::ostream& out, ProgressStyle style, const v1::Run& run);

  void Show(const v1::WatchRunResponse& event);

 private:
  struct Cell {
    std::string title;
    std::string text;
    size_t width = 0;
    bool only_if_wide = false;
  };
  std::vector<Cell> Cells(const v1::IterationReport& report) const;
  void ShowIteration(const v1::IterationReport& report);
  void ShowState(const v1::Run& run);
  // Between escape codes, where colours are wanted.
  std::string Styled(const char* code, const std::string& text) const;

  std::ostream& out_;
  const ProgressStyle style_;
  v1::RunOptions options_;
  std::vector<v1::IterationReport> reports_;
  double seconds_ = 0;
  int rows_since_titles_ = 0;
};

// The first of the model's metrics: "38.2 %" for errors, else a number; "-" when there is none.
std::string FormatMetric(const v1::IterationReport& report);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_PROGRESS_H_
