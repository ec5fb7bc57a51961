#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_SUITE_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_SUITE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/conformance/case.h"
#include "client/cli/conformance/lab.h"

namespace hfopt::conformance {

// All cases in the order in which they are run.
std::vector<Case> AllCases();

// Those whose name has one of `patterns` in it, where * stands for anything; all of them without a pattern.
std::vector<Case> SelectCases(const std::vector<std::string>& patterns);

struct CaseResult {
  Case tested;
  Outcome outcome;
  absl::Duration time;
};

// Runs the cases one after the other. After each, `on_result` is told; when it answers false, no more are run.
std::vector<CaseResult> RunCases(const std::vector<Case>& cases, Lab& lab,
                                 const std::function<bool(const CaseResult&)>& on_result);

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_SUITE_H_
