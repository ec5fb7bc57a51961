#include "core/hessian_free.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Dense"
#include "core/damping.h"
#include "core/termination.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"
#include "tests/support/least_squares_objective.h"
#include "tests/support/scripted_objective.h"

namespace hfopt {
namespace {

using support::Call;
using support::CallKind;
using support::CurvedResiduals;
using support::ExponentialResiduals;
using support::LeastSquaresObjective;
using support::LinearResiduals;
using support::Random;
using support::RosenbrockResiduals;
using support::ScriptedObjective;
using ::testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A layout in which training and held-out data are the same N examples.
DataLayout SameData(int64_t examples, int shards = 3) {
  return {.shards = shards, .training_examples = examples, .held_out_examples = examples};
}

// A smooth nonlinear problem with noise, larger than its samples.
template <typename Scalar = double>
LeastSquaresObjective<Scalar> CurvedProblem(int64_t examples = 120, int n = 6) {
  Random random(1);
  const int rows = static_cast<int>(examples);
  return {n, SameData(examples),
          CurvedResiduals(random.Matrix(rows, n), 0.3 * random.Matrix(rows, n), 2 * random.Vector(rows))};
}

// All data in the curvature as well, for problems too small to sample.
OptimizerOptions WithAllCurvature(OptimizerOptions options) {
  options.samples.curvature_fraction = 1;
  return options;
}

template <typename Scalar>
void ExpectSamePairs(const PairList<Scalar>& a, const PairList<Scalar>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i]->p, b[i]->p);
    EXPECT_EQ(a[i]->Gp, b[i]->Gp);
  }
}

// Bits, and NaN equal to itself.
template <typename Scalar>
void ExpectSameState(const OptimizerState<Scalar>& a, const OptimizerState<Scalar>& b) {
  const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  EXPECT_EQ(a.iteration, b.iteration);
  EXPECT_EQ(a.theta, b.theta);
  EXPECT_EQ(a.damping, b.damping);
  EXPECT_EQ(a.cg_limit, b.cg_limit);
  EXPECT_TRUE(a.warm_start.size() == b.warm_start.size() && a.warm_start == b.warm_start);
  ExpectSamePairs(a.pairs, b.pairs);
  EXPECT_TRUE(same(a.held_out_loss, b.held_out_loss));
  EXPECT_EQ(a.held_out_examples, b.held_out_examples);
  EXPECT_EQ(a.held_out_metrics, b.held_out_metrics);
  EXPECT_EQ(a.gradient_norm, b.gradient_norm);
  EXPECT_EQ(a.gradient_examples, b.gradient_examples);
  EXPECT_EQ(a.next_gradient_size, b.next_gradient_size);
  EXPECT_EQ(a.gradient_cursor, b.gradient_cursor);
  EXPECT_EQ(a.curvature_cursor, b.curvature_cursor);
  EXPECT_EQ(a.consecutive_rejections, b.consecutive_rejections);
  EXPECT_EQ(a.stalled_iterations, b.stalled_iterations);
  EXPECT_EQ(a.cost, b.cost);
}

// The state that shares nothing with `state`: what a checkpoint gives back.
template <typename Scalar>
OptimizerState<Scalar> DeepCopy(const OptimizerState<Scalar>& state) {
  OptimizerState<Scalar> copy = state;
  for (auto& pair : copy.pairs) pair = std::make_shared<const CurvaturePair<Scalar>>(*pair);
  return copy;
}

template <typename Scalar>
OptimizerState<Scalar> Advance(Objective<Scalar>& objective, OptimizerState<Scalar> state,
                               const OptimizerOptions& options, int iterations) {
  for (int i = 0; i < iterations; ++i) {
    auto next = Iterate(state, objective, options);
    EXPECT_TRUE(next.ok()) << next.status();
    if (!next.ok()) break;
    state = std::move(next->state);
  }
  return state;
}

template <typename Scalar>
OptimizerState<Scalar> Start(const Objective<Scalar>& objective, const OptimizerOptions& options, double value = 0.1) {
  return InitialState<Scalar>(Vector<Scalar>::Constant(objective.num_parameters(), static_cast<Scalar>(value)),
                              objective.layout(), options);
}

// ---- It minimises ----

TEST(HessianFree, ReachesTheMinimumOfAQuadraticInOneIteration) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    Random random(seed);
    const Eigen::MatrixXd A = random.Matrix(40, 6);
    const Eigen::VectorXd y = random.Vector(40);
    LeastSquaresObjective<double> objective(6, SameData(40), LinearResiduals(A, y));
    OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
    options.damping = {.rule = DampingRule::kConstant, .initial = 0, .min = 0, .max = 0};
    options.conjugate_gradient.progress_tolerance = 0;
    options.conjugate_gradient.residual_tolerance = 1e-13;

    const auto next = Iterate(Start(objective, options), objective, options);

    const Eigen::VectorXd minimum = A.colPivHouseholderQr().solve(y);
    EXPECT_LE((next->state.theta - minimum).norm(), 1e-11 * minimum.norm());
    EXPECT_EQ(next->report.step_length, 1);
    EXPECT_NEAR(next->report.reduction_ratio, 1, 1e-10) << "the model is the function";
  }
}

TEST(HessianFree, PredictedReductionIsExactForAQuadratic) {
  // rho = 1 where the model is the function: undamped at any lambda, and on the gradient sample as on the held-out
  // data.
  Random random(1);
  LeastSquaresObjective<double> objective(6, SameData(40), LinearResiduals(random.Matrix(40, 6), random.Vector(40)));
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.damping.initial = 0.5;
  options.damping.predicted_reduction = PredictedReduction::kUndamped;
  for (const ActualReduction actual :
       {ActualReduction::kHeldOutAtLast, ActualReduction::kHeldOutAtChosen, ActualReduction::kGradientSampleAtLast}) {
    options.damping.actual_reduction = actual;
    OptimizerState<double> state = Start(objective, options);
    for (int i = 0; i < 3; ++i) {  // the later ones from a warm start
      auto next = Iterate(state, objective, options);
      EXPECT_NEAR(next->report.reduction_ratio, 1, 1e-6) << i;
      state = next->state;
    }
  }
  // On the gradient sample it is so even when the held-out data are others.
  OptimizerOptions part = options;
  part.samples.initial_gradient_examples = 20;
  EXPECT_NEAR(Iterate(Start(objective, part), objective, part)->report.reduction_ratio, 1, 1e-6);
  part.damping.actual_reduction = ActualReduction::kHeldOutAtLast;
  EXPECT_GT(std::abs(Iterate(Start(objective, part), objective, part)->report.reduction_ratio - 1), 1e-2);

  options.damping.predicted_reduction = PredictedReduction::kDamped;
  EXPECT_GT(Iterate(Start(objective, options), objective, options)->report.reduction_ratio, 1.01)
      << "the damped model promises less";
}

