#include "client/models/acoustic_evaluation.h"

#include <limits>
#include <memory>
#include <string>

#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using ::testing::HasSubstr;

const std::string kFolder = HFOPT_SOURCE_FOLDER "/client/models/an4";

// Minibatch descent with momentum on the first `size` training frames: enough for posteriors that mean something.
client::Vector<float> Train(Mlp<float>& mlp, int64_t size) {
  constexpr int64_t kBatch = 128;
  client::Vector<float> theta = *mlp.InitialParameters(1), gradient(theta.size());
  client::Vector<float> step = client::Vector<float>::Zero(theta.size());
  for (int64_t begin = 0; begin + kBatch <= size; begin += kBatch) {
    EXPECT_THAT(mlp.Gradient(theta, {DataSet::kTraining, {{begin, begin + kBatch}}}, gradient), IsOk());
    step = 0.9f * step - 0.03f / kBatch * gradient;
    theta += step;
  }
  return theta;
}

// The corpus with only the first utterances of each split to be recognised.
AcousticData Shortened(AcousticData data, size_t utterances) {
  for (AcousticSplit* split : {&data.heldout, &data.test}) {
    split->utterances.resize(utterances);
    split->utterance_of_frame.resize(split->utterances.back().end);
  }
  return data;
}

TEST(AcousticEvaluation, RecognisesWordsAfterALittleTraining) {
  const auto model = MakeAcousticModel<float>({.data = kFolder, .layers = "440-64-102"});
  ASSERT_THAT(model, IsOk());
  const client::Vector<float> theta = Train(*model->mlp, 100000);
  const AcousticData data = Shortened(*model->data, 20);
  const auto decoder = Decoder::Load(kFolder, data, AcousticTargets::kMonophone);
  ASSERT_THAT(decoder, IsOk());
  const auto evaluate = [&](const std::vector<double>& scales) -> AcousticEvaluation {
    return *EvaluateAcousticModel(*model->mlp, theta, data, *decoder, {.acoustic_scales = scales});
  };

  const AcousticEvaluation at_1 = evaluate({1.0}), at_03 = evaluate({0.3}), chosen = evaluate({1.0, 0.3});

  // Measured 1.42, 0.24, 0.27 and 0.41; the rest is room for other arithmetic.
  EXPECT_LT(at_03.heldout.cross_entropy, 1.6);
  EXPECT_LT(at_03.heldout.word_error_rate(), 0.35);
  EXPECT_LT(at_03.test.word_error_rate(), 0.4);
  EXPECT_LT(at_03.test.frame_error, 0.5);
  const AcousticEvaluation& best = at_03.heldout.word_errors < at_1.heldout.word_errors ? at_03 : at_1;
  EXPECT_EQ(chosen.acoustic_scale, best.acoustic_scale);
  EXPECT_EQ(chosen.heldout.word_errors, best.heldout.word_errors);
  EXPECT_EQ(chosen.test.word_errors, best.test.word_errors);
}

TEST(AcousticEvaluation, HeldOutFiguresAreThoseOfTheLoss) {
  const auto model = MakeAcousticModel<float>({.data = kFolder, .layers = "440-16-102"});
  ASSERT_THAT(model, IsOk());
  const client::Vector<float> theta = *model->mlp->InitialParameters(1);
  const auto loss = model->mlp->Loss(theta, {DataSet::kHeldOut, {{0, model->mlp->num_examples(DataSet::kHeldOut)}}});
  // All frames of heldout, and one word to find in each utterance: silence.
  const Decoder decoder(*model->data, AcousticTargets::kMonophone, {{"SIL"}, {{0, {0}}}}, Eigen::MatrixXd::Zero(2, 2));

  const auto evaluation = EvaluateAcousticModel(*model->mlp, theta, *model->data, decoder, {.acoustic_scales = {0.3}});

  ASSERT_THAT(evaluation, IsOk());
  EXPECT_EQ(evaluation->heldout.frames, 26180);
  EXPECT_EQ(evaluation->heldout.words, 605);
  EXPECT_EQ(evaluation->test.frames, 35440);
  EXPECT_EQ(evaluation->test.words, 773);
  EXPECT_NEAR(evaluation->heldout.cross_entropy, loss->loss / loss->weight, 1e-5);
  EXPECT_NEAR(evaluation->heldout.frame_error, loss->metrics.at("errors") / loss->weight, 1e-3);
}

TEST(AcousticEvaluation, RefusesBadParameters) {
  const auto model = MakeAcousticModel<float>({.data = kFolder, .layers = "440-16-102"});
  ASSERT_THAT(model, IsOk());
  const auto decoder = Decoder::Load(kFolder, *model->data, model->targets);
  ASSERT_THAT(decoder, IsOk());
  client::Vector<float> theta = *model->mlp->InitialParameters(1);
  const auto evaluate = [&](const AcousticEvaluationOptions& options = {}) {
    return EvaluateAcousticModel(*model->mlp, theta, *model->data, *decoder, options).status();
  };

  EXPECT_THAT(evaluate({.acoustic_scales = {}}),
              IsError(StatusCode::kInvalidArgument, HasSubstr("acoustic_scales is empty")));
  theta(7) = std::numeric_limits<float>::infinity();
  EXPECT_THAT(evaluate(), IsError(StatusCode::kInvalidArgument, HasSubstr("NaN or infinite")));
  theta = client::Vector<float>::Zero(3);
  EXPECT_THAT(evaluate(), IsError(StatusCode::kInvalidArgument, HasSubstr("theta has 3 elements")));
}

}  // namespace
}  // namespace hfopt::models
