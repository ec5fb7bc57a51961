#include "client/cpp/evaluator.h"

#include <limits>
#include <new>
#include <stdexcept>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/cpp/quadratic_model.h"
#include "tests/support/shared.h"

namespace hfopt::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using hfopt::testing::Share;

// The factors of the examples of Window(10) add up to 55.
v1::Slice Window(uint64_t count) {
  v1::Slice slice;
  slice.set_data_set(v1::DATA_SET_TRAINING);
  slice.set_shards(1);
  slice.set_count(count);
  return slice;
}

template <typename Scalar>
Evaluation<Scalar> ProductAt(const std::string& name, const Vector<Scalar>& theta, uint64_t count) {
  Evaluation<Scalar> e;
  *e.request.mutable_slice() = Window(count);
  e.request.mutable_product()->mutable_point()->set_base(name);
  e.request.mutable_product()->set_direction("v");
  e.vectors[name] = Share<Scalar>(theta);
  e.vectors["v"] = Share<Scalar>(Vector<Scalar>::Ones(theta.size()));
  return e;
}

Evaluation<float> LossAt(const Vector<float>& theta) {
  Evaluation<float> e;
  e.request.set_id(7);
  *e.request.mutable_slice() = Window(10);
  e.request.mutable_losses()->add_points()->set_base("t");
  e.vectors["t"] = Share<float>(theta);
  return e;
}

template <typename Scalar>
class EvaluatorOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(EvaluatorOf, Scalars);

TYPED_TEST(EvaluatorOf, CombinesPointsTermByTermInTheElementType) {
  // Takes theta apart: the loss is 0, theta is seen by the gradient of one example with factor 1.
  QuadraticModel<TypeParam> model(3);
  Evaluator<TypeParam> evaluator(model, {}, 1);
  const Vector<TypeParam> x{{TypeParam(0.1), TypeParam(1e7), TypeParam(-3)}};
  const Vector<TypeParam> u{{TypeParam(0.7), TypeParam(0.3), TypeParam(1e-9)}};
  const Vector<TypeParam> w{{TypeParam(-0.2), TypeParam(0.1), TypeParam(1e9)}};
  Evaluation<TypeParam> e;
  *e.request.mutable_slice() = Window(1);
  v1::Point& point = *e.request.mutable_gradient()->mutable_point();
  point.set_base("x");
  point.add_terms()->set_vector("u");
  point.mutable_terms(0)->set_coefficient(0.1);
  point.add_terms()->set_vector("w");
  point.mutable_terms(1)->set_coefficient(-1.0 / 3);
  e.vectors = {{"x", Share<TypeParam>(x)},
               {"u", Share<TypeParam>(u)},
               {"w", Share<TypeParam>(w)}};

  const Evaluated<TypeParam> result = evaluator.Evaluate(e);

  ASSERT_TRUE(result.answer.has_gradient());
  for (int i = 0; i < 3; ++i) {
    volatile TypeParam a = static_cast<TypeParam>(0.1) * u[i];  // volatile: each operation is rounded
    volatile TypeParam sum = x[i] + a;
    volatile TypeParam b = static_cast<TypeParam>(-1.0 / 3) * w[i];
    sum = sum + b;
    EXPECT_EQ(result.vectors.at(0).second.map()[i], sum);
  }
}

TYPED_TEST(EvaluatorOf, KeepsALinearizationForPointAndSlice) {
  QuadraticModel<TypeParam> model(2);
  Evaluator<TypeParam> evaluator(model, {}, 8);
  const Vector<TypeParam> theta{{2, 0}};
  for (int i = 0; i < 3; ++i) {
    const auto result = evaluator.Evaluate(ProductAt<TypeParam>("t", theta, 10));
    ASSERT_TRUE(result.answer.has_product());
    EXPECT_EQ(result.answer.product().weight(), 10);
    EXPECT_EQ(result.vectors.at(0).second.map(), Vector<TypeParam>(Vector<TypeParam>::Constant(2, 110)));
  }
  EXPECT_EQ(model.linearize_calls, 1);
  evaluator.Evaluate(ProductAt<TypeParam>("t", theta, 9));
  EXPECT_EQ(model.linearize_calls, 2);
  evaluator.Release("other");
  EXPECT_EQ(model.live_linearizations, 2);
  evaluator.Release("t");
  EXPECT_EQ(model.live_linearizations, 0);
  evaluator.Evaluate(ProductAt<TypeParam>("t", theta, 10));
  EXPECT_EQ(model.linearize_calls, 3);
}