struct Setting {
  std::string name;
  OptimizerOptions options;
};

std::vector<Setting> Settings() {
  std::vector<Setting> settings = {{"published", WithAllCurvature(OptimizerOptions::Published())},
                                   {"accelerated", OptimizerOptions::Accelerated()},
                                   {"deterministic", OptimizerOptions::Deterministic()}};
  for (const LbfgsMode mode : {LbfgsMode::kNone, LbfgsMode::kFrozen, LbfgsMode::kFlexible}) {
    for (const bool diagonal : {false, true}) {
      OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
      options.preconditioner = {.lbfgs = mode, .memory = 4, .diagonal = diagonal ? DiagonalMode::kSquaredGradients : DiagonalMode::kNone};
      settings.push_back(
          {"lbfgs mode " + std::to_string(static_cast<int>(mode)) + (diagonal ? " and diagonal" : ""), options});
    }
  }
  OptimizerOptions depth = settings.back().options;
  depth.conjugate_gradient.orthogonalization_depth = 3;
  settings.push_back({"flexible, depth 3", depth});
  return settings;
}

template <typename Scalar>
class Convergence : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Convergence, Scalars);

TYPED_TEST(Convergence, ExponentialFitWithEverySetting) {
  LeastSquaresObjective<TypeParam> objective(3, SameData(200), ExponentialResiduals());
  for (const auto& [name, options] : Settings()) {
    const auto state = Advance(objective, Start(objective, options, 1.0), options, 60);
    EXPECT_LE(state.held_out_loss, 1e-6) << name;  // from 0.04
    EXPECT_LE((state.theta.template cast<double>() - Eigen::Vector3d(2, 1, 0.5)).norm(), 0.05) << name;
  }
}

TYPED_TEST(Convergence, RosenbrockWithEverySetting) {
  LeastSquaresObjective<TypeParam> objective(6, SameData(10), RosenbrockResiduals(6));
  for (const auto& [name, options] : Settings()) {
    OptimizerState<TypeParam> state = Start(objective, options, -1.0);
    for (int i = 0; i < 400 && !(state.held_out_loss < 1e-6); ++i) state = Advance(objective, state, options, 1);
    EXPECT_LT(state.held_out_loss, 1e-6) << name << " after " << state.iteration;  // from 202
  }
}

TEST(HessianFree, SolvesNoFurtherThanTheNoiseOfTheGradient) {
  LeastSquaresObjective<double> objective = CurvedProblem();
  OptimizerOptions options = OptimizerOptions::Published();
  options.conjugate_gradient.progress_tolerance = 0;
  options.conjugate_gradient.noise_factor = 1;
  options.samples = {.initial_gradient_examples = 30, .curvature_fraction = 1};
  const auto next = Iterate(Start(objective, options), objective, options);
  EXPECT_GT(next->report.gradient_noise, 0);
  EXPECT_EQ(next->report.cg_stop, CgStop::kNoise);
}

TEST(HessianFree, LearnsFromGrowingSamples) {
  LeastSquaresObjective<double> objective = CurvedProblem(600);
  OptimizerOptions all = WithAllCurvature(OptimizerOptions::Published());
  const double best = Advance(objective, Start(objective, all), all, 40).held_out_loss;

  OptimizerOptions growing = OptimizerOptions::Accelerated();
  growing.samples = {.initial_gradient_examples = 30,
                     .growth_factor = 1.3,
                     .curvature_fraction = 0.3,
                     .min_curvature_examples = 20,
                     .held_out_fraction = 1,
                     .min_held_out_examples = 60};
  for (const SampleGrowth growth : {SampleGrowth::kGeometric, SampleGrowth::kVariance, SampleGrowth::kDamping}) {
    growing.samples.growth = growth;
    OptimizerState<double> state = Start(objective, growing);
    EXPECT_EQ(state.next_gradient_size, 30);
    state = Advance(objective, state, growing, 40);
    EXPECT_EQ(state.gradient_examples, 600) << "grown to all data";
    EXPECT_LE(state.held_out_loss, best * 1.001);
  }
}

// ---- What it asks ----

TEST(HessianFree, AnIterationAsksForExactlyWhatItNeeds) {
  Random random(1);
  LeastSquaresObjective<double> model(6, SameData(40), LinearResiduals(random.Matrix(40, 6), random.Vector(40)));
  ScriptedObjective<double> objective(model);
  const OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  OptimizerState<double> state = Start(objective, options);
  for (int iteration = 0; iteration < 3; ++iteration) {
    objective.calls.clear();
    auto next = Iterate(state, objective, options);
    ASSERT_TRUE(next->report.accepted);
    const bool first = iteration == 0;
    EXPECT_EQ(objective.Count(CallKind::kGradient), 1);
    EXPECT_EQ(objective.Count(CallKind::kLinearization), 1);
    EXPECT_EQ(objective.Count(CallKind::kProduct), next->report.cg_iterations + (first ? 0 : 1))
        << "one for the warm start";
    ASSERT_EQ(objective.Count(CallKind::kLosses), 1)
        << "one exchange: the longer step is the better one on a quadratic";
    EXPECT_EQ(objective.calls.back().kind, CallKind::kLosses);
    EXPECT_EQ(objective.calls.back().trials, first ? 3 : 2) << "L(theta) is known after the first iteration";
    EXPECT_EQ(next->report.losses_evaluated, first ? 3 : 2);
    state = next->state;
  }
}

