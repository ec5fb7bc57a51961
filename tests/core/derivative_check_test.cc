#include "core/derivative_check.h"

#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Dense"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"
#include "tests/support/least_squares_objective.h"
#include "tests/support/scripted_objective.h"

namespace hfopt {
namespace {

using support::CallKind;
using support::CurvedResiduals;
using support::LeastSquaresObjective;
using support::LinearResiduals;
using support::Random;
using support::ScriptedObjective;
using ::testing::Contains;
using ::testing::IsEmpty;

template <typename Scalar>
std::set<std::string> Failures(Objective<Scalar>& objective, const Vector<Scalar>& theta,
                               const DerivativeCheckOptions& options = {}) {
  const auto results = CheckDerivatives(objective, theta, options);
  EXPECT_TRUE(results.ok()) << results.status();
  std::set<std::string> failures;
  for (const DerivativeCheckResult& result : *results) {
    EXPECT_FALSE(result.meaning.empty());
    EXPECT_EQ(result.passed, result.error <= result.limit);
    if (!result.passed) failures.insert(result.name);
  }
  return failures;
}

// A right objective, and a way to make one mistake in it.
template <typename Scalar>
class DerivativeCheck : public ::testing::Test {
 protected:
  static constexpr int kParameters = 8;
  static constexpr int kExamples = 50;

  std::set<std::string> Failures(const DerivativeCheckOptions& options = {}) {
    return hfopt::Failures<Scalar>(mistaken_, theta_, options);
  }

  Random random_{1};
  const DataLayout layout_{.shards = 3, .training_examples = kExamples, .held_out_examples = 10};
  const Eigen::MatrixXd A_ = random_.Matrix(kExamples, kParameters), C_ = random_.Matrix(kExamples, kParameters);
  const Eigen::VectorXd y_ = random_.Vector(kExamples).array() + 1;
  LeastSquaresObjective<Scalar> right_{kParameters, layout_, CurvedResiduals(A_, C_, y_)};
  ScriptedObjective<Scalar> mistaken_{right_};
  const Vector<Scalar> theta_ = 0.5 * random_.Vector(kParameters).cast<Scalar>();
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(DerivativeCheck, Scalars);

TYPED_TEST(DerivativeCheck, PassesWhatIsRight) {
  for (const int64_t examples : {256, 31, 7}) {  // all data, or windows that wrap
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      EXPECT_THAT(this->Failures({.probes = 2, .seed = seed, .examples = examples}), IsEmpty()) << examples;
    }
  }
}

TYPED_TEST(DerivativeCheck, PassesALinearModelAndOneWithMoreParametersThanExamples) {
  Random random(3);
  LeastSquaresObjective<TypeParam> linear(5, this->layout_, LinearResiduals(random.Matrix(50, 5), random.Vector(50)));
  EXPECT_THAT(Failures<TypeParam>(linear, Vector<TypeParam>::Zero(5)), IsEmpty());
  LeastSquaresObjective<TypeParam> wide(200, this->layout_, LinearResiduals(random.Matrix(50, 200), random.Vector(50)));
  EXPECT_THAT(Failures<TypeParam>(wide, Vector<TypeParam>::Zero(200)), IsEmpty()) << "G is singular, and that is right";
}

TYPED_TEST(DerivativeCheck, PassesAnExactMinimum) {
  LeastSquaresObjective<TypeParam> linear(3, this->layout_,
                                          LinearResiduals(Random(1).Matrix(50, 3), Eigen::VectorXd::Zero(50)));
  EXPECT_THAT(Failures<TypeParam>(linear, Vector<TypeParam>::Zero(3)), IsEmpty());
}

TYPED_TEST(DerivativeCheck, CatchesAGradientOffByAFactor) {
  for (const double factor : {2.0, 0.5, 1.1}) {
    this->mistaken_.on_gradient = [&](auto& answer) { answer.gradient *= static_cast<TypeParam>(factor); };
    EXPECT_THAT(this->Failures(), Contains("gradient")) << factor;
  }
}

TYPED_TEST(DerivativeCheck, CatchesAGradientOfTheWrongSign) {
  this->mistaken_.on_gradient = [](auto& answer) { answer.gradient = -answer.gradient; };
  EXPECT_THAT(this->Failures(), Contains("gradient"));
}

TYPED_TEST(DerivativeCheck, CatchesOneWrongElementOfTheGradient) {
  this->mistaken_.on_gradient = [](auto& answer) { answer.gradient[3] *= 2; };
  EXPECT_THAT(this->Failures(), Contains("gradient"));
}

TYPED_TEST(DerivativeCheck, CatchesASumWhereTheMeanIsDue) {
  this->mistaken_.on_gradient = [](auto& answer) { answer.gradient *= static_cast<TypeParam>(answer.weight); };
  EXPECT_THAT(this->Failures(), Contains("gradient"));
}

// Shards of different sizes weigh the same: the mean of the shards' means.
template <typename Scalar>
class MeanOfMeans : public ScriptedObjective<Scalar> {
 public:
  MeanOfMeans(Objective<Scalar>& objective, DataLayout layout)
      : ScriptedObjective<Scalar>(objective), layout_(layout) {}

  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override {
    GradientAnswer<Scalar> mean{.gradient = Vector<Scalar>::Zero(theta.size())};
    for (int s = 0; s < layout_.shards; ++s) {
      Sample shard = sample;
      for (int other = 0; other < layout_.shards; ++other) {
        if (other != s) shard.windows[other].count = 0;
      }
      if (shard.size() == 0) continue;
      const auto part = *ScriptedObjective<Scalar>::Gradient(theta, shard, extras);
      mean.loss += part.loss / layout_.shards;
      mean.gradient += part.gradient / layout_.shards;
      mean.weight += part.weight;
    }
    return mean;
  }

