#include "core/cg_backtracking.h"

#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt {
namespace {

using ::testing::ElementsAre;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One parameter; the loss at theta + step * direction is looked up: losses[i] at d_i = i, start at theta.
class TableObjective : public Objective<double> {
 public:
  TableObjective(double start, std::vector<double> losses) : start_(start), losses_(std::move(losses)) {}

  int64_t num_parameters() const override { return 1; }
  const DataLayout& layout() const override { return layout_; }
  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<double>&, absl::Span<const Trial<double>> trials,
                                                 const Sample& sample) override {
    if (static_cast<int>(exchanges.size()) == fails_at) return absl::UnavailableError("scripted failure");
    std::vector<int> asked;
    std::vector<LossAnswer> answers;
    for (const Trial<double>& trial : trials) {
      asked.push_back(trial.direction == nullptr ? -1 : static_cast<int>((*trial.direction)[0]));
      answers.push_back(
          {.loss = asked.back() < 0 ? start_ : losses_[asked.back()], .weight = static_cast<double>(sample.size())});
    }
    exchanges.push_back(asked);
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

  std::vector<std::vector<int>> exchanges;  // what each call asked for; -1: theta
  int fails_at = -1;

 private:
  DataLayout layout_{.shards = 1, .held_out_examples = 7};
  double start_;
  std::vector<double> losses_;
};

struct Outcome {
  absl::StatusOr<BacktrackingResult> result;
  std::vector<std::vector<int>> exchanges;
};

Outcome Backtrack(double start, const std::vector<double>& losses, bool start_is_known, int fails_at = -1) {
  TableObjective objective(start, losses);
  objective.fails_at = fails_at;
  std::vector<CgIterate<double>> kept;
  for (size_t i = 0; i < losses.size(); ++i) {
    kept.push_back({.iteration = static_cast<int>(i) + 1, .x = Vector<double>::Constant(1, static_cast<double>(i))});
  }
  const Sample sample = DrawSample(objective.layout(), DataSet::kHeldOut, 7, 0);
  const LossAnswer known{.loss = start};
  auto result = BacktrackOverIterates<double>(objective, Vector<double>::Zero(1), kept, sample,
                                              start_is_known ? &known : nullptr);
  return {std::move(result), objective.exchanges};
}

TEST(CgBacktracking, TakesTheLastIterateWhenTheOneBeforeIsNoBetter) {
  for (const double before : {2.0, 1.0, kNaN, kInfinity}) {
    const Outcome outcome = Backtrack(5, {0, 0, before, 1}, true);
    EXPECT_EQ(outcome.result->index, 3);
    EXPECT_EQ(outcome.result->chosen.loss, 1);
    EXPECT_THAT(outcome.exchanges, ElementsAre(ElementsAre(3, 2)));
  }
}

TEST(CgBacktracking, WalksBackWhileTheLossImproves) {
  const Outcome outcome = Backtrack(9, {0, 4, 2, 3, 5}, true);  // the 0 is behind a hill, and not looked for
  EXPECT_EQ(outcome.result->index, 2);
  EXPECT_EQ(outcome.result->chosen.loss, 2);
  EXPECT_EQ(outcome.result->last_loss, 5);
  EXPECT_THAT(outcome.exchanges, ElementsAre(ElementsAre(4, 3), ElementsAre(2), ElementsAre(1)));
  EXPECT_EQ(outcome.result->losses_evaluated, 4);
}

TEST(CgBacktracking, EndsAtTheFirstIterate) {
  const Outcome outcome = Backtrack(9, {1, 2, 3}, true);
  EXPECT_EQ(outcome.result->index, 0);
  EXPECT_EQ(outcome.result->chosen.loss, 1);
  EXPECT_EQ(outcome.result->losses_evaluated, 3);
}

TEST(CgBacktracking, AsksForTheLossAtThetaOnceAndOnlyWhenItIsUnknown) {
  for (const std::vector<double>& losses : {std::vector<double>{1}, {1, 2}, {1, 2, 3, 4}}) {
    const Outcome unknown = Backtrack(9, losses, false), known = Backtrack(9, losses, true);
    EXPECT_EQ(unknown.result->start.loss, 9);
    EXPECT_EQ(known.result->start.loss, 9);
    EXPECT_EQ(unknown.result->losses_evaluated, known.result->losses_evaluated + 1);
    EXPECT_EQ(unknown.exchanges.size(), known.exchanges.size()) << "in the same exchange";
    EXPECT_EQ(unknown.exchanges[0].back(), -1);
    EXPECT_EQ(unknown.result->index, known.result->index);
    EXPECT_EQ(unknown.result->start.weight, 7);
  }
}

TEST(CgBacktracking, OneIterateIsOneLoss) {
  const Outcome outcome = Backtrack(9, {3}, true);
  EXPECT_EQ(outcome.result->index, 0);
  EXPECT_EQ(outcome.result->last_loss, 3);
  EXPECT_THAT(outcome.exchanges, ElementsAre(ElementsAre(0)));
}

TEST(CgBacktracking, NonFiniteLossesAreWorseThanAnyOther) {
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_EQ(Backtrack(9, {3, 8, bad, bad}, true).result->index, 0) << "passes them on the way back";
    EXPECT_EQ(Backtrack(9, {8, 3, bad, bad}, true).result->index, 1);
    EXPECT_EQ(Backtrack(9, {1, bad, 3, 4}, true).result->index, 2) << "stops before them";
    const Outcome none = Backtrack(9, {bad, bad, bad}, true);
    EXPECT_EQ(none.result->index, 0);
    EXPECT_FALSE(std::isfinite(none.result->chosen.loss));
    EXPECT_EQ(none.result->losses_evaluated, 3);
  }
}

TEST(CgBacktracking, PassesAnyErrorOn) {
  for (int call = 0; call < 3; ++call) {
    const Outcome outcome = Backtrack(9, {1, 2, 3, 4}, false, call);
    EXPECT_EQ(outcome.result.status(), absl::UnavailableError("scripted failure"));
    EXPECT_EQ(static_cast<int>(outcome.exchanges.size()), call);
  }
}

}  // namespace
}  // namespace hfopt
