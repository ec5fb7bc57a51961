#include "client/cli/conformance/suite.h"

#include <fnmatch.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace hfopt::conformance {
namespace {

// A worker that the suite started is killed with its WorkerUnderTest; another one is told that it may stop.
void SayFarewell(Lab& lab) {
  if (!lab.worker().can_start() && lab.Session().ok()) {
    const std::unique_ptr<Dialogue> session = lab.TakeSession();
    v1::SessionResponse message;
    message.mutable_finished()->set_reason("CHECKED");
    message.mutable_finished()->set_detail("hfopt conformance has ended");
    session->Send(message);
    session->wire().Close(absl::OkStatus());
    session->wire().AwaitEnd(absl::Now() + absl::Seconds(5));
  }
  lab.HangUp();
}

}  // namespace

std::vector<Case> AllCases() {
  std::vector<Case> all;
  for (const auto group : {HelloCases, VectorCases, RequestCases, WindowCases, DerivativeCases, CurvatureCases,
                           RangeCases, DeterminismCases, SessionCases}) {
    for (Case& one : group()) all.push_back(std::move(one));
  }
  return all;
}

std::vector<Case> SelectCases(const std::vector<std::string>& patterns) {
  std::vector<Case> cases = AllCases();
  if (patterns.empty()) return cases;
  std::erase_if(cases, [&](const Case& one) {
    return std::none_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
      return fnmatch(absl::StrCat("*", pattern, "*").c_str(), one.name.c_str(), 0) == 0;
    });
  });
  return cases;
}

std::vector<CaseResult> RunCases(const std::vector<Case>& cases, Lab& lab,
                                 const std::function<bool(const CaseResult&)>& on_result) {
  std::vector<CaseResult> results;
  for (const Case& one : cases) {
    const absl::Time begin = absl::Now();
    CaseResult result{.tested = one};
    if (one.needs_start && !lab.worker().can_start()) {
      result.outcome = Skipped("the suite has to start the worker: hfopt conformance -- COMMAND");
    } else {
      const absl::StatusOr<Outcome> outcome = one.run(lab);
      result.outcome = outcome.ok() ? *outcome : Failed(outcome.status().message());
      if (result.outcome.verdict == Verdict::kFailed) {
        // What is wrong with one case must not spoil the next.
        if (lab.worker().can_start()) {
          if (const auto exit = lab.worker().AwaitExit(absl::Milliseconds(100)); exit && exit->code != 128 + 9) {
            if (!absl::StrContains(result.outcome.detail, "exit code") &&
                !absl::StrContains(result.outcome.detail, "signal")) {
              absl::StrAppend(&result.outcome.detail, "; the worker ", Describe(*exit));
            }
          }
          lab.HangUp();
          lab.worker().Kill();
        } else {
          lab.HangUp();
        }
      } else {
        lab.ReleaseResidents();
      }
    }
    result.time = absl::Now() - begin;
    results.push_back(result);
    if (!on_result(results.back())) break;
  }
  SayFarewell(lab);
  return results;
}

}  // namespace hfopt::conformance
