// What core may know: Eigen, three Abseil libraries, itself, and no clock, thread, file or source of randomness.

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>

#include "gtest/gtest.h"

namespace hfopt {
namespace {

TEST(Core, IncludesNothingBeyondEigenAndAbseilsValues) {
  const std::regex include(R"re(^\s*#\s*include\s*(<[^>]+>|"[^"]+"))re");
  const std::regex allowed(
      R"re("(core/.*|Eigen/.*|absl/(status/(status|statusor)|strings/(str_cat|string_view)|types/span)\.h)"|<\w+>)re");
  const std::regex forbidden(
      "<(thread|mutex|shared_mutex|condition_variable|future|atomic|chrono|ctime|fstream|iostream|cstdio|filesystem|"
      "random)>");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(HFOPT_SOURCE_DIR) / "core")) {
    const auto extension = entry.path().extension();
    if (extension != ".h" && extension != ".cc") continue;
    ++files;
    std::ifstream file(entry.path());
    int number = 0;
    for (std::string line; std::getline(file, line);) {
      ++number;
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string what = match[1];
      EXPECT_TRUE(std::regex_match(what, allowed) && !std::regex_match(what, forbidden))
          << entry.path().filename() << ":" << number << " includes " << what;
    }
  }
  EXPECT_GT(files, 20) << "looked in the wrong place";
}

TEST(Core, EveryHeaderIsGuardedByItsPath) {
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(HFOPT_SOURCE_DIR) / "core")) {
    if (entry.path().extension() != ".h") continue;
    std::string guard = "HFOPT_CORE_" + entry.path().stem().string() + "_H_";
    for (char& c : guard) c = static_cast<char>(std::toupper(c));
    std::ifstream file(entry.path());
    std::string first;
    std::getline(file, first);
    EXPECT_EQ(first, "#ifndef " + guard);
  }
}

}  // namespace
}  // namespace hfopt
