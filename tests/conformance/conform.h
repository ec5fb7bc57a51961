#ifndef HFOPT_TESTS_CONFORMANCE_CONFORM_H_
#define HFOPT_TESTS_CONFORMANCE_CONFORM_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/conformance/suite.h"
#include "gtest/gtest.h"
#include "tests/conformance/thread_worker.h"

namespace hfopt::conformance {

// What the suite says of a worker, by case, with limits that suit small models in threads.
inline std::map<std::string, Outcome> Conform(ThreadWorker::MakeService make, const std::vector<std::string>& only,
                                              absl::Duration timeout = absl::Seconds(30)) {
  auto server = WireServer::Listen("127.0.0.1:0", "conformance");
  EXPECT_TRUE(server.ok()) << server.status();
  ThreadWorker worker(std::move(make));
  Lab lab(**server, worker, {.examples = 12, .timeout = timeout, .quiet = absl::Milliseconds(50)});
  std::map<std::string, Outcome> outcomes;
  RunCases(SelectCases(only), lab, [&](const CaseResult& result) {
    outcomes[result.tested.name] = result.outcome;
    return true;
  });
  return outcomes;
}

inline std::string Print(const std::map<std::string, Outcome>& outcomes, Verdict verdict) {
  std::string text;
  for (const auto& [name, outcome] : outcomes) {
    if (outcome.verdict == verdict) absl::StrAppend(&text, name, ": ", outcome.detail, "\n");
  }
  return text;
}

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_CONFORM_H_