TEST(HessianFree, BooksItsCost) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Published();
  options.samples.initial_gradient_examples = 30;
  options.samples.min_curvature_examples = 9;
  const OptimizerState<double> state = Advance<double>(objective, Start<double>(objective, options), options, 5);
  Cost expected;
  for (const Call& call : objective.calls) {
    const int64_t size = call.sample.size();
    if (call.kind != CallKind::kLinearization) ++expected.exchanges;
    switch (call.kind) {
      case CallKind::kGradient:
        ++expected.gradients;
        expected.gradient_examples += size;
        break;
      case CallKind::kLinearization:
        ++expected.linearizations;
        expected.linearization_examples += size;
        break;
      case CallKind::kProduct:
        ++expected.products;
        expected.product_examples += size;
        break;
      case CallKind::kLosses:
        expected.losses += call.trials;
        expected.loss_examples += call.trials * size;
        break;
    }
  }
  EXPECT_EQ(state.cost, expected);
}

TEST(HessianFree, AsksForNoExtrasThatNoRuleNeeds) {
  LeastSquaresObjective<double> model = CurvedProblem();
  const auto extras = [&](const OptimizerOptions& options) {
    ScriptedObjective<double> objective(model);
    EXPECT_TRUE(Iterate<double>(Start<double>(objective, options), objective, options).ok());
    return objective.calls[0].extras;
  };
  for (const OptimizerOptions& options :
       {OptimizerOptions::Published(), OptimizerOptions::Accelerated(), OptimizerOptions::Deterministic()}) {
    EXPECT_EQ(extras(options).sub_batches, 0);
    EXPECT_EQ(extras(options).second_moment, options.preconditioner.diagonal == DiagonalMode::kSquaredGradientsIfOffered);
  }
  OptimizerOptions noise, variance, diagonal;
  noise.conjugate_gradient.noise_factor = 1;
  noise.samples.sub_batches = 7;
  variance.samples.growth = SampleGrowth::kVariance;
  diagonal.preconditioner.diagonal = DiagonalMode::kSquaredGradients;
  EXPECT_EQ(extras(noise).sub_batches, 7);
  EXPECT_EQ(extras(variance).sub_batches, 10);
  EXPECT_FALSE(extras(variance).second_moment);
  EXPECT_TRUE(extras(diagonal).second_moment);
  EXPECT_EQ(extras(diagonal).sub_batches, 0);
}

TEST(HessianFree, CurvatureSampleIsFixedWithinASolveAndMovesBetweenSolves) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Published();
  options.samples.min_curvature_examples = 12;
  Advance<double>(objective, Start<double>(objective, options), options, 4);
  std::vector<Sample> solves;
  for (const Call& call : objective.calls) {
    if (call.kind == CallKind::kLinearization) solves.push_back(call.sample);
    if (call.kind == CallKind::kProduct) {
      EXPECT_EQ(call.sample, solves.back());
    }
  }
  ASSERT_EQ(solves.size(), 4u);
  for (size_t i = 1; i < solves.size(); ++i) EXPECT_NE(solves[i], solves[i - 1]);
}

TEST(HessianFree, SuccessiveSamplesLeaveNoExampleOut) {
  // Shards of different sizes, whose shares of a sample are rounded differently.
  const DataLayout layout{.shards = 4, .training_examples = 30, .held_out_examples = 30};
  Random random(1);
  LeastSquaresObjective<double> model(2, layout, LinearResiduals(random.Matrix(30, 2), random.Vector(30)));
  ScriptedObjective<double> objective(model);
  OptimizerOptions options;
  options.samples = {.initial_gradient_examples = 5, .growth_factor = 1, .curvature_fraction = 1};
  Advance<double>(objective, Start<double>(objective, options), options, 20);
  for (const CallKind kind : {CallKind::kGradient, CallKind::kLinearization}) {
    std::vector<Window> previous;
    for (const Call& call : objective.calls) {
      if (call.kind != kind) continue;
      for (int s = 0; s < layout.shards; ++s) {
        const int64_t size = layout.ShardSize(DataSet::kTraining, s);
        if (previous.empty()) continue;
        const int64_t skipped =
            (call.sample.windows[s].begin - previous[s].begin - previous[s].count + 2 * size) % size;
        EXPECT_TRUE(skipped == 0 || skipped == size - 1) << "goes on after the window before, or at its last example";
      }
      previous = call.sample.windows;
    }
  }
}

TEST(HessianFree, ReleasesTheActivationsBeforeItAsksForLosses) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  objective.on_losses = [&](absl::Span<const Trial<double>>, std::vector<LossAnswer>&) {
    EXPECT_EQ(objective.linearizations_alive, 0);
  };
  const OptimizerOptions options;
  Advance<double>(objective, Start<double>(objective, options), options, 3);
}

TEST(HessianFree, LossAtThetaIsAskedForAgainOnlyWhenTheHeldOutSampleHasChanged) {
  LeastSquaresObjective<double> model = CurvedProblem(600);
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Accelerated();
  options.samples = {.initial_gradient_examples = 100,
                     .growth_factor = 1.5,
                     .curvature_fraction = 1,
                     .held_out_fraction = 0.5,
                     .min_held_out_examples = 80};
  OptimizerState<double> state = Start<double>(objective, options);
  int64_t held_out = 0;
  for (int i = 0; i < 8; ++i) {
    objective.calls.clear();
    objective.on_losses = nullptr;
    int at_theta = 0;
    objective.on_losses = [&](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>&) {
      for (const Trial<double>& trial : trials) at_theta += trial.direction == nullptr ? 1 : 0;
    };
    const OptimizerState<double> next = Advance<double>(objective, state, options, 1);
    EXPECT_EQ(at_theta, next.held_out_examples == held_out ? 0 : 1) << i;
    EXPECT_EQ(next.held_out_examples, DrawSample(objective.layout(), DataSet::kHeldOut,
                                                 std::max<int64_t>(80, (state.next_gradient_size + 1) / 2) *
                                                     (state.next_gradient_size < 600 ? 1 : 600),
                                                 0)
                                          .size());
    held_out = next.held_out_examples;
    state = next;
  }
  EXPECT_EQ(held_out, 600) << "all in the end";
}