 private:
  DataLayout layout_;
};

TYPED_TEST(DerivativeCheck, CatchesMeansOfMeans) {
  const DataLayout uneven{.shards = 3, .training_examples = 5};
  LeastSquaresObjective<TypeParam> right(this->kParameters, uneven, CurvedResiduals(this->A_, this->C_, this->y_));
  MeanOfMeans<TypeParam> mistaken(right, uneven);
  const std::set<std::string> failures = Failures<TypeParam>(mistaken, this->theta_);
  EXPECT_THAT(failures, Contains("samples"));
  EXPECT_THAT(failures, Contains("loss"));
}

TYPED_TEST(DerivativeCheck, CatchesALossOfOtherDataThanTheGradient) {
  this->mistaken_.on_gradient = [](auto& answer) { answer.loss *= static_cast<TypeParam>(1.01); };
  EXPECT_THAT(this->Failures(), Contains("loss"));
}

TYPED_TEST(DerivativeCheck, CatchesAnAsymmetricProduct) {
  const Eigen::MatrixXd skew = this->random_.Matrix(this->kParameters, this->kParameters);
  this->mistaken_.on_product = [&](const auto& v, auto& product) {
    product += (0.1 * (skew - skew.transpose()) * v.template cast<double>()).template cast<TypeParam>();
  };
  EXPECT_THAT(this->Failures(), Contains("symmetry"));
}

// A constant loss of many parameters, with G v = v + 0.1 v moved by one place: not symmetric.
template <typename Scalar>
class ShiftObjective : public Objective<Scalar> {
 public:
  int64_t num_parameters() const override { return 1'000'000; }
  const DataLayout& layout() const override { return layout_; }
  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>&, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample&) override {
    return std::vector<LossAnswer>(trials.size(), LossAnswer{.loss = 1, .weight = 1});
  }
  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras&) override {
    const double weight = static_cast<double>(sample.size());
    return GradientAnswer<Scalar>{.loss = 1, .weight = weight, .gradient = Vector<Scalar>::Zero(theta.size())};
  }
  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>&,
                                                                          const Sample&) override {
    return std::make_unique<Product>();
  }

 private:
  class Product : public CurvatureProduct<Scalar> {
    absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
      product = v;
      product.head(v.size() - 1) += Scalar{0.1} * v.tail(v.size() - 1);
      return absl::OkStatus();
    }
  };
  DataLayout layout_{.shards = 1, .training_examples = 4};
};

TYPED_TEST(DerivativeCheck, CatchesAnAsymmetricProductOfManyParameters) {
  // u'Gv of random directions is small beside |u||Gv| in so many dimensions, but not beside |Gv|.
  ShiftObjective<TypeParam> objective;
  const Vector<TypeParam> theta = Vector<TypeParam>::Zero(objective.num_parameters());
  EXPECT_THAT(Failures<TypeParam>(objective, theta, {.probes = 1}), Contains("symmetry"));
}

