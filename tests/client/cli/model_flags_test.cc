#include "client/cli/model_flags.h"

#include <algorithm>

#include "CLI/CLI.hpp"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

models::ModelSpec Parse(std::vector<std::string> arguments) {
  CLI::App app;
  models::ModelSpec spec;
  AddModelFlags(app, spec);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  app.parse(arguments);
  return spec;
}

TEST(ModelArguments, AreReadBack) {
  const models::ModelSpec spec{.task = "inverse",
                               .layers = "3-4",
                               .activation = "relu",
                               .initialization = "sparse",
                               .l2 = 0.5,
                               .seed = 9,
                               .fraction = 0.25,
                               .grid = 12};
  const models::ModelSpec read = Parse(ModelArguments(spec));
  EXPECT_EQ(read.task, spec.task);
  EXPECT_EQ(read.data, "");
  EXPECT_EQ(read.layers, spec.layers);
  EXPECT_EQ(read.activation, spec.activation);
  EXPECT_EQ(read.initialization, spec.initialization);
  EXPECT_EQ(read.l2, spec.l2);
  EXPECT_EQ(read.seed, spec.seed);
  EXPECT_EQ(read.fraction, spec.fraction);
  EXPECT_EQ(read.grid, spec.grid);
  EXPECT_EQ(Parse(ModelArguments({.data = "/a b"})).data, "/a b");
}

}  // namespace
}  // namespace hfopt::cli