TEST(HessianFree, TargetReachedOnAPartIsCheckedOnAllHeldOutData) {
  LeastSquaresObjective<double> model = CurvedProblem(600);
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Accelerated();
  options.samples = {
      .initial_gradient_examples = 100, .growth_factor = 1, .curvature_fraction = 1, .held_out_fraction = 0.2};
  options.stop.target_loss = 100;  // any loss will do
  const auto state = Advance<double>(objective, Start<double>(objective, options), options, 1);
  EXPECT_EQ(objective.calls.back().sample.size(), 600);
  EXPECT_EQ(objective.calls.back().trials, 1);
  EXPECT_EQ(state.held_out_examples, 600);
  const Trial<double> at_theta{};
  EXPECT_EQ(
      state.held_out_loss,
      (*model.Losses(state.theta, {&at_theta, 1}, DrawSample(model.layout(), DataSet::kHeldOut, 600, 0)))[0].loss);
  EXPECT_EQ(CheckTermination(state, model.layout(), options.stop)->reason, TerminationReason::kTargetReached);

  objective.calls.clear();
  options.stop.target_loss = -1;
  const auto on_part = Advance<double>(objective, Start<double>(objective, options), options, 1);
  for (const Call& call : objective.calls) EXPECT_LT(call.sample.size(), 600) << "not without need";

  // Reached on the part and missed on all: what is compared with the next iteration is the loss on the part.
  objective.calls.clear();
  objective.on_losses = [&](absl::Span<const Trial<double>>, std::vector<LossAnswer>& answers) {
    if (objective.calls.back().sample.size() == 600) answers[0].loss = 101;
  };
  options.stop.target_loss = 100;
  const auto missed = Advance<double>(objective, Start<double>(objective, options), options, 1);
  EXPECT_EQ(objective.calls.back().sample.size(), 600);
  EXPECT_EQ(missed.held_out_examples, on_part.held_out_examples);
  EXPECT_EQ(missed.held_out_loss, on_part.held_out_loss);
  EXPECT_FALSE(CheckTermination(missed, model.layout(), options.stop).has_value());
}

TEST(HessianFree, AStepThatReachesTheTargetOnAPartAndOverflowsElsewhereIsRejected) {
  LeastSquaresObjective<double> model = CurvedProblem(600);
  for (const double bad : {kNaN, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    ScriptedObjective<double> objective(model);
    objective.on_losses = [&](absl::Span<const Trial<double>>, std::vector<LossAnswer>& answers) {
      if (objective.calls.back().sample.size() == 600) answers[0].loss = bad;
    };
    OptimizerOptions options = OptimizerOptions::Accelerated();
    options.samples = {
        .initial_gradient_examples = 100, .growth_factor = 1, .curvature_fraction = 1, .held_out_fraction = 0.2};
    options.stop.target_loss = 100;  // any loss will do
    const OptimizerState<double> start = Start<double>(objective, options);
    const auto next = Iterate<double>(start, objective, options);
    ASSERT_TRUE(next.ok()) << next.status();
    ASSERT_EQ(objective.calls.back().sample.size(), 600);
    EXPECT_FALSE(next->report.accepted);
    EXPECT_EQ(next->report.step_length, 0);
    EXPECT_EQ(next->state.theta, start.theta);
    EXPECT_EQ(next->state.warm_start.size(), 0);
    EXPECT_EQ(next->state.consecutive_rejections, 1);
    EXPECT_GT(next->state.damping, start.damping);
    EXPECT_TRUE(std::isfinite(next->state.held_out_loss));
    EXPECT_LT(next->state.held_out_examples, 600);
    EXPECT_FALSE(CheckTermination(next->state, model.layout(), options.stop).has_value());
  }
}

TEST(HessianFree, ALossThatOverflowsOnALargerPartNamesBothParts) {
  LeastSquaresObjective<double> model = CurvedProblem(600);
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Accelerated();
  options.samples = {
      .initial_gradient_examples = 100, .growth_factor = 2, .curvature_fraction = 1, .held_out_fraction = 0.5};
  const OptimizerState<double> state = Advance<double>(objective, Start<double>(objective, options), options, 1);
  objective.on_losses = [](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) {
      if (trials[i].direction == nullptr) answers[i].loss = kNaN;
    }
  };
  const absl::Status status = Iterate<double>(state, objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(state.held_out_examples, 51) << "half of 100, in three shards of equal size";
  EXPECT_THAT(std::string(status.message()), HasSubstr("is nan on 102 of 600 held-out examples; it was "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(" on the 51 of the iteration before"));
}

// ---- State ----

TEST(HessianFree, AnErrorAtAnyCallLeavesTheStateUnchanged) {
  LeastSquaresObjective<double> model = CurvedProblem();
  OptimizerOptions options = OptimizerOptions::Accelerated();
  options.preconditioner = {.lbfgs = LbfgsMode::kFlexible, .memory = 4, .diagonal = DiagonalMode::kSquaredGradients, .diagonal_examples = 12};
  options.damping.actual_reduction = ActualReduction::kGradientSampleAtLast;
  options.samples = {.initial_gradient_examples = 60, .curvature_fraction = 0.5, .held_out_fraction = 0.5};
  options.stop.target_loss = 100;
  const OptimizerState<double> state = Advance(model, Start(model, options), options, 2);
  const OptimizerState<double> before = DeepCopy(state);

  ScriptedObjective<double> undisturbed(model);
  const auto expected = Iterate<double>(state, undisturbed, options);
  const int calls = static_cast<int>(undisturbed.calls.size());
  ASSERT_GT(calls, 8);
  for (int k = 0; k < calls; ++k) {
    ScriptedObjective<double> objective(model);
    objective.fails_at = k;
    objective.failure = absl::AbortedError("call " + std::to_string(k));
    EXPECT_EQ(Iterate<double>(state, objective, options).status(), objective.failure);
    EXPECT_EQ(static_cast<int>(objective.calls.size()), k + 1) << "nothing is asked after a failure";
    EXPECT_EQ(objective.linearizations_alive, 0);
    ExpectSameState(state, before);
    ExpectSameState(Iterate<double>(state, objective, options)->state, expected->state);  // and it can go on from there
  }
}

TEST(HessianFree, SameStateGivesTheSameBits) {
  LeastSquaresObjective<float> objective = CurvedProblem<float>();
  for (const auto& [name, options] : Settings()) {
    SCOPED_TRACE(name);
    const OptimizerState<float> start = Start(objective, options);
    ExpectSameState(Advance(objective, start, options, 4), Advance(objective, start, options, 4));
  }
}

TEST(HessianFree, ARunMayBeInterruptedBetweenAnyTwoIterations) {
  LeastSquaresObjective<float> objective = CurvedProblem<float>();
  for (auto [name, options] : Settings()) {
    SCOPED_TRACE(name);
    options.samples.initial_gradient_examples = 40;
    options.samples.held_out_fraction = 0.5;
    options.samples.min_curvature_examples = 10;
    const OptimizerState<float> through = Advance(objective, Start(objective, options), options, 6);
    OptimizerState<float> state = Start(objective, options);
    for (int i = 0; i < 6; ++i) {
      LeastSquaresObjective<float> restarted = CurvedProblem<float>();
      state = Advance(restarted, DeepCopy(state), options, 1);
    }
    ExpectSameState(state, through);
  }
}

TEST(HessianFree, WarmStartIsTheLastIterateNotTheChosen) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  // An early iterate is made to look best: d_N has the largest loss.
  objective.on_losses = [](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) {
      answers[i].loss = trials[i].direction == nullptr ? 1e3 : trials[i].direction->norm();
    }
  };
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.conjugate_gradient.max_iterations = 4;
  const auto next = Iterate<double>(Start<double>(objective, options), objective, options);
  ASSERT_TRUE(next->report.accepted);
  EXPECT_LT(next->report.chosen_iterate, next->report.cg_iterations);
  const Vector<double> step = next->state.theta - Start<double>(objective, options).theta;
  EXPECT_GT(next->state.warm_start.norm(), step.norm()) << "iterates grow (Steihaug 1983)";

  // The next solve begins at the decayed iterate: its first product is about that.
  std::vector<Vector<double>> asked;
  objective.on_product = [&](const Vector<double>& v, Vector<double>&) { asked.push_back(v); };
  ASSERT_TRUE(Iterate<double>(next->state, objective, options).ok());
  EXPECT_EQ(asked[0], next->state.warm_start * 0.95);

  options.conjugate_gradient.warm_start_decay = 0;
  EXPECT_EQ(Iterate<double>(Start<double>(objective, options), objective, options)->state.warm_start.size(), 0);
}

