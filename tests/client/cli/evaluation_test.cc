#include "client/cli/evaluation.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;

TEST(Evaluate, TellsHowFarAnInverseModelIsFromTheTruth) {
  const auto figures =
      Evaluate<double>({.task = "inverse", .grid = 8}, client::Vector<double>(client::Vector<double>::Zero(64)));
  ASSERT_TRUE(figures.ok()) << figures.status();
  EXPECT_THAT(*figures, ElementsAre(Field(&Figure::key, "held_out_loss"),
                                    AllOf(Field(&Figure::key, "relative_model_error"), Field(&Figure::value, 1),
                                          Field(&Figure::text, "100.0 %"))));
}

}  // namespace
}  // namespace hfopt::cli