TYPED_TEST(DerivativeCheck, CatchesTheHessianInsteadOfTheGaussNewtonMatrix) {
  // The Hessian is J'J + sum r_i C_i'C_i over N. With data far above the model the residuals are negative, and it is
  // indefinite.
  const Eigen::VectorXd y = this->y_.array() + 1.5;
  LeastSquaresObjective<TypeParam> right(this->kParameters, this->layout_, CurvedResiduals(this->A_, this->C_, y));
  const Eigen::VectorXd theta = this->theta_.template cast<double>();
  const Eigen::VectorXd c = this->C_ * theta;
  const Eigen::MatrixXd J = this->A_ + c.asDiagonal() * this->C_;
  const Eigen::VectorXd r = this->A_ * theta + c.cwiseAbs2() / 2 - y;
  const Eigen::MatrixXd hessian =
      (J.transpose() * J + this->C_.transpose() * r.asDiagonal() * this->C_) / static_cast<double>(this->kExamples);
  ScriptedObjective<TypeParam> mistaken(right);
  mistaken.on_product = [&](const auto& v, auto& product) {
    product = (hessian * v.template cast<double>()).template cast<TypeParam>();
  };
  ASSERT_LT(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(hessian).eigenvalues().minCoeff(), 0);
  EXPECT_THAT(Failures<TypeParam>(mistaken, this->theta_), Contains("semidefinite"));
}

TYPED_TEST(DerivativeCheck, CatchesASingleNegativeEigenvalue) {
  // Random directions see the trace, which is positive here, and not the one direction of negative curvature.
  Eigen::VectorXd eigenvalues = Eigen::VectorXd::LinSpaced(this->kParameters, 0.5, 1);
  eigenvalues[0] = -0.1;
  const Eigen::MatrixXd G = this->random_.Symmetric(eigenvalues);
  this->mistaken_.on_product = [&](const auto& v, auto& product) {
    product = (G * v.template cast<double>()).template cast<TypeParam>();
  };
  EXPECT_THAT(this->Failures(), Contains("semidefinite"));
}

TYPED_TEST(DerivativeCheck, CatchesAProductOfTheWrongSign) {
  this->mistaken_.on_product = [](const auto&, auto& product) { product = -product; };
  EXPECT_THAT(this->Failures(), Contains("semidefinite"));
}

TYPED_TEST(DerivativeCheck, CatchesAProductThatIsNotLinear) {
  this->mistaken_.on_product = [](const auto& v, auto& product) { product += v.cwiseAbs(); };
  EXPECT_THAT(this->Failures(), Contains("linearity"));
}

TYPED_TEST(DerivativeCheck, CatchesAnswersThatChangeWhenAskedAgain) {
  Random random(5);
  const auto wobble = [&] { return static_cast<TypeParam>(1 + 1e-6 * random.Number()); };
  this->mistaken_.on_product = [&](const auto&, auto& product) { product *= wobble(); };
  EXPECT_THAT(this->Failures(), Contains("determinism"));
  this->mistaken_.on_product = nullptr;
  this->mistaken_.on_gradient = [&](auto& answer) { answer.gradient *= wobble(); };
  EXPECT_THAT(this->Failures(), Contains("determinism"));
  this->mistaken_.on_gradient = nullptr;
  this->mistaken_.on_losses = [&](auto, auto& answers) {
    for (LossAnswer& answer : answers) answer.loss *= 1 + 1e-12 * random.Number();
  };
  EXPECT_THAT(this->Failures(), Contains("determinism"));
}

TYPED_TEST(DerivativeCheck, CatchesWindowsThatAreNotHonoured) {
  const auto begins_at_zero = [](Sample& sample) {
    for (Window& window : sample.windows) window.begin = 0;
  };
  // Everywhere, or in one kind of call only.
  this->mistaken_.on_sample = [&](CallKind, Sample& sample) { begins_at_zero(sample); };
  EXPECT_THAT(this->Failures(), Contains("samples"));
  this->mistaken_.on_sample = [&](CallKind kind, Sample& sample) {
    if (kind == CallKind::kLosses) begins_at_zero(sample);
  };
  EXPECT_THAT(this->Failures({.examples = 30}), Contains("loss"));
  this->mistaken_.on_sample = [&](CallKind kind, Sample& sample) {
    if (kind == CallKind::kLinearization) begins_at_zero(sample);
  };
  EXPECT_THAT(this->Failures(), Contains("samples"));
}