TEST(HessianFree, ARejectedIterationReportsTheMetricsOfTheThetaItKeeps) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  const OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  const OptimizerState<double> state = Advance<double>(objective, Start<double>(objective, options), options, 1);
  objective.on_losses = [](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) answers[i].loss += 1e3;
  };
  const auto rejected = Iterate<double>(state, objective, options);
  ASSERT_TRUE(rejected.ok()) << rejected.status();
  ASSERT_FALSE(rejected->report.accepted);
  EXPECT_EQ(rejected->report.metrics.at("half_square"), state.held_out_loss);
}

// The share is computed here from the dense matrix.
TEST(HessianFree, LimitOfCgGrowsWhereDampingHoldsLittleOfTheCurvature) {
  Random random(3);
  const Eigen::MatrixXd A = random.Matrix(60, 12);
  const Eigen::MatrixXd G = A.transpose() * A / 60;
  LeastSquaresObjective<double> objective(12, SameData(60), LinearResiduals(A, random.Vector(60)));
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Accelerated());
  options.conjugate_gradient = {.max_iterations = 9, .initial_max_iterations = 4, .progress_tolerance = 0};
  options.samples.initial_gradient_examples = 0;
  int grown = 0, stayed = 0;
  for (double lambda = 1e-3; lambda < 10; lambda *= 1.4) {
    options.damping.initial = lambda;
    const OptimizerState<double> start = Start(objective, options);
    const auto first = Iterate(start, objective, options);
    ASSERT_TRUE(first.ok() && first->report.accepted);
    ASSERT_EQ(first->report.cg_iterations, 4);
    ASSERT_GT(first->report.reduction_ratio, 0.5) << "the model is the function";
    const Eigen::VectorXd& d = first->state.warm_start;
    const double damped = lambda * d.squaredNorm();
    if (damped / (damped + d.dot(G * d)) < 0.1) {
      ++grown;
      EXPECT_EQ(first->state.cg_limit, 6) << lambda;
      EXPECT_EQ(first->state.damping, lambda) << "one thing at a time";
      EXPECT_EQ(Iterate(first->state, objective, options)->report.cg_iterations, 6);
    } else {
      ++stayed;
      EXPECT_EQ(first->state.cg_limit, 4) << lambda;
      EXPECT_LT(first->state.damping, lambda);
    }
  }
  EXPECT_GT(grown, 3);
  EXPECT_GT(stayed, 3);
}

TEST(HessianFree, SamplesAndDampingFollowWhatDampingHoldsOfTheCurvature) {
  Random random(3);
  const Eigen::MatrixXd A = random.Matrix(600, 12);
  const Eigen::MatrixXd G = A.transpose() * A / 600;
  LeastSquaresObjective<double> model(12, SameData(600), LinearResiduals(A, random.Vector(600)));
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = OptimizerOptions::Accelerated();
  options.samples.initial_gradient_examples = 200;
  options.samples.growth_factor = 2;
  options.samples.min_curvature_examples = 600;  // all data
  for (const double lambda : {0.01, 0.3, 1., 10.}) {
    options.damping.initial = lambda;
    const OptimizerState<double> start = Start<double>(objective, options);
    objective.on_losses = {};
    const auto accepted = Iterate<double>(start, objective, options);
    ASSERT_TRUE(accepted.ok() && accepted->report.accepted) << lambda;
    const Eigen::VectorXd& d = accepted->state.warm_start;
    const double damped = lambda * d.squaredNorm();
    const double share = damped / (damped + d.dot(G * d));
    EXPECT_EQ(accepted->state.next_gradient_size, std::ceil(200 * (1 + std::clamp(std::pow(share / 0.4, 4), 0.1, 1.0)))) << lambda << ": " << share;
    const double rho = accepted->report.reduction_ratio;
    EXPECT_NEAR(accepted->state.damping / NextDamping(lambda, {.rho = rho, .accepted = true, .damping_share = share}, options.damping), 1, 1e-9)
        << lambda << ": " << rho << ", " << share;

    objective.on_losses = [](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
      for (size_t i = 0; i < trials.size(); ++i) answers[i].loss += trials[i].direction != nullptr ? 1e3 : 0;
    };
    const auto rejected = Iterate<double>(start, objective, options);
    ASSERT_TRUE(rejected.ok() && !rejected->report.accepted) << lambda;
    EXPECT_EQ(rejected->state.next_gradient_size, 400) << lambda;
    EXPECT_EQ(rejected->state.damping, 4 * lambda) << "the loss rose by far more than was promised";
  }
}

