#include "core/cost.h"

#include "core/counting_objective.h"
#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"
#include "tests/support/least_squares_objective.h"
#include "tests/support/scripted_objective.h"

namespace hfopt {
namespace {

using support::LeastSquaresObjective;
using support::LinearResiduals;
using support::Random;
using support::ScriptedObjective;

TEST(Cost, ExamplePassesWeighEvaluationsByTheirWork) {
  EXPECT_EQ((Cost{.gradients = 1, .gradient_examples = 100}).ExamplePasses(100), 3);
  EXPECT_EQ((Cost{.linearizations = 1, .linearization_examples = 100}).ExamplePasses(100), 1);
  EXPECT_EQ((Cost{.products = 2, .product_examples = 100}).ExamplePasses(100), 4);
  EXPECT_EQ((Cost{.losses = 7, .loss_examples = 50}).ExamplePasses(100), 0.5);
  EXPECT_EQ((Cost{.gradient_examples = 10, .linearization_examples = 2, .product_examples = 20, .loss_examples = 8})
                .ExamplePasses(40),
            (3 * 10 + 2 + 4 * 20 + 8) / 40.0);
}

class CountingObjectiveTest : public ::testing::Test {
 protected:
  const DataLayout layout_{.shards = 3, .training_examples = 30, .held_out_examples = 20};
  LeastSquaresObjective<double> model_{2, layout_, LinearResiduals(Random(1).Matrix(30, 2), Random(2).Vector(30))};
  ScriptedObjective<double> scripted_{model_};
  Cost cost_;
  CountingObjective<double> counting_{scripted_, cost_};
  const Vector<double> theta_ = Vector<double>::Ones(2);
  const Sample part_ = DrawSample(layout_, DataSet::kTraining, 9, 0),
               held_out_ = DrawSample(layout_, DataSet::kHeldOut, 20, 0);
};

TEST_F(CountingObjectiveTest, BooksEveryKindWithItsExamples) {
  const Trial<double> trials[] = {{}, {&theta_, 0.5}, {&theta_, 0.25}};
  ASSERT_TRUE(counting_.Losses(theta_, trials, held_out_).ok());
  ASSERT_TRUE(counting_.Gradient(theta_, part_, {}).ok());
  auto G = *counting_.GaussNewtonAt(theta_, part_);
  Vector<double> product;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(G->Apply(theta_, product).ok());

  EXPECT_EQ(cost_, (Cost{.gradients = 1,
                         .gradient_examples = 9,
                         .linearizations = 1,
                         .linearization_examples = 9,
                         .products = 4,
                         .product_examples = 36,
                         .losses = 3,
                         .loss_examples = 60,
                         .exchanges = 6}));
}

TEST_F(CountingObjectiveTest, ChangesNoAnswer) {
  EXPECT_EQ(counting_.num_parameters(), 2);
  EXPECT_EQ(counting_.layout(), layout_);
  EXPECT_EQ(counting_.Gradient(theta_, part_, {})->gradient, model_.Gradient(theta_, part_, {})->gradient);
  Vector<double> counted, direct;
  ASSERT_TRUE((*counting_.GaussNewtonAt(theta_, part_))->Apply(theta_, counted).ok());
  ASSERT_TRUE((*model_.GaussNewtonAt(theta_, part_))->Apply(theta_, direct).ok());
  EXPECT_EQ(counted, direct);
}

TEST_F(CountingObjectiveTest, BooksNothingThatFailed) {
  Vector<double> product;
  const Trial<double> trial{};
  scripted_.fails_at = 0;
  EXPECT_EQ(counting_.Gradient(theta_, part_, {}).status(), scripted_.failure);
  scripted_.fails_at = 1;
  EXPECT_EQ(counting_.Losses(theta_, {&trial, 1}, part_).status(), scripted_.failure);
  scripted_.fails_at = 2;
  EXPECT_EQ(counting_.GaussNewtonAt(theta_, part_).status(), scripted_.failure);
  EXPECT_EQ(cost_, Cost());
  auto G = *counting_.GaussNewtonAt(theta_, part_);
  scripted_.fails_at = 4;
  EXPECT_EQ(G->Apply(theta_, product), scripted_.failure);
  EXPECT_EQ(cost_, (Cost{.linearizations = 1, .linearization_examples = 9}));
}

}  // namespace
}  // namespace hfopt