TEST(Evaluator, ForgetsTheLeastRecentlyUsedLinearization) {
  QuadraticModel<float> model(2);
  Evaluator<float> evaluator(model, {}, 2);
  const Vector<float> theta{{1, 0}};
  const auto linearizes = [&](const char* name) {
    const int before = model.linearize_calls;
    evaluator.Evaluate(ProductAt<float>(name, theta, 10));
    return model.linearize_calls > before;
  };
  EXPECT_TRUE(linearizes("a"));
  EXPECT_TRUE(linearizes("b"));
  EXPECT_FALSE(linearizes("a"));
  EXPECT_TRUE(linearizes("c"));  // b goes
  EXPECT_FALSE(linearizes("a"));
  EXPECT_TRUE(linearizes("b"));
  EXPECT_EQ(model.live_linearizations, 2);
}

TEST(Evaluator, KeepsACombinedPointAsLongAsItsLinearization) {
  QuadraticModel<float> model(2);
  Evaluator<float> evaluator(model, {}, 8);
  Evaluation<float> combined = ProductAt<float>("t", Vector<float>{{2, 0}}, 10);
  v1::Term& term = *combined.request.mutable_product()->mutable_point()->add_terms();
  term.set_vector("v");
  term.set_coefficient(1);  // theta = {3, 1}
  const auto first = evaluator.Evaluate(combined);
  // Another combined point must not be written over it.
  Evaluation<float> losses = LossAt(Vector<float>{{100, 100}});
  *losses.request.mutable_losses()->mutable_points(0)->add_terms() = term;
  losses.vectors["v"] = combined.vectors["v"];
  evaluator.Evaluate(losses);
  const auto second = evaluator.Evaluate(combined);
  EXPECT_EQ(model.linearize_calls, 1);
  EXPECT_EQ(first.vectors.at(0).second.map()[0], 165);
  EXPECT_EQ(second.vectors.at(0).second.map()[0], 165);
}

TEST(Evaluator, AnswersLossesOfManyPointsWithTheirMetrics) {
  QuadraticModel<float> model(2);
  Evaluator<float> evaluator(model, {}, 8);
  Evaluation<float> e = LossAt(Vector<float>{{1, 1}});
  v1::Point& twice = *e.request.mutable_losses()->add_points();
  twice.set_base("t");
  twice.add_terms()->set_vector("t");
  twice.mutable_terms(0)->set_coefficient(1);
  v1::Point& infinite = *e.request.mutable_losses()->add_points();
  infinite = twice;
  infinite.mutable_terms(0)->set_coefficient(std::numeric_limits<double>::infinity());

  const v1::Answer answer = evaluator.Evaluate(e).answer;

  EXPECT_EQ(answer.request_id(), 7u);
  EXPECT_GT(answer.compute_seconds(), 0);
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_THAT(answer.losses().loss_sums(), ElementsAre(55, 220, inf));
  EXPECT_EQ(answer.losses().weight(), 10);
  ASSERT_EQ(answer.losses().metrics_size(), 1);
  EXPECT_EQ(answer.losses().metrics(0).name(), "double_loss");
  EXPECT_THAT(answer.losses().metrics(0).sums(), ElementsAre(110, 440, inf));
}

TEST(Evaluator, AnswersGradientWithExtras) {
  QuadraticModel<double> model(2);
  Evaluator<double> evaluator(model, {}, 8);
  Evaluation<double> e;
  *e.request.mutable_slice() = Window(2);
  e.request.mutable_gradient()->mutable_point()->set_base("t");
  e.request.mutable_gradient()->set_sub_batches(2);
  e.request.mutable_gradient()->set_second_moment(true);
  e.vectors["t"] = Share<double>(Vector<double>{{1, 2}});

  const Evaluated<double> result = evaluator.Evaluate(e);

  const v1::GradientAnswer& gradient = result.answer.gradient();
  EXPECT_EQ(gradient.loss_sum(), 7.5);
  EXPECT_EQ(gradient.weight(), 2);
  ASSERT_EQ(result.vectors.size(), 2u);
  EXPECT_EQ(result.vectors[0].first, gradient.gradient_transfer());
  EXPECT_EQ(result.vectors[0].second.map(), (Vector<double>{{3, 6}}));
  EXPECT_EQ(result.vectors[1].first, gradient.second_moment_transfer());
  EXPECT_EQ(result.vectors[1].second.map(), (Vector<double>{{5, 20}}));
  ASSERT_EQ(gradient.sub_batches_size(), 2);
  EXPECT_EQ(gradient.sub_batches(1).squared_norm(), 20);
}