TYPED_TEST(DerivativeCheck, CatchesAProductThatIsASumInsteadOfAMean) {
  // Neither symmetry nor linearity can see it: only that the two halves do not make the whole.
  double size = 0;
  this->mistaken_.on_sample = [&](CallKind kind, Sample& sample) {
    if (kind == CallKind::kLinearization) size = static_cast<double>(sample.size());
  };
  this->mistaken_.on_product = [&](const auto&, auto& product) { product *= static_cast<TypeParam>(size); };
  EXPECT_THAT(this->Failures(), Contains("samples"));
}

TYPED_TEST(DerivativeCheck, NanNeverPasses) {
  constexpr TypeParam kNaN = std::numeric_limits<TypeParam>::quiet_NaN();
  this->mistaken_.on_losses = [](auto, auto& answers) {
    for (LossAnswer& answer : answers) answer.loss = kNaN;
  };
  std::set<std::string> failures = this->Failures();
  EXPECT_THAT(failures, Contains("loss"));
  EXPECT_THAT(failures, Contains("gradient"));
  this->mistaken_.on_losses = nullptr;
  this->mistaken_.on_gradient = [](auto& answer) { answer.gradient[1] = kNaN; };
  failures = this->Failures();
  EXPECT_THAT(failures, Contains("gradient"));
  EXPECT_THAT(failures, Contains("samples"));
  this->mistaken_.on_gradient = nullptr;
  this->mistaken_.on_product = [](const auto&, auto& product) { product[1] = kNaN; };
  failures = this->Failures();
  for (const char* name : {"symmetry", "semidefinite", "linearity", "samples"}) EXPECT_THAT(failures, Contains(name));
}

TYPED_TEST(DerivativeCheck, PassesAnErrorOn) {
  ASSERT_TRUE(CheckDerivatives<TypeParam>(this->mistaken_, this->theta_, {}).ok());
  const int calls = static_cast<int>(this->mistaken_.calls.size());
  for (int k = 0; k < calls; ++k) {
    this->mistaken_.calls.clear();
    this->mistaken_.fails_at = k;
    EXPECT_EQ(CheckDerivatives<TypeParam>(this->mistaken_, this->theta_, {}).status(), this->mistaken_.failure);
  }
}

// --- The spot check of a run that is under way

template <typename Scalar>
class SpotCheck : public DerivativeCheck<Scalar> {
 protected:
  std::set<std::string> Failures() { return FailuresOf(this->mistaken_, this->theta_, DrawSample(this->layout_, DataSet::kTraining, 12, 20)); }

  static std::set<std::string> FailuresOf(Objective<Scalar>& objective, const Vector<Scalar>& theta, const Sample& sample) {
    const auto results = SpotCheckDerivatives(objective, theta, sample);
    EXPECT_TRUE(results.ok()) << results.status();
    std::set<std::string> failures;
    for (const DerivativeCheckResult& result : *results) {
      EXPECT_FALSE(result.meaning.empty());
      EXPECT_EQ(result.passed, result.error <= result.limit);
      if (!result.passed) failures.insert(result.name);
    }
    return failures;
  }
};
TYPED_TEST_SUITE(SpotCheck, Scalars);

TYPED_TEST(SpotCheck, PassesWhatIsRightInEveryScale) {
  for (const double scale : {1e-9, 1e-3, 1., 1e4}) {  // of the parameters
    LeastSquaresObjective<TypeParam> right(this->kParameters, this->layout_, CurvedResiduals(this->A_ / scale, this->C_ / scale, this->y_));
    for (int i = 0; i < 20; ++i) {
      const Vector<TypeParam> theta = (scale * this->random_.Vector(this->kParameters)).template cast<TypeParam>();
      for (const int64_t examples : {3, 12, 50}) {
        EXPECT_THAT(this->FailuresOf(right, theta, DrawSample(this->layout_, DataSet::kTraining, examples, 7 * i)), IsEmpty()) << scale << " " << i;
      }
    }
  }
}

