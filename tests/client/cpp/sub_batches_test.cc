#include "client/cpp/sub_batches.h"

#include "gtest/gtest.h"
#include "tests/client/cpp/quadratic_model.h"

namespace hfopt::client {
namespace {

TEST(PartBegin, IsTheFloorWithoutOverflow) {
  for (int64_t count = 0; count < 30; ++count) {
    for (int64_t parts = 1; parts < 10; ++parts) {
      for (int64_t p = 0; p <= parts; ++p) EXPECT_EQ(PartBegin(count, p, parts), count * p / parts);
    }
  }
  EXPECT_EQ(PartBegin(INT64_MAX, 0xffffffff, 0xffffffff), INT64_MAX);
}

template <typename Scalar>
class GradientBySubBatches : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GradientBySubBatches, Scalars);

TYPED_TEST(GradientBySubBatches, AddsThePartsUpAndReportsTheirNorms) {
  QuadraticModel<TypeParam> model(2);
  const Vector<TypeParam> theta{{3, 4}};
  const Examples examples{.ranges = {{8, 10}, {0, 3}}};  // factors 9 10 | 1 2 3
  Vector<TypeParam> gradient(2);
  std::vector<SubBatch> sub_batches;

  const auto loss = hfopt::client::GradientBySubBatches(model, theta, examples, 2, gradient, sub_batches);

  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_EQ(gradient, Vector<TypeParam>(25 * theta));
  EXPECT_EQ(loss->loss, 25 * 12.5);
  EXPECT_EQ(loss->weight, 5);
  ASSERT_EQ(sub_batches.size(), 2u);  // {9, 10} and {1, 2, 3}
  EXPECT_EQ(sub_batches[0].squared_norm, 19 * 19 * 25);
  EXPECT_EQ(sub_batches[0].weight, 2);
  EXPECT_EQ(sub_batches[1].squared_norm, 6 * 6 * 25);
  EXPECT_EQ(sub_batches[1].weight, 3);
}

TYPED_TEST(GradientBySubBatches, AsksOnceWithoutParts) {
  QuadraticModel<TypeParam> model(2);
  Vector<TypeParam> gradient(2);
  std::vector<SubBatch> sub_batches(3);
  const Vector<TypeParam> theta{{1, 2}};
  ASSERT_TRUE(
      hfopt::client::GradientBySubBatches(model, theta, Examples{.ranges = {{0, 4}}}, 0, gradient, sub_batches).ok());
  EXPECT_EQ(model.gradient_calls, 1);
  EXPECT_TRUE(sub_batches.empty());
  EXPECT_EQ(gradient, Vector<TypeParam>(10 * theta));
}

TYPED_TEST(GradientBySubBatches, LeavesPartsWithoutExamplesAtZero) {
  QuadraticModel<TypeParam> model(1);
  Vector<TypeParam> gradient(1);
  std::vector<SubBatch> sub_batches;
  const Vector<TypeParam> theta{{1}};
  ASSERT_TRUE(
      hfopt::client::GradientBySubBatches(model, theta, Examples{.ranges = {{0, 2}}}, 4, gradient, sub_batches).ok());
  EXPECT_EQ(model.gradient_calls, 2);
  ASSERT_EQ(sub_batches.size(), 4u);
  EXPECT_EQ(sub_batches[0].weight, 0);
  EXPECT_EQ(sub_batches[1].squared_norm, 1);
  EXPECT_EQ(sub_batches[2].weight, 0);
  EXPECT_EQ(sub_batches[3].squared_norm, 4);
}

TYPED_TEST(GradientBySubBatches, PassesTheModelsFailureOn) {
  QuadraticModel<TypeParam> model(1);
  model.before = [] { return absl::ResourceExhaustedError("no memory for activations"); };
  Vector<TypeParam> gradient(1);
  std::vector<SubBatch> sub_batches;
  const Vector<TypeParam> theta{{1}};
  const auto loss =
      hfopt::client::GradientBySubBatches(model, theta, Examples{.ranges = {{0, 2}}}, 2, gradient, sub_batches);
  EXPECT_EQ(loss.status(), absl::ResourceExhaustedError("no memory for activations"));
}

}  // namespace
}  // namespace hfopt::client
