#include "client/cli/train_job.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

class TrainJobTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  const std::string directory_ = ::testing::TempDir() + "train_job_test." + std::to_string(getpid());
};

TEST_F(TrainJobTest, SurvivesTheFile) {
  TrainJob job{.run_id = "r", .workers = 3};
  job.model.task = "digits";
  job.model.layers = "64-10";
  job.model.l2 = 1e-3;
  job.model.grid = 12;
  job.options.set_max_wall_seconds(12.5);
  job.options.mutable_optimizer()->mutable_stop()->set_target_loss(0);  // present, though zero
  ASSERT_TRUE(SaveTrainJob(directory_, job).ok());
  const absl::StatusOr<TrainJob> read = LoadTrainJob(directory_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ToJson(), job.ToJson());
  EXPECT_EQ(read->model.l2, 1e-3);
  EXPECT_EQ(read->model.grid, 12);
  EXPECT_TRUE(read->options.optimizer().stop().has_target_loss());
}

TEST_F(TrainJobTest, AbsentAndDamagedFilesAreTold) {
  EXPECT_TRUE(absl::IsNotFound(LoadTrainJob(directory_).status()));
  std::ofstream(directory_ + "/train.json") << "{\"run\": \"r\"";
  EXPECT_TRUE(absl::IsDataLoss(LoadTrainJob(directory_).status()));
  std::ofstream(directory_ + "/train.json") << "{\"run\": 3}";
  EXPECT_TRUE(absl::IsDataLoss(LoadTrainJob(directory_).status()));
}

}  // namespace
}  // namespace hfopt::cli