TEST(Evaluator, AnswersInitialParameters) {
  QuadraticModel<float> model(3);
  Evaluator<float> evaluator(model, {4}, 8);  // asked of any worker, whatever its shards
  Evaluation<float> e;
  e.request.mutable_initial_parameters()->set_seed(5);
  const Evaluated<float> result = evaluator.Evaluate(e);
  ASSERT_TRUE(result.answer.has_initial_parameters());
  EXPECT_EQ(result.vectors.at(0).first, result.answer.initial_parameters().parameters_transfer());
  EXPECT_EQ(result.vectors.at(0).second.map(), (Vector<float>{{5, 5, 5}}));
}

TEST(Evaluator, TurnsEverythingThatGoesWrongIntoAFailure) {
  const auto failure_of = [](std::function<absl::Status()> before, Evaluation<float> e) {
    QuadraticModel<float> model(2);
    model.before = std::move(before);
    Evaluated<float> result = Evaluator<float>(model, {0}, 8).Evaluate(e);
    EXPECT_TRUE(result.answer.has_failure());
    EXPECT_TRUE(result.vectors.empty());
    EXPECT_EQ(result.answer.request_id(), e.request.id());
    return absl::Status(static_cast<absl::StatusCode>(result.answer.failure().code()),
                        result.answer.failure().message());
  };
  const Evaluation<float> loss = LossAt(Vector<float>{{1, 1}});
  const auto fine = [] { return absl::OkStatus(); };

  EXPECT_EQ(failure_of([] { return absl::NotFoundError("features/17.npy is missing"); }, loss),
            absl::NotFoundError("losses on training shard 0 of 1: features/17.npy is missing"));
  EXPECT_EQ(failure_of([]() -> absl::Status { throw std::bad_alloc(); }, loss),
            absl::ResourceExhaustedError("losses on training shard 0 of 1: out of memory"));
  EXPECT_EQ(failure_of([]() -> absl::Status { throw std::runtime_error("oops"); }, loss),
            absl::InternalError("losses on training shard 0 of 1: the model threw: oops"));

  Evaluation<float> other_shard = loss;
  other_shard.request.mutable_slice()->set_shards(2);
  other_shard.request.mutable_slice()->set_shard(1);
  EXPECT_EQ(failure_of(fine, other_shard).code(), absl::StatusCode::kFailedPrecondition);

  Evaluation<float> too_many = loss;
  too_many.request.mutable_slice()->set_count(101);
  EXPECT_THAT(std::string(failure_of(fine, too_many).message()),
              HasSubstr("which has 100 of the 100 training examples"));

  Evaluation<float> unknown = loss;
  unknown.request.clear_kind();
  EXPECT_EQ(failure_of(fine, unknown).code(), absl::StatusCode::kUnimplemented);
}

TEST(Evaluator, RefusesAVectorOfTheWrongSizeFromTheModel) {
  class Wrong : public QuadraticModel<float> {
   public:
    using QuadraticModel::QuadraticModel;
    absl::StatusOr<Vector<float>> InitialParameters(uint64_t) override {
      const Vector<float> two = Vector<float>::Zero(2);
      return two;
    }
  };
  Wrong model(3);
  Evaluation<float> e;
  e.request.mutable_initial_parameters();
  const v1::Answer answer = Evaluator<float>(model, {}, 8).Evaluate(e).answer;
  EXPECT_THAT(answer.failure().message(), HasSubstr("has 2 elements, but the model has 3 parameters"));
}

TEST(VectorNames, ListsEveryVectorOnce) {
  v1::EvaluationRequest request;
  v1::Point point;
  point.set_base("a");
  point.add_terms()->set_vector("b");
  *request.mutable_losses()->add_points() = point;
  request.mutable_losses()->add_points()->set_base("a");
  EXPECT_THAT(VectorNames(request), ElementsAre("a", "b"));
  *request.mutable_product()->mutable_point() = point;
  request.mutable_product()->set_direction("c");
  EXPECT_THAT(VectorNames(request), ElementsAre("a", "b", "c"));
}

}  // namespace
}  // namespace hfopt::client
