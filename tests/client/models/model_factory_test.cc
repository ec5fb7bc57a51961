#include "client/models/model_factory.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"
#include "tests/client/models/test_files.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kModels = HFOPT_SOURCE_FOLDER "/client/models";

TEST(MakeModel, HasTheTasksDefaults) {
  const auto an4 = MakeModel<float>({.task = "an4", .data = kModels + "/an4"});
  ASSERT_THAT(an4, IsOk());
  EXPECT_THAT((*an4)->signature(), HasSubstr("mlp 440-256-256-102 tanh,tanh, softmax cross-entropy"));
  EXPECT_EQ((*an4)->num_parameters(), 441 * 256 + 257 * 256 + 257 * 102);
  EXPECT_EQ((*an4)->num_examples(DataSet::kTraining), 226554);

  const auto tied = MakeModel<double>({.task = "an4-cd", .data = kModels + "/an4"});
  ASSERT_THAT(tied, IsOk());
  EXPECT_THAT((*tied)->signature(), HasSubstr("440-256-256-512"));

  const auto digits = MakeModel<double>({.task = "digits", .data = kModels + "/digits"});
  ASSERT_THAT(digits, IsOk());
  EXPECT_THAT((*digits)->signature(), HasSubstr("64-32-10"));

  const auto inverse = MakeModel<double>({.task = "inverse"});
  ASSERT_THAT(inverse, IsOk());
  EXPECT_THAT((*inverse)->signature(), HasSubstr("inverse diffusion, grid 96, 64 sources, 64 receivers"));
  EXPECT_EQ((*inverse)->num_parameters(), 9216);
  EXPECT_EQ((*inverse)->num_examples(DataSet::kHeldOut), 64);
}

TEST(MakeModel, InverseTakesGridAndSeedAndNoData) {
  const auto model = MakeModel<float>({.task = "inverse", .seed = 9, .grid = 12});
  ASSERT_THAT(model, IsOk());
  EXPECT_THAT((*model)->signature(), AllOf(HasSubstr("grid 12"), HasSubstr("seed 9")));
  EXPECT_THAT(MakeModel<float>({.task = "inverse", .grid = 1}),
              IsError(StatusCode::kInvalidArgument, HasSubstr("grid is 1")));
  EXPECT_THAT(MakeModel<float>({.task = "inverse", .layers = "9-9"}),
              IsError(StatusCode::kInvalidArgument, HasSubstr("layers \"9-9\": task inverse has none")));
}

TEST(MakeModel, AutoencoderOfIdxImagesHasALinearCode) {
  const TempFolder folder;
  const std::string image = std::string("\0\0\x08\3\0\0\0\1\0\0\0\x1c\0\0\0\x1c", 16) + std::string(784, '\x80');
  folder.Write("train-images-idx3-ubyte", image);
  folder.Write("t10k-images-idx3-ubyte", image);
  const ModelSpec spec{.task = "idx-autoencoder", .data = folder.path(), .layers = "784-20-6-20-784"};

  const auto model = MakeModel<float>(spec);

  ASSERT_THAT(model, IsOk());
  EXPECT_THAT((*model)->signature(), HasSubstr("784-20-6-20-784 sigmoid,linear,sigmoid, Bernoulli cross-entropy"));
  ModelSpec with_default_layers = spec;
  with_default_layers.layers.clear();
  EXPECT_THAT(MakeModel<float>(with_default_layers), IsOk());
}

TEST(MakeModel, PhysicsInformedNetworksNeedNoData) {
  const auto poisson = MakeModel<double>({.task = "pinn-poisson"});
  ASSERT_THAT(poisson, IsOk());
  EXPECT_EQ((*poisson)->signature(), "pinn poisson 2-32-32-1 tanh, points of seed 1");
  const auto convection = MakeModel<double>({.task = "pinn-convection", .layers = "2-20-1", .seed = 9});
  ASSERT_THAT(convection, IsOk());
  EXPECT_EQ((*convection)->signature(), "pinn convection 2-20-1 tanh, points of seed 9");

  EXPECT_THAT(MakeModel<double>({.task = "pinn-poisson", .activation = "tanh", .initialization = "glorot"}), IsOk());
  for (const ModelSpec& spec :
       {ModelSpec{.task = "pinn-poisson", .activation = "relu"},
        ModelSpec{.task = "pinn-poisson", .initialization = "sparse"}, ModelSpec{.task = "pinn-poisson", .l2 = 0.1}}) {
    EXPECT_THAT(
        MakeModel<double>(spec),
        IsError(StatusCode::kInvalidArgument, HasSubstr("allowed for task \"pinn-poisson\" are tanh, glorot and 0")));
  }
}

TEST(MakeModel, TakesLayersActivationsAndRegulariser) {
  const auto model = MakeModel<float>({.task = "digits",
                                       .data = kModels + "/digits",
                                       .layers = "64-20-5-10",
                                       .activation = "relu,linear",
                                       .initialization = "sparse",
                                       .l2 = 0.5,
                                       .seed = 9});
  ASSERT_THAT(model, IsOk());
  EXPECT_THAT((*model)->signature(),
              AllOf(HasSubstr("64-20-5-10 relu,linear"), HasSubstr("l2 0.5"), HasSubstr("seed 9")));
  EXPECT_THAT(MakeModel<float>({.task = "digits", .data = kModels + "/digits", .layers = "64-10"}), IsOk());
}

TEST(MakeModel, ErrorsSayWhatIsAllowed) {
  const ModelSpec good{.task = "digits", .data = kModels + "/digits"};
  const auto error = [&](auto change, const std::string& what) {
    ModelSpec spec = good;
    change(spec);
    EXPECT_THAT(MakeModel<float>(spec), IsError(StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  error([](ModelSpec& s) { s.task = "mnist"; },
        "task \"mnist\" is not known; allowed are an4, an4-cd, digits, idx-autoencoder, inverse, pinn-poisson and");
  error([](ModelSpec& s) { s.data = ""; }, "no data folder for task \"digits\"");
  error([](ModelSpec& s) { s.layers = "64-x-10"; }, "has the width \"x\"");
  error([](ModelSpec& s) { s.layers = "64"; }, "layers has 1 widths");
  error([](ModelSpec& s) { s.layers = "64-30-11"; }, "have 64 inputs and 10 classes");
  error([](ModelSpec& s) { s.layers = "64-99999999999-10"; }, "the width 99999999999");
  error([](ModelSpec& s) { s.activation = "gelu"; }, "activation \"gelu\"; allowed are sigmoid");
  error([](ModelSpec& s) { s.activation = "tanh,tanh"; }, "activations has 2 entries for 1 hidden layers");
  error([](ModelSpec& s) { s.initialization = "zero"; }, "initialization \"zero\"; allowed are glorot and sparse");
  error([](ModelSpec& s) { s.l2 = -1; }, "l2 is -1");
  EXPECT_THAT(MakeModel<float>({.task = "digits", .data = "/no/such/folder"}),
              IsError(StatusCode::kNotFound, HasSubstr("/no/such/folder/images.npy")));
  EXPECT_THAT(MakeAcousticModel<float>(good),
              IsError(StatusCode::kInvalidArgument, HasSubstr("no words to recognise")));
}

}  // namespace
}  // namespace hfopt::models