TYPED_TEST(SpotCheck, PassesASingleShardAndASingleExample) {
  Sample sample{.windows = std::vector<Window>(3)};
  for (const int64_t count : {1, 2, 4}) {
    sample.windows[1] = {.begin = 15, .count = count};
    EXPECT_THAT(this->FailuresOf(this->right_, this->theta_, sample), IsEmpty()) << count;
  }
}

TYPED_TEST(SpotCheck, PassesAMinimumAndItsSurroundings) {
  Random random(1);
  LeastSquaresObjective<TypeParam> linear(3, this->layout_, LinearResiduals(random.Matrix(50, 3), Eigen::VectorXd::Zero(50)));
  const Sample all = DrawSample(this->layout_, DataSet::kTraining, 50, 0);
  EXPECT_THAT(this->FailuresOf(linear, Vector<TypeParam>::Zero(3), all), IsEmpty());
  EXPECT_THAT(this->FailuresOf(linear, (1e-12 * random.Vector(3)).template cast<TypeParam>(), all), IsEmpty());
  // A loss that does not go to zero, where rounding is all that moves it.
  const Eigen::MatrixXd A = random.Matrix(50, 3);
  const Eigen::VectorXd y = random.Vector(50);
  LeastSquaresObjective<TypeParam> noisy(3, this->layout_, LinearResiduals(A, y));
  const Eigen::VectorXd minimum = A.colPivHouseholderQr().solve(y);
  EXPECT_THAT(this->FailuresOf(noisy, minimum.template cast<TypeParam>(), all), IsEmpty());
}

TYPED_TEST(SpotCheck, CatchesAGradientOfAWrongSignOrFactor) {
  for (const double factor : {-1., 2., 0.5, 0.25, -3., 1.2}) {
    this->mistaken_.on_gradient = [&](auto& answer) { answer.gradient *= static_cast<TypeParam>(factor); };
    EXPECT_THAT(this->Failures(), Contains("gradient")) << factor;
  }
}

TYPED_TEST(SpotCheck, CatchesAProductOfTheWrongSign) {
  this->mistaken_.on_product = [](const auto&, auto& product) { product = -product; };
  EXPECT_THAT(this->Failures(), Contains("semidefinite"));
}

// A worker that answers with means makes what the server divides by the weight too small, by the weight.
TYPED_TEST(SpotCheck, CatchesMeansInThePlaceOfSums) {
  this->mistaken_.on_losses = [](auto, auto& answers) {
    for (LossAnswer& answer : answers) answer.loss /= answer.weight;
  };
  EXPECT_THAT(this->Failures(), Contains("gradient"));
  this->mistaken_.on_gradient = [](auto& answer) {
    answer.gradient /= static_cast<TypeParam>(answer.weight);
    answer.loss /= answer.weight;
  };
  EXPECT_THAT(this->Failures(), Contains("samples"));
  this->mistaken_.on_losses = nullptr;
  EXPECT_THAT(this->Failures(), Contains("gradient"));
}

TYPED_TEST(SpotCheck, CatchesWindowsThatAreNotHonoured) {
  this->mistaken_.on_sample = [](CallKind kind, Sample& sample) {
    if (kind != CallKind::kLinearization) return;
    for (Window& window : sample.windows) window.begin = 0;
  };
  EXPECT_THAT(this->Failures(), Contains("samples"));
}

TYPED_TEST(SpotCheck, CostsLittle) {
  ASSERT_THAT(this->Failures(), IsEmpty());
  EXPECT_EQ(this->mistaken_.Count(CallKind::kGradient), 1);
  EXPECT_EQ(this->mistaken_.Count(CallKind::kProduct), 3);
  int points = 0;
  for (const auto& call : this->mistaken_.calls) points += call.trials;
  EXPECT_LE(points, 20);
}

TYPED_TEST(SpotCheck, AnswersTheFailureOfEveryCall) {
  ASSERT_THAT(this->Failures(), IsEmpty());
  const int calls = static_cast<int>(this->mistaken_.calls.size());
  for (int at = 0; at < calls; ++at) {
    ScriptedObjective<TypeParam> failing(this->right_);
    failing.fails_at = at;
    EXPECT_EQ(SpotCheckDerivatives<TypeParam>(failing, this->theta_, DrawSample(this->layout_, DataSet::kTraining, 12, 20)).status(), failing.failure);
  }
}

}  // namespace
}  // namespace hfopt