TEST(HessianFree, ReportsWhatHappened) {
  LeastSquaresObjective<double> objective = CurvedProblem();
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.preconditioner = {.lbfgs = LbfgsMode::kFrozen, .memory = 4};
  const OptimizerState<double> start = Start(objective, options);
  const auto first = Iterate(start, objective, options);
  const auto second = Iterate(first->state, objective, options);
  EXPECT_EQ(second->report.iteration, 2);
  EXPECT_EQ(second->report.damping, first->report.next_damping);
  EXPECT_EQ(second->report.next_damping, second->state.damping);
  EXPECT_EQ(second->report.held_out_loss, second->state.held_out_loss);
  EXPECT_EQ(second->report.metrics.at("half_square"), second->state.held_out_loss)
      << "the metrics are those of the new theta";
  EXPECT_EQ(first->report.pairs_kept, 0);
  EXPECT_EQ(first->state.pairs.size(), 4u);
  EXPECT_EQ(second->report.pairs_kept, static_cast<int>(first->state.pairs.size()));
  EXPECT_EQ(second->report.gradient_examples, 120);
  EXPECT_EQ(second->report.curvature_examples, 120);
  EXPECT_EQ(second->report.held_out_examples, 120);
  EXPECT_EQ(second->report.cost, second->state.cost);
}

// ---- Rejection, and numbers that are none ----

void SpoilEveryTrial(ScriptedObjective<double>& objective, double loss = kNaN) {
  objective.on_losses = [loss](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) {
      if (trials[i].direction != nullptr) answers[i].loss = loss;
    }
  };
}

TEST(HessianFree, NanAtEveryTrialRejectsRaisesLambdaAndForgetsTheWarmStart) {
  LeastSquaresObjective<double> model = CurvedProblem();
  for (const DampingRule rule : {DampingRule::kLevenbergMarquardt, DampingRule::kContinuous, DampingRule::kContinuousByShare}) {
    OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
    options.damping.rule = rule;
    options.line_search.rescue_tries = rule == DampingRule::kLevenbergMarquardt ? 0 : 6;
    const OptimizerState<double> state = Advance(model, Start(model, options), options, 1);
    ASSERT_GT(state.warm_start.size(), 0);
    ScriptedObjective<double> objective(model);
    SpoilEveryTrial(objective);
    const auto next = Iterate<double>(state, objective, options);
    EXPECT_FALSE(next->report.accepted);
    EXPECT_EQ(next->report.step_length, 0);
    EXPECT_EQ(next->report.chosen_iterate, 0);
    EXPECT_EQ(next->state.theta, state.theta);
    EXPECT_EQ(next->state.damping, state.damping * (rule == DampingRule::kLevenbergMarquardt ? 1.5 : 4));
    EXPECT_EQ(next->state.warm_start.size(), 0);
    EXPECT_EQ(next->state.held_out_loss, state.held_out_loss);
    EXPECT_EQ(next->state.consecutive_rejections, 1);
    EXPECT_EQ(next->state.stalled_iterations, 1);
    // The next iteration recovers by itself.
    const auto after = Iterate(next->state, model, options);
    EXPECT_TRUE(after->report.accepted);
    EXPECT_EQ(after->state.consecutive_rejections, 0);
  }
}

TEST(HessianFree, InfiniteLossesOfEitherSignAreTreatedAsNan) {
  LeastSquaresObjective<double> model = CurvedProblem();
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.line_search.rescue_tries = 3;
  std::vector<OptimizerState<double>> outcomes;
  for (const double bad : {kNaN, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    ScriptedObjective<double> objective(model);
    SpoilEveryTrial(objective, bad);
    outcomes.push_back(Advance<double>(objective, Start<double>(objective, options), options, 1));
    EXPECT_EQ(outcomes.back().consecutive_rejections, 1) << bad;
    ExpectSameState(outcomes.back(), outcomes.front());
  }
}

TEST(HessianFree, GivesUpAfterExactlyTheAllowedRejections) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  SpoilEveryTrial(objective);
  OptimizerOptions options;
  options.stop.max_rejections = 5;
  OptimizerState<double> state = Start<double>(objective, options);
  int iterations = 0;
  while (!CheckTermination(state, objective.layout(), options.stop).has_value() && iterations < 100) {
    state = Advance<double>(objective, state, options, 1);
    ++iterations;
  }
  EXPECT_EQ(iterations, 5);
  EXPECT_EQ(CheckTermination(state, objective.layout(), options.stop)->reason, TerminationReason::kTooManyRejections);
}

TEST(HessianFree, CountsIterationsThatHardlyImprove) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  double gain = 0.2;
  objective.on_losses = [&](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) answers[i].loss = trials[i].direction == nullptr ? 100 : 100 - gain;
  };
  OptimizerOptions options;
  options.samples.held_out_fraction = 1;
  options.stop.min_improvement = 1e-3;
  OptimizerState<double> state = Start<double>(objective, options);
  const auto advance = [&](double new_gain) {
    gain = new_gain;
    state.held_out_examples = 0;  // L(theta) is not known: each iteration starts at 100
    state = Advance<double>(objective, state, options, 1);
    return state.stalled_iterations;
  };
  EXPECT_EQ(advance(0.05), 1);
  EXPECT_EQ(advance(0.09), 2);
  EXPECT_EQ(advance(-1), 3) << "a rejected one, too";
  EXPECT_EQ(advance(0.11), 0) << "more than 0.1 %";
}

