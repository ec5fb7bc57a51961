#include "server/convert/checkpoint.h"

#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/store_testing.h"

namespace hfopt::server {
namespace {

using ::testing::HasSubstr;

// The checkpoint that a reader would make of the view.
template <typename Scalar>
Checkpoint Copy(const CheckpointView& view) {
  Checkpoint checkpoint{view.meta, {}};
  for (const wire::TensorView& t : view.tensors) {
    Vector<Scalar> values(t.shape.at(0));
    std::memcpy(values.data(), t.bytes.data(), t.bytes.size());
    checkpoint.tensors.emplace(t.name, std::move(values));
  }
  return checkpoint;
}

template <typename Scalar>
class CheckpointConversion : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CheckpointConversion, Scalars);

TYPED_TEST(CheckpointConversion, KeepsEveryBitOfAState) {
  const OptimizerState<TypeParam> state = MakeState<TypeParam>(7);
  const auto back = StateFromCheckpoint<TypeParam>(Copy<TypeParam>(ViewCheckpoint(state)));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(SameBits(*back, state));
}

TYPED_TEST(CheckpointConversion, KeepsInitialParametersAlone) {
  OptimizerState<TypeParam> state;
  state.theta = Vector<TypeParam>::Ones(3);
  const CheckpointView view = ViewCheckpoint(state);
  EXPECT_EQ(view.tensors.size(), 1u);
  const auto back = StateFromCheckpoint<TypeParam>(Copy<TypeParam>(view));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(SameBits(back->theta, state.theta));
  EXPECT_EQ(back->warm_start.size(), 0);
  EXPECT_TRUE(std::isnan(back->held_out_loss));
  EXPECT_TRUE(std::isinf(back->gradient_norm));
}

TYPED_TEST(CheckpointConversion, CopiesNoVector) {
  const OptimizerState<TypeParam> state = MakeState<TypeParam>(7);
  const CheckpointView view = ViewCheckpoint(state);
  EXPECT_EQ(static_cast<const void*>(view.tensors[0].bytes.data()), state.theta.data());
  Checkpoint checkpoint = Copy<TypeParam>(view);
  const void* theta = std::get<Vector<TypeParam>>(checkpoint.tensors.at("theta")).data();
  EXPECT_EQ(StateFromCheckpoint<TypeParam>(std::move(checkpoint))->theta.data(), theta);
}

TEST(CheckpointConversion, RefusesAnotherElementType) {
  const auto state = MakeState<float>(7);
  const auto wrong = StateFromCheckpoint<double>(Copy<float>(ViewCheckpoint(state)));
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(wrong.status().message(), "checkpoint of iteration 7 holds float32, the run computes in float64");
}

TEST(CheckpointConversion, NamesAMissingTensor) {
  const auto state = MakeState<float>(7);
  for (const char* name : {"theta", "pairs.0.direction", "pairs.1.product"}) {
    Checkpoint checkpoint = Copy<float>(ViewCheckpoint(state));
    checkpoint.tensors.erase(name);
    const auto back = StateFromCheckpoint<float>(std::move(checkpoint));
    EXPECT_EQ(back.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(back.status().message()), HasSubstr(std::string("has no tensor '") + name + "'"));
  }
}

TEST(CheckpointConversion, RefusesCountsThatAStateCannotHold) {
  const auto state = MakeState<float>(7);
  Checkpoint checkpoint = Copy<float>(ViewCheckpoint(state));
  checkpoint.meta.set_gradient_cursor(std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(StateFromCheckpoint<float>(checkpoint).status().code(), absl::StatusCode::kDataLoss);
  checkpoint = Copy<float>(ViewCheckpoint(state));
  checkpoint.meta.set_stalled_iterations(std::numeric_limits<uint32_t>::max());
  EXPECT_EQ(StateFromCheckpoint<float>(checkpoint).status().code(), absl::StatusCode::kDataLoss);
  checkpoint = Copy<float>(ViewCheckpoint(state));
  checkpoint.meta.mutable_cost()->set_losses(std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(StateFromCheckpoint<float>(checkpoint).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace hfopt::server
