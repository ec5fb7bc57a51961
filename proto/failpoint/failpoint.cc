#include "proto/failpoint/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace hfopt::failpoint {
namespace {

constexpr size_t kNumPoints = std::size(kPoints);

enum class Action { kCrash, kStop, kSleep, kError, kPrint };

struct Rule {
  std::optional<size_t> point;    // none: all
  std::optional<uint64_t> passage;  // none: every one
  Action action = Action::kPrint;
  std::string text;  // as it was written
  int milliseconds = 0;
  absl::StatusCode code = absl::StatusCode::kInternal;
};

absl::StatusOr<absl::StatusCode> CodeOf(absl::string_view name) {
  for (int code = 1; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
    if (absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) == name) return static_cast<absl::StatusCode>(code);
  }
  return absl::InvalidArgumentError(absl::StrCat(name, " is no status code"));
}

absl::StatusOr<Rule> ParseRule(absl::string_view text) {
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("failpoint rule \"", text, "\": ", why));
  };
  const std::vector<absl::string_view> sides = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (sides.size() != 2) return refuse("it is not NAME=ACTION");
  Rule rule;
  bool can_fail = false;
  if (sides[0] != "*") {
    for (size_t i = 0; i < kNumPoints; ++i) {
      if (absl::string_view(kPoints[i].name.data(), kPoints[i].name.size()) == sides[0]) rule.point = i;
    }
    if (!rule.point.has_value()) return refuse("there is no failpoint of this name");
    can_fail = kPoints[*rule.point].can_fail;
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(sides[1], '@');
  if (parts.size() > 1) {
    uint64_t passage = 0;
    if (parts.size() > 2 || !absl::SimpleAtoi(parts[1], &passage) || passage == 0) return refuse("@ needs a number from 1 on");
    rule.passage = passage;
  }
  rule.text = std::string(parts[0]);
  absl::string_view action = parts[0], argument;
  if (const size_t open = action.find('('); open != absl::string_view::npos) {
    argument = action.substr(open + 1);
    if (!absl::ConsumeSuffix(&argument, ")")) return refuse("a ) is missing");
    action = action.substr(0, open);
  }
  if (action == "sleep") {
    rule.action = Action::kSleep;
    if (!absl::SimpleAtoi(argument, &rule.milliseconds) || rule.milliseconds < 0) return refuse("sleep needs milliseconds");
    return rule;
  }
  if (action == "error") {
    rule.action = Action::kError;
    if (!can_fail) return refuse("this place cannot fail");
    if (argument.empty()) return rule;
    const absl::StatusOr<absl::StatusCode> code = CodeOf(argument);
    if (!code.ok()) return refuse(code.status().message());
    rule.code = *code;
    return rule;
  }
  if (!argument.empty()) return refuse("this action takes no argument");
  if (action == "crash") {
    rule.action = Action::kCrash;
  } else if (action == "stop") {
    rule.action = Action::kStop;
  } else if (action != "print") {
    return refuse("the actions are crash, stop, sleep(MS), error, error(CODE) and print");
  }
  return rule;
}

absl::StatusOr<std::vector<Rule>> ParseRules(absl::string_view text) {
  std::vector<Rule> rules;
  for (const absl::string_view part : absl::StrSplit(text, ';', absl::SkipWhitespace())) {
    absl::StatusOr<Rule> rule = ParseRule(part);
    if (!rule.ok()) return rule.status();
    rules.push_back(*std::move(rule));
  }
  return rules;
}

class Registry {
 public:
  absl::Status Configure(absl::string_view text) {
    absl::StatusOr<std::vector<Rule>> rules = ParseRules(text);
    if (!rules.ok()) return rules.status();
    absl::MutexLock lock(&mu_);
    rules_ = *std::move(rules);
    passages_.fill(0);
    armed_ = !rules_.empty();
    return absl::OkStatus();
  }

  // The rules for this passage.
  std::vector<Rule> Pass(size_t point) {
    std::vector<Rule> rules;
    if (!armed_) return rules;
    absl::MutexLock lock(&mu_);
    const uint64_t passage = ++passages_[point];
    for (const Rule& rule : rules_) {
      if (rule.point.value_or(point) == point && rule.passage.value_or(passage) == passage) rules.push_back(rule);
    }
    return rules;
  }

 private:
  std::atomic<bool> armed_ = false;
  absl::Mutex mu_;
  std::vector<Rule> rules_ ABSL_GUARDED_BY(mu_);
  std::array<uint64_t, kNumPoints> passages_ ABSL_GUARDED_BY(mu_) = {};
};

// Never destroyed: threads may pass failpoints until the end of the process.
Registry& TheRegistry() {
  static Registry& registry = *[] {
    auto* const made = new Registry;
    const char* const rules = std::getenv("HFOPT_FAILPOINTS");
    if (const absl::Status status = made->Configure(rules == nullptr ? "" : rules); !status.ok()) {
      fprintf(stderr, "HFOPT_FAILPOINTS: %s\n", std::string(status.message()).c_str());
      std::_Exit(2);
    }
    return made;
  }();
  return registry;
}

const bool configured_at_start = (TheRegistry(), true);

}  // namespace

absl::Status Pass(size_t point) {
  absl::Status status;
  for (const Rule& rule : TheRegistry().Pass(point)) {
    const absl::string_view name(kPoints[point].name.data(), kPoints[point].name.size());
    const std::string line = absl::StrCat("failpoint ", name, ": ", rule.text, "\n");
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) std::_Exit(2);
    switch (rule.action) {
      case Action::kCrash:
        raise(SIGKILL);
        while (true) pause();
      case Action::kStop:
        raise(SIGSTOP);
        break;
      case Action::kSleep:
        absl::SleepFor(absl::Milliseconds(rule.milliseconds));
        break;
      case Action::kError:
        status.Update(absl::Status(rule.code, absl::StrCat("failpoint ", name)));
        break;
      case Action::kPrint:
        break;
    }
  }
  return status;
}

absl::Status Configure(absl::string_view rules) { return TheRegistry().Configure(rules); }

}  // namespace hfopt::failpoint
