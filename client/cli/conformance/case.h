#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_CASE_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_CASE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/cli/conformance/lab.h"

namespace hfopt::conformance {

enum class Verdict {
  kPassed,
  kWarned,  // cannot be decided from outside, or bears a look; the numbers are in the detail
  kFailed,
  kSkipped,  // does not apply to this worker, or the suite cannot do it
};

struct Outcome {
  Verdict verdict = Verdict::kPassed;
  std::string detail;  // the numbers, or the reason
};

template <typename... Parts>
Outcome Passed(const Parts&... parts) {
  return {Verdict::kPassed, absl::StrCat(parts...)};
}
template <typename... Parts>
Outcome Warned(const Parts&... parts) {
  return {Verdict::kWarned, absl::StrCat(parts...)};
}
template <typename... Parts>
Outcome Failed(const Parts&... parts) {
  return {Verdict::kFailed, absl::StrCat(parts...)};
}
template <typename... Parts>
Outcome Skipped(const Parts&... parts) {
  return {Verdict::kSkipped, absl::StrCat(parts...)};
}

// One thing that is asked of a worker.
struct Case {
  std::string name;     // "group/case"
  std::string meaning;  // what a right worker does
  // An error fails the case with its message.
  std::function<absl::StatusOr<Outcome>(Lab&)> run;
  // Whether the suite has to start the worker for it.
  bool needs_start = false;
};

// The cases, a file for each group, in the order in which they are run.
std::vector<Case> HelloCases();        // hello_cases.cc: who dials, and what is said first
std::vector<Case> VectorCases();       // vector_cases.cc: chunks, transfers, and broken ones
std::vector<Case> RequestCases();      // request_cases.cc: ids, points, windows that are none, cancel, release
std::vector<Case> WindowCases();       // window_cases.cc: which examples; sums and weights
std::vector<Case> DerivativeCases();   // derivative_cases.cc: gradient and second moment
std::vector<Case> CurvatureCases();    // curvature_cases.cc: the Gauss-Newton product
std::vector<Case> RangeCases();        // range_cases.cc: the product beside the gradients of single examples
std::vector<Case> DeterminismCases();  // determinism_cases.cc: equal questions, equal bits
std::vector<Case> SessionCases();      // session_cases.cc: leases, flow, broken streams, the end

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_CASE_H_
