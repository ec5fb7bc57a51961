#include "server/run/journal.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/hessian_free.h"
#include "core/optimizer_options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/store_testing.h"
#include "tests/support/least_squares_objective.h"
#include "tests/support/scripted_objective.h"

namespace hfopt::server {
namespace {

using hfopt::support::CallKind;
using hfopt::support::LeastSquaresObjective;
using hfopt::support::ScriptedObjective;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kParameters = 6;

template <typename Scalar>
class JournalTest : public ::testing::Test {
 protected:
  static OptimizerOptions Options() {
    OptimizerOptions options = OptimizerOptions::Deterministic();
    options.preconditioner.diagonal = DiagonalMode::kSquaredGradients;  // a gradient with a second vector
    return options;
  }
  OptimizerState<Scalar> Start() {
    return InitialState<Scalar>(Vector<Scalar>::Constant(kParameters, Scalar{-0.7}), objective_.layout(), Options());
  }
  // The iteration after `state`, with the journal of the file; the objective counts what it is still asked.
  absl::StatusOr<Iteration<Scalar>> Iterate(const OptimizerState<Scalar>& state, int fails_at = -1) {
    scripted_.calls.clear();
    scripted_.fails_at = fails_at;
    Journal journal(MakeOptions(), state.iteration);
    JournaledObjective<Scalar> journaled(scripted_, journal);
    auto next = hfopt::Iterate<Scalar>(state, journaled, Options());
    replayed_ = journal.replayed();
    return next;
  }
  Journal::Options MakeOptions() {
    return {.path = path_, .sync_interval = absl::Seconds(1), .log = [this](const std::string& line) { log_.push_back(line); }};
  }
  // Calls that cost something: a linearization by itself asks nothing of workers.
  int Asked() const { return static_cast<int>(scripted_.calls.size()) - scripted_.Count(CallKind::kLinearization); }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/journal";
  LeastSquaresObjective<Scalar> objective_{
      kParameters, {.shards = 2, .training_examples = 2 * (kParameters - 1), .held_out_examples = 2 * (kParameters - 1)},
      support::RosenbrockResiduals(kParameters)};
  ScriptedObjective<Scalar> scripted_{objective_};
  std::vector<std::string> log_;
  int replayed_ = 0;
};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(JournalTest, Scalars);

TYPED_TEST(JournalTest, AnIterationThatIsCutOffAnywhereGoesOnWithTheSameBitsAndAsksNothingTwice) {
  OptimizerState<TypeParam> state = this->Start();
  int total = 0;
  for (int iteration = 0; iteration < 5; ++iteration) {
    std::filesystem::remove(this->path_);
    const auto whole = this->Iterate(state);
    ASSERT_TRUE(whole.ok()) << whole.status();
    const int asked = this->Asked(), calls = static_cast<int>(this->scripted_.calls.size());
    EXPECT_EQ(this->replayed_, 0);
    total += asked;
    for (int cut = 0; cut < calls; ++cut) {
      std::filesystem::remove(this->path_);
      EXPECT_FALSE(this->Iterate(state, cut).ok());
      const int before = this->Asked() - (this->scripted_.calls.back().kind == CallKind::kLinearization ? 0 : 1);  // the last one failed
      const auto again = this->Iterate(state);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_TRUE(SameBits(again->state, whole->state)) << "cut at call " << cut;
      EXPECT_EQ(this->replayed_, before) << "cut at call " << cut;
      EXPECT_EQ(this->Asked(), asked - before) << "cut at call " << cut;
    }
    state = whole->state;
  }
  EXPECT_GT(total, 20);
  EXPECT_THAT(this->log_, IsEmpty());
}

TYPED_TEST(JournalTest, WhatIsDamagedIsAskedAgain) {
  const OptimizerState<TypeParam> state = this->Start();
  const auto whole = this->Iterate(state);
  ASSERT_TRUE(whole.ok());
  const int asked = this->Asked();
  const std::string bytes = ReadBytes(this->path_);
  for (size_t at = 0; at < bytes.size(); at += 7) {
    for (const bool cut : {true, false}) {
      std::string damaged = cut ? bytes.substr(0, at) : bytes;
      if (!cut) damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
      WriteBytes(this->path_, damaged);
      const auto again = this->Iterate(state);
      ASSERT_TRUE(again.ok()) << again.status();
      ASSERT_TRUE(SameBits(again->state, whole->state)) << (cut ? "cut" : "changed") << " at byte " << at;
      ASSERT_EQ(this->replayed_ + this->Asked(), asked);
      ASSERT_LT(this->replayed_, asked);
      // And the journal is whole again.
      const auto replayed = this->Iterate(state);
      ASSERT_EQ(this->replayed_, asked) << (cut ? "cut" : "changed") << " at byte " << at;
      ASSERT_TRUE(SameBits(replayed->state, whole->state));
    }
  }
}

TYPED_TEST(JournalTest, AnswersOfAnotherIterationOrAnotherQuestionAreNotGiven) {
  OptimizerState<TypeParam> state = this->Start();
  ASSERT_TRUE(this->Iterate(state).ok());
  OptimizerState<TypeParam> other = state;
  other.theta[0] += TypeParam{1};
  ASSERT_TRUE(this->Iterate(other).ok());
  EXPECT_EQ(this->replayed_, 0);
  ++other.iteration;
  ASSERT_TRUE(this->Iterate(other).ok());
  EXPECT_EQ(this->replayed_, 0);

  Journal journal(this->MakeOptions(), other.iteration);
  JournaledObjective<TypeParam> journaled(this->scripted_, journal);
  journal.Begin(state.iteration);
  ASSERT_TRUE((hfopt::Iterate<TypeParam>(state, journaled, this->Options())).ok());
  EXPECT_EQ(journal.replayed(), 0);
}

TYPED_TEST(JournalTest, WhereItCannotBeWrittenTheLogSaysSoAndTheRunGoesOn) {
  const OptimizerState<TypeParam> state = this->Start();
  const auto whole = this->Iterate(state);
  ASSERT_TRUE(whole.ok());
  for (const char* path : {"/dev/full", "/no/such/directory/journal"}) {
    this->log_.clear();
    Journal::Options options = this->MakeOptions();
    options.path = path;
    Journal journal(options, state.iteration);
    JournaledObjective<TypeParam> journaled(this->scripted_, journal);
    const auto next = hfopt::Iterate<TypeParam>(state, journaled, this->Options());
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(SameBits(next->state, whole->state));
    EXPECT_THAT(this->log_, SizeIs(1));
    EXPECT_THAT(this->log_.front(), HasSubstr(path));
  }
}

}  // namespace
}  // namespace hfopt::server