TEST(HessianFree, StepWithoutSufficientDecreaseIsShortened) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  const OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  const OptimizerState<double> start = Start<double>(objective, options);
  const Sample all = DrawSample(model.layout(), DataSet::kTraining, 120, 0);
  const Vector<double> g = model.Gradient(start.theta, all, {})->gradient;
  // Every full step gains half of what c g'd asks for, and every shorter one 0.8 of its share, until alpha = 0.8^3.
  objective.on_losses = [&](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) {
      if (trials[i].direction == nullptr) {
        answers[i].loss = 1;
      } else {
        const double needed = 1e-2 * -g.dot(*trials[i].direction) * trials[i].step;
        answers[i].loss = 1 - (trials[i].step < 0.55 ? 1.2 : trials[i].step < 1 ? 0.8 : 0.5) * needed;
      }
    }
  };
  const auto next = Iterate<double>(start, objective, options);
  EXPECT_TRUE(next->report.accepted);
  EXPECT_NEAR(next->report.step_length, std::pow(0.8, 3), 1e-15);
}

TEST(HessianFree, RescueTakesAPartOfADirectionThatIsTooLong) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  objective.on_losses = [](absl::Span<const Trial<double>> trials, std::vector<LossAnswer>& answers) {
    for (size_t i = 0; i < trials.size(); ++i) {
      if (trials[i].direction != nullptr && trials[i].step > 0.3) answers[i].loss = 1e6;
    }
  };
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  const OptimizerState<double> start = Start<double>(objective, options);
  EXPECT_FALSE(Iterate<double>(start, objective, options)->report.accepted) << "off by default";
  options.line_search.rescue_tries = 4;
  const auto rescued = Iterate<double>(start, objective, options);
  EXPECT_TRUE(rescued->report.accepted);
  EXPECT_EQ(rescued->report.step_length, 0.25);
  const Trial<double> at_theta{};
  const Sample all = DrawSample(model.layout(), DataSet::kHeldOut, 120, 0);
  EXPECT_EQ(rescued->state.held_out_loss, (*model.Losses(rescued->state.theta, {&at_theta, 1}, all))[0].loss)
      << "the loss that was accepted is that of the new theta";
  EXPECT_GT(rescued->state.damping, start.damping) << "the model was wrong all the same";
}

TEST(HessianFree, NanNeverReachesTheta) {
  LeastSquaresObjective<float> model = CurvedProblem<float>();
  constexpr float kBad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
  for (const auto& [name, options] : Settings()) {
    ScriptedObjective<float> objective(model);
    Random random(7);
    int calls = 0;
    objective.on_losses = [&](absl::Span<const Trial<float>> trials, std::vector<LossAnswer>& answers) {
      for (size_t i = 0; i < trials.size(); ++i) {
        if (trials[i].direction != nullptr && random.Number() > 0.5) answers[i].loss = kBad[calls++ % 3];
      }
    };
    objective.on_product = [&](const Vector<float>&, Vector<float>& product) {
      if (random.Number() > 0.8) product[0] = kBad[calls++ % 3];
    };
    objective.on_gradient = [&](GradientAnswer<float>& answer) {
      if (random.Number() > 0.8) answer.gradient[2] = kBad[calls++ % 3];
    };
    OptimizerState<float> state = Start<float>(objective, options);
    for (int i = 0; i < 40; ++i) {
      auto next = Iterate<float>(state, objective, options);
      if (!next.ok()) continue;  // a gradient that is none
      state = next->state;
      ASSERT_TRUE(state.theta.allFinite() && state.warm_start.allFinite()) << name;
      ASSERT_TRUE(std::isfinite(state.damping) && std::isfinite(state.held_out_loss)) << name;
    }
    EXPECT_GT(calls, 20);
    EXPECT_GT(state.iteration, 10);
  }
}

TEST(HessianFree, NonFiniteGradientIsAnErrorThatNamesTheElement) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  const OptimizerOptions options;
  objective.on_gradient = [](GradientAnswer<double>& answer) { answer.gradient[4] = kNaN; };
  absl::Status status = Iterate<double>(Start<double>(objective, options), objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gradient is nan at index 4 of 6"));

  objective.on_gradient = [](GradientAnswer<double>& answer) { answer.loss = kNaN; };
  status = Iterate<double>(Start<double>(objective, options), objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("training loss at theta"));
}

TEST(HessianFree, StartingPointWithoutHeldOutLossIsAnError) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  objective.on_losses = [](absl::Span<const Trial<double>>, std::vector<LossAnswer>& answers) {
    answers.back().loss = kNaN;
  };
  const OptimizerOptions options;
  const absl::Status status = Iterate<double>(Start<double>(objective, options), objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("held-out loss at theta"));
}

TEST(HessianFree, PairsOfAnIterationShortenTheSolveOfTheNext) {
  // Linear least squares with a bulk of curvature around 1, and 12 large ones: the first step leaves another gradient,
  // and the same G.
  constexpr int kSize = 60;
  Random random(1);
  Eigen::VectorXd eigenvalues = random.Vector(kSize).array() / 4 + 1;
  for (int i = 0; i < 12; ++i) eigenvalues[i] = 10 * std::pow(1.8, i);
  const Eigen::MatrixXd A =
      random.Orthogonal(kSize) * (kSize * eigenvalues).cwiseSqrt().asDiagonal() * random.Orthogonal(kSize);
  LeastSquaresObjective<double> objective(kSize, SameData(kSize), LinearResiduals(A, random.Vector(kSize)));
  const auto iterations_of_second_solve = [&](LbfgsMode mode) {
    OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
    options.conjugate_gradient = {
        .max_iterations = 200, .progress_tolerance = 0, .residual_tolerance = 1e-3, .warm_start_decay = 0};
    options.preconditioner = {.lbfgs = mode, .memory = 32};
    const auto first = Iterate(Start(objective, options), objective, options);
    const auto second = Iterate(first->state, objective, options);
    EXPECT_EQ(first->state.pairs.empty(), mode == LbfgsMode::kNone);
    EXPECT_EQ(second->report.cg_stop, CgStop::kResidual);
    EXPECT_EQ(second->report.pairs_kept > 0, mode != LbfgsMode::kNone);
    return second->report.cg_iterations;
  };
  const int plain = iterations_of_second_solve(LbfgsMode::kNone);
  EXPECT_LE(iterations_of_second_solve(LbfgsMode::kFrozen), 0.7 * plain) << plain;
  EXPECT_LE(iterations_of_second_solve(LbfgsMode::kFlexible), 0.7 * plain) << plain;
}

