#include "server/run/run_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/run/file_run_store.h"
#include "tests/server/store_testing.h"

namespace hfopt::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::Run MakeRun(const std::string& run_id, v1::RunState state = v1::RUN_STATE_CREATED) {
  v1::Run run;
  run.set_name("runs/" + run_id);
  run.set_state(state);
  return run;
}

v1::IterationReport MakeReport(uint64_t iteration, double held_out_loss = 0) {
  v1::IterationReport report;
  report.set_iteration(iteration);
  report.set_held_out_loss(held_out_loss);
  return report;
}

std::vector<uint64_t> Iterations(const std::vector<v1::IterationReport>& reports) {
  std::vector<uint64_t> iterations;
  for (const auto& report : reports) iterations.push_back(report.iteration());
  return iterations;
}

class RunStoreTest : public ::testing::Test {
 protected:
  RunStoreTest() { Reopen(); }

  void Reopen() {
    store_.reset();
    auto store = FileRunStore::Open(directory_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  absl::Status Save(int64_t iteration, const SaveOptions& options = {}) {
    const auto state = MakeState<float>(iteration);
    return store_->SaveCheckpoint("an4", ViewCheckpoint(state), options);
  }

  std::vector<std::string> Files() const { return Names(directory_.path() + "/runs/an4"); }

  const TemporaryDirectory directory_;
  std::unique_ptr<RunStore> store_;
};

TEST(RunId, AllowsWhatIsASafeFileName) {
  for (const std::string& good : std::vector<std::string>{"a", "an4", "a-1-", std::string(63, 'z')}) {
    EXPECT_TRUE(CheckRunId(good).ok()) << good;
    EXPECT_EQ(RunIdFromName("runs/" + good).value(), good);
  }
  for (const std::string& bad :
       {std::string(), std::string("../x"), std::string("a/b"), std::string("4a"), std::string("-a"), std::string("A"),
        std::string("a.tmp"), std::string("."), std::string("a\0b", 3), std::string("a\n"), std::string("\xc3\xa4"),
        std::string(64, 'z')}) {
    EXPECT_EQ(CheckRunId(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(RunIdFromName("runs/" + bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(RunIdFromName("an4").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckRunId("a\n").message(),
            "run_id is 'a\\n'; allowed: 1 to 63 of a-z, 0-9 and -, beginning with a letter");
}

TEST_F(RunStoreTest, EveryFunctionRefusesPathTricks) {
  const auto state = MakeState<float>(1);
  const std::string bad = "../x";
  std::vector<absl::Status> answers = {
      store_->PutRun(MakeRun(bad), ""),
      store_->DeleteRun(bad),
      store_->AppendReport(bad, {}),
      store_->Reports(bad, 0, 1).status(),
      store_->SaveCheckpoint(bad, ViewCheckpoint(state), {}),
      store_->LoadLastCheckpoint(bad).status(),
      store_->LoadBestCheckpoint(bad).status(),
      store_->LoadCheckpoint(bad, 1).status(),
  };
  for (const absl::Status& answer : answers) EXPECT_EQ(answer.code(), absl::StatusCode::kInvalidArgument) << answer;
  EXPECT_FALSE(std::filesystem::exists(directory_.path() + "/x"));
}

TEST_F(RunStoreTest, KeepsRunsByIdAcrossOpenings) {
  ASSERT_TRUE(store_->PutRun(MakeRun("b"), "request-b").ok());
  ASSERT_TRUE(store_->PutRun(MakeRun("a"), "").ok());
  ASSERT_TRUE(store_->PutRun(MakeRun("b", v1::RUN_STATE_PAUSED), "request-b").ok());
  Reopen();
  const auto runs = store_->ListRuns();
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ(runs->at(0).run.name(), "runs/a");
  EXPECT_EQ(runs->at(0).request_id, "");
  EXPECT_EQ(runs->at(1).run.name(), "runs/b");
  EXPECT_EQ(runs->at(1).run.state(), v1::RUN_STATE_PAUSED);
  EXPECT_EQ(runs->at(1).request_id, "request-b");
}

TEST_F(RunStoreTest, ReportsComeInOrderAfterAnIterationUpToALimit) {
  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  ASSERT_TRUE(store_->PutRun(MakeRun("other"), "").ok());
  ASSERT_TRUE(store_->AppendReport("other", MakeReport(9)).ok());
  for (const uint64_t iteration : {2, 1, 10, 3}) {
    ASSERT_TRUE(store_->AppendReport("an4", MakeReport(iteration)).ok());
  }
  Reopen();
  EXPECT_THAT(Iterations(store_->Reports("an4", 0, 100).value()), ElementsAre(1, 2, 3, 10));
  EXPECT_THAT(Iterations(store_->Reports("an4", 1, 2).value()), ElementsAre(2, 3));
  EXPECT_THAT(Iterations(store_->Reports("an4", 10, 100).value()), IsEmpty());
  EXPECT_THAT(Iterations(store_->Reports("an4", std::numeric_limits<uint64_t>::max(), 100).value()), IsEmpty());
  EXPECT_THAT(Iterations(store_->Reports("unknown", 0, 100).value()), IsEmpty());
  EXPECT_EQ(store_->Reports("an4", 0, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RunStoreTest, ARepeatedIterationReplacesItsReport) {
  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  ASSERT_TRUE(store_->AppendReport("an4", MakeReport(1, 0.5)).ok());
  ASSERT_TRUE(store_->AppendReport("an4", MakeReport(1, 0.25)).ok());
  const auto reports = store_->Reports("an4", 0, 100);
  ASSERT_EQ(reports->size(), 1u);
  EXPECT_EQ(reports->at(0).held_out_loss(), 0.25);
}

TEST_F(RunStoreTest, PuttingARunAgainKeepsItsReports) {
  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  ASSERT_TRUE(store_->AppendReport("an4", MakeReport(1)).ok());
  ASSERT_TRUE(store_->PutRun(MakeRun("an4", v1::RUN_STATE_RUNNING), "").ok());
  EXPECT_EQ(store_->Reports("an4", 0, 100)->size(), 1u);
}

TEST_F(RunStoreTest, RefusesReportsItCannotPlace) {
  EXPECT_EQ(store_->AppendReport("unknown", MakeReport(1)).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  EXPECT_EQ(store_->AppendReport("an4", MakeReport(uint64_t{1} << 63)).code(), absl::StatusCode::kInvalidArgument);
}

template <typename Scalar>
class StoredCheckpoint : public RunStoreTest {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(StoredCheckpoint, Scalars);

TYPED_TEST(StoredCheckpoint, ResumesWithTheSameBits) {
  for (const int64_t iteration : {3, 4}) {
    OptimizerState<TypeParam> state = MakeState<TypeParam>(iteration, 1000, 16);
    if (iteration == 4) {  // as before a first iteration
      state.held_out_loss = std::numeric_limits<double>::quiet_NaN();
      state.gradient_norm = std::numeric_limits<double>::infinity();
      state.damping = -std::numeric_limits<double>::infinity();
      state.warm_start.resize(0);
      state.pairs.clear();
    }
    CheckpointView view = ViewCheckpoint(state);
    view.meta.mutable_seconds()->set_total(0.1);
    view.meta.set_best_held_out_loss(std::numeric_limits<double>::denorm_min());
    view.meta.set_best_iteration(2);
    ASSERT_TRUE(this->store_->SaveCheckpoint("an4", view, {}).ok());
    this->Reopen();
    auto loaded = this->store_->LoadLastCheckpoint("an4");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->warning, "");
    EXPECT_EQ(loaded->checkpoint.meta.seconds().total(), 0.1);
    EXPECT_EQ(loaded->checkpoint.meta.best_held_out_loss(), std::numeric_limits<double>::denorm_min());
    EXPECT_EQ(loaded->checkpoint.meta.best_iteration(), 2u);
    const auto back = StateFromCheckpoint<TypeParam>(std::move(loaded->checkpoint));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_TRUE(SameBits(*back, state));
  }
}

TEST_F(RunStoreTest, KeepsTheLastFewCheckpoints) {
  for (int64_t iteration = 0; iteration <= 11; ++iteration) ASSERT_TRUE(Save(iteration, {.keep = 3}).ok());
  EXPECT_THAT(Files(),
              ElementsAre("checkpoint-10.safetensors", "checkpoint-11.safetensors", "checkpoint-9.safetensors"));
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->checkpoint.meta.iteration(), 11u);
  EXPECT_EQ(store_->LoadCheckpoint("an4", 9)->checkpoint.meta.iteration(), 9u);
  const auto gone = store_->LoadCheckpoint("an4", 8);
  EXPECT_EQ(gone.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(gone.status().message()), HasSubstr("no checkpoint of iteration 8 is kept"));
  EXPECT_THAT(std::string(gone.status().message()), HasSubstr("kept are: 9, 10, 11"));
  EXPECT_EQ(Save(12, {.keep = 0}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RunStoreTest, KeepsTheBestBesides) {
  EXPECT_EQ(store_->LoadBestCheckpoint("an4").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Save(1, {.best = true, .keep = 1}).ok());
  ASSERT_TRUE(Save(2, {.best = true, .keep = 1}).ok());
  ASSERT_TRUE(Save(3, {.keep = 1}).ok());
  EXPECT_THAT(Files(), ElementsAre("best.safetensors", "checkpoint-3.safetensors"));
  const auto best = store_->LoadBestCheckpoint("an4");
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_EQ(best->checkpoint.meta.iteration(), 2u);
  EXPECT_EQ(store_->LoadCheckpoint("an4", 2)->checkpoint.meta.iteration(), 2u);
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->checkpoint.meta.iteration(), 3u);
}

TEST_F(RunStoreTest, SavingAnIterationAgainReplacesItAlsoAsTheBest) {
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Save(1, {.best = true}).ok());
    EXPECT_THAT(Files(), ElementsAre("best.safetensors", "checkpoint-1.safetensors"));
  }
}

TEST_F(RunStoreTest, ARunThatWasSetBackForgetsLaterCheckpoints) {
  for (const int64_t iteration : {6, 7, 8}) ASSERT_TRUE(Save(iteration).ok());
  ASSERT_TRUE(Save(5, {.keep = 1}).ok());
  EXPECT_THAT(Files(), ElementsAre("checkpoint-5.safetensors"));
}

TEST_F(RunStoreTest, TheVectorsAreForEveryReaderOfSafetensors) {
  ASSERT_TRUE(Save(1).ok());
  const auto file = wire::ReadSafetensors(directory_.path() + "/runs/an4/checkpoint-1.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(SameBits(file->Vector<float>("theta").value(), MakeState<float>(1).theta));
}

TEST_F(RunStoreTest, RefusesTensorsThatAreNotWhatTheCheckpointSays) {
  const auto state = MakeState<float>(1);
  CheckpointView view = ViewCheckpoint(state);
  view.meta.set_num_parameters(4);
  const absl::Status refused = store_->SaveCheckpoint("an4", view, {});
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("tensor 'theta' has 20 bytes of float32"));
}

TEST_F(RunStoreTest, ADeletedRunLeavesNothing) {
  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  ASSERT_TRUE(store_->PutRun(MakeRun("an5"), "").ok());
  ASSERT_TRUE(store_->AppendReport("an4", MakeReport(1)).ok());
  ASSERT_TRUE(Save(1, {.best = true}).ok());
  ASSERT_TRUE(store_->DeleteRun("an4").ok());
  EXPECT_THAT(Names(directory_.path() + "/runs"), IsEmpty());
  EXPECT_EQ(store_->ListRuns()->size(), 1u);
  EXPECT_EQ(store_->DeleteRun("an4").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store_->DeleteRun("an5").ok());  // without checkpoints

  ASSERT_TRUE(store_->PutRun(MakeRun("an4"), "").ok());
  EXPECT_THAT(store_->Reports("an4", 0, 100).value(), IsEmpty());
  EXPECT_EQ(store_->LoadLastCheckpoint("an4").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RunStoreTest, ANewRunDoesNotInheritCheckpoints) {
  ASSERT_TRUE(Save(1).ok());
  const absl::Status refused = store_->PutRun(MakeRun("an4"), "");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("has 1 files, but"));
}

TEST_F(RunStoreTest, ASecondServerIsRefused) {
  const auto second = FileRunStore::Open(directory_.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(second.status().message(), "state directory " + directory_.path() +
                                           " is used by the server with process id " + std::to_string(getpid()) +
                                           "; stop that one, or use another directory");
  store_.reset();
  EXPECT_TRUE(FileRunStore::Open(directory_.path()).ok());
}

TEST_F(RunStoreTest, CreatesMissingDirectories) {
  const auto store = FileRunStore::Open(directory_.path() + "/a/b/");
  EXPECT_TRUE(store.ok()) << store.status();
}

TEST_F(RunStoreTest, NamesADirectoryThatIsAFile) {
  WriteBytes(directory_.path() + "/file", "");
  const auto store = FileRunStore::Open(directory_.path() + "/file/state");
  EXPECT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr(directory_.path() + "/file"));
}

TEST_F(RunStoreTest, SeveralRunsAreStoredAtOnce) {
  constexpr int kThreads = 4, kIterations = 10;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([this, run_id = "run-" + std::to_string(i)] {
      EXPECT_TRUE(store_->PutRun(MakeRun(run_id), "").ok());
      for (int64_t iteration = 1; iteration <= kIterations; ++iteration) {
        const auto state = MakeState<float>(iteration);
        EXPECT_TRUE(store_->AppendReport(run_id, MakeReport(iteration)).ok());
        EXPECT_TRUE(store_->SaveCheckpoint(run_id, ViewCheckpoint(state), {.best = true, .keep = 1}).ok());
        EXPECT_TRUE(store_->ListRuns().ok());
      }
    });
  }
  // A reader of a run that is being saved always finds a whole checkpoint.
  threads.emplace_back([this] {
    for (int i = 0; i < 50; ++i) {
      const auto loaded = store_->LoadLastCheckpoint("run-0");
      EXPECT_TRUE(loaded.ok() ? loaded->warning.empty() : absl::IsNotFound(loaded.status())) << loaded.status();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->ListRuns()->size(), size_t{kThreads});
  for (int i = 0; i < kThreads; ++i) {
    const std::string run_id = "run-" + std::to_string(i);
    EXPECT_EQ(store_->Reports(run_id, 0, 100)->size(), size_t{kIterations});
    EXPECT_EQ(store_->LoadLastCheckpoint(run_id)->checkpoint.meta.iteration(), uint64_t{kIterations});
  }
}

}  // namespace
}  // namespace hfopt::server
