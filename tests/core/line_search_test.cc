#include "core/line_search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace hfopt {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The loss along a line, as a function of the step.
class LineObjective : public Objective<double> {
 public:
  explicit LineObjective(std::function<double(double)> loss) : loss_(std::move(loss)) {}

  int64_t num_parameters() const override { return 1; }
  const DataLayout& layout() const override { return layout_; }
  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<double>&, absl::Span<const Trial<double>> trials,
                                                 const Sample&) override {
    ++exchanges;
    if (fails) return absl::UnavailableError("scripted failure");
    std::vector<LossAnswer> answers;
    for (const Trial<double>& trial : trials) {
      steps.push_back(trial.step);
      answers.push_back({.loss = loss_(trial.step)});
    }
    return answers;
  }
  absl::StatusOr<GradientAnswer<double>> Gradient(const Vector<double>&, const Sample&,
                                                  const GradientExtras&) override {
    return absl::UnimplementedError("not used");
  }
  absl::StatusOr<std::unique_ptr<CurvatureProduct<double>>> GaussNewtonAt(const Vector<double>&,
                                                                          const Sample&) override {
    return absl::UnimplementedError("not used");
  }

  std::vector<double> steps;  // in the order asked for
  int exchanges = 0;
  bool fails = false;

 private:
  DataLayout layout_;
  std::function<double(double)> loss_;
};

absl::StatusOr<LineSearchResult> Search(LineObjective& objective, const LineSearchProblem& problem) {
  return BacktrackAlongLine<double>(objective, Vector<double>::Zero(1), Vector<double>::Ones(1), Sample(), problem);
}

TEST(LineSearch, TakesTheLargestStepOfTheGridWithSufficientDecrease) {
  // (t - w)^2 for minima w near and far: L(0) = w^2, slope -2w.
  for (const double w : {0.4, 0.1, 0.01, 1e-3}) {
    const auto loss = [w](double t) { return (t - w) * (t - w); };
    LineObjective objective(loss);
    const LineSearchProblem problem{.start_loss = w * w, .slope = 1e-2 * -2 * w};
    const LineSearchResult result = *Search(objective, problem);
    const auto sufficient = [&](double t) { return loss(t) <= w * w - 1e-2 * 2 * w * t; };
    ASSERT_GT(result.step, 0);
    EXPECT_TRUE(sufficient(result.step));
    EXPECT_FALSE(sufficient(result.step / 0.8));
    const double j = std::log(result.step) / std::log(0.8);
    EXPECT_NEAR(j, std::round(j), 1e-9) << "a power of 0.8";
    EXPECT_EQ(result.answer.loss, loss(result.step));
  }
}

TEST(LineSearch, AnswerDoesNotDependOnTheBatch) {
  const auto loss = [](double t) { return (t - 0.02) * (t - 0.02); };
  LineSearchProblem problem{.start_loss = loss(0), .slope = -1e-4, .batch = 1};
  LineObjective one_by_one(loss);
  const LineSearchResult reference = *Search(one_by_one, problem);
  for (const int batch : {2, 3, 4, 7, 60, 1000}) {
    problem.batch = batch;
    LineObjective objective(loss);
    const LineSearchResult result = *Search(objective, problem);
    EXPECT_EQ(result.step, reference.step) << batch;
    EXPECT_EQ(result.answer.loss, reference.answer.loss);
    EXPECT_EQ(result.losses_evaluated, static_cast<int>(objective.steps.size()));
    EXPECT_EQ(result.losses_evaluated, std::min(60, (reference.losses_evaluated + batch - 1) / batch * batch));
    EXPECT_EQ(objective.exchanges, (reference.losses_evaluated + batch - 1) / batch);
  }
}

TEST(LineSearch, GivesUpAfterExactlyItsTries) {
  for (const int tries : {0, 1, 6, 60}) {
    for (const int batch : {1, 4, 7}) {
      LineObjective objective([](double t) { return 1 + t; });
      const LineSearchResult result =
          *Search(objective, {.start_loss = 1, .shrink = 0.5, .max_tries = tries, .batch = batch});
      EXPECT_EQ(result.step, 0);
      EXPECT_EQ(result.losses_evaluated, tries);
      ASSERT_EQ(static_cast<int>(objective.steps.size()), tries);
      for (int j = 0; j < tries; ++j)
        EXPECT_EQ(objective.steps[j], std::pow(0.5, j + 1)) << "the unit step is not asked again";
    }
  }
}

TEST(LineSearch, NonFiniteLossesAreNotAccepted) {
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    LineObjective objective([bad](double t) { return t > 0.2 ? bad : 1 - t; });
    const LineSearchResult result = *Search(objective, {.start_loss = 1, .slope = -0.01, .shrink = 0.5});
    EXPECT_EQ(result.step, 0.125) << bad;
  }
}

TEST(LineSearch, SufficientDecreaseIsADecrease) {
  const LineSearchProblem flat{.start_loss = 1, .slope = 0};
  EXPECT_FALSE(IsSufficientDecrease(flat, 1, 1)) << "no slope, but the loss must fall";
  EXPECT_TRUE(IsSufficientDecrease(flat, 1, std::nextafter(1, 0)));
  const LineSearchProblem steep{.start_loss = 1, .slope = -0.5};
  EXPECT_FALSE(IsSufficientDecrease(steep, 1, 0.51));
  EXPECT_TRUE(IsSufficientDecrease(steep, 1, 0.5));
  EXPECT_TRUE(IsSufficientDecrease(steep, 0.5, 0.75)) << "half the step, half the gain";
  for (const double bad : {kNaN, kInfinity, -kInfinity}) EXPECT_FALSE(IsSufficientDecrease(steep, 1, bad));
}

TEST(LineSearch, PassesAnErrorOn) {
  LineObjective objective([](double) { return 0; });
  objective.fails = true;
  EXPECT_EQ(Search(objective, {.start_loss = 1}).status(), absl::UnavailableError("scripted failure"));
}

}  // namespace
}  // namespace hfopt