TEST(HessianFree, PreconditionerIsNeverOffInSilence) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  objective.on_gradient = [](GradientAnswer<double>& answer) { answer.second_moment.resize(0); };
  OptimizerOptions options;
  options.preconditioner.diagonal = DiagonalMode::kSquaredGradients;
  const absl::Status status = Iterate<double>(Start<double>(objective, options), objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("second moment"));
}

TEST(HessianFree, GradientOfTheWrongSizeIsAnError) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  objective.on_gradient = [](GradientAnswer<double>& answer) { answer.gradient.setOnes(5); };
  const OptimizerOptions options;
  const absl::Status status = Iterate<double>(Start<double>(objective, options), objective, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gradient has 5 elements, theta has 6"));
}

TEST(HessianFree, DiagonalPreconditionerIsThatOfMartens) {
  // The first direction of a capped solve is D^-1 g with D = (second moment + lambda)^0.75.
  LeastSquaresObjective<double> objective = CurvedProblem();
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.conjugate_gradient.max_iterations = 1;
  options.preconditioner.diagonal = DiagonalMode::kSquaredGradients;
  options.damping.initial = 0.3;
  const OptimizerState<double> start = Start(objective, options);
  const auto next = Iterate(start, objective, options);
  const Sample all = DrawSample(objective.layout(), DataSet::kTraining, 120, 0);
  const auto gradient = *objective.Gradient(start.theta, all, {.second_moment = true});
  const Eigen::VectorXd z = -(gradient.gradient.array() / (gradient.second_moment.array() + 0.3).pow(0.75)).matrix();
  const Eigen::VectorXd step = next->state.theta - start.theta;
  EXPECT_NEAR(step.dot(z), step.norm() * z.norm(), 1e-12 * step.norm() * z.norm()) << "parallel";
}

TEST(HessianFree, DiagonalIsThatOfAFewExamplesOthersForEachSolve) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.conjugate_gradient.max_iterations = 1;
  options.preconditioner = {.diagonal = DiagonalMode::kSquaredGradients, .diagonal_examples = 30};
  options.damping.initial = 0.3;
  options.samples.initial_gradient_examples = 60;
  OptimizerState<double> start = Start<double>(objective, options);
  start.gradient_cursor = 60;
  start.curvature_cursor = 90;
  const auto next = Iterate<double>(start, objective, options);

  const Sample many = DrawSample(model.layout(), DataSet::kTraining, 60, 60), few = DrawSample(model.layout(), DataSet::kTraining, 30, 90);
  ASSERT_EQ(objective.Count(CallKind::kGradient), 2);
  EXPECT_EQ(objective.calls[0].sample, many);
  EXPECT_FALSE(objective.calls[0].extras.second_moment);
  EXPECT_EQ(objective.calls[1].sample, few);
  EXPECT_TRUE(objective.calls[1].extras.second_moment);
  EXPECT_EQ(next->state.cost.gradient_examples, 90) << "is counted";
  const Eigen::ArrayXd g = model.Gradient(start.theta, many, {})->gradient.array();
  const Eigen::ArrayXd squares = model.Gradient(start.theta, few, {.second_moment = true})->second_moment.array();
  const Eigen::VectorXd z = -(g / (squares + 0.3).pow(0.75)).matrix();
  const Eigen::VectorXd step = next->state.theta - start.theta;
  EXPECT_NEAR(step.dot(z), step.norm() * z.norm(), 1e-12 * step.norm() * z.norm()) << "parallel";

  for (const int64_t all : {0, 60, 1000}) {
    options.preconditioner.diagonal_examples = all;
    objective.calls.clear();
    ASSERT_TRUE(Iterate<double>(start, objective, options).ok());
    ASSERT_EQ(objective.Count(CallKind::kGradient), 1) << all;
    EXPECT_TRUE(objective.calls[0].extras.second_moment);
  }
}

TEST(HessianFree, FirstDampingIsHalfTheCurvatureAlongTheGradient) {
  LeastSquaresObjective<double> model = CurvedProblem();
  ScriptedObjective<double> objective(model);
  OptimizerOptions options = WithAllCurvature(OptimizerOptions::Published());
  options.damping.initial = 0;
  const OptimizerState<double> start = Start<double>(objective, options);
  const auto first = Iterate<double>(start, objective, options);
  const int cg_products = first->report.cg_iterations;
  EXPECT_EQ(objective.Count(CallKind::kProduct), cg_products + 1);
  EXPECT_EQ(first->state.cost.products, cg_products + 1);

  const Sample all = DrawSample(model.layout(), DataSet::kTraining, model.layout().training_examples, 0);
  const Vector<double> g = model.Gradient(start.theta, all, {})->gradient;
  Vector<double> product;
  ASSERT_TRUE((*model.GaussNewtonAt(start.theta, all))->Apply(g, product).ok());
  EXPECT_NEAR(first->report.damping, g.dot(product) / g.squaredNorm() / 2, 1e-12 * first->report.damping);

  options.damping.initial = first->report.damping;
  const auto given = Iterate<double>(Start<double>(objective, options), objective, options);
  EXPECT_EQ(given->state.theta, first->state.theta);
  EXPECT_EQ(given->state.damping, first->state.damping);
  // It is measured once.
  options.damping.initial = 0;
  EXPECT_EQ(Iterate<double>(first->state, objective, options)->report.damping, first->state.damping);
}

TEST(HessianFree, DiagonalIsUsedWhereItIsOffered) {
  LeastSquaresObjective<double> with = CurvedProblem();
  struct Without : ScriptedObjective<double> {
    using ScriptedObjective<double>::ScriptedObjective;
    bool has_second_moment() const override { return false; }
  } without(with);
  OptimizerOptions none = OptimizerOptions::Published(), if_offered = none, always = none;
  if_offered.preconditioner.diagonal = DiagonalMode::kSquaredGradientsIfOffered;
  always.preconditioner.diagonal = DiagonalMode::kSquaredGradients;
  const auto theta = [](Objective<double>& objective, const OptimizerOptions& options) {
    return Iterate<double>(Start<double>(objective, options), objective, options)->state.theta;
  };
  EXPECT_EQ(theta(with, if_offered), theta(with, always));
  EXPECT_EQ(theta(without, if_offered), theta(with, none));
  EXPECT_NE(theta(with, always), theta(with, none));
}

}  // namespace
}  // namespace hfopt
