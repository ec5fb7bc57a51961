#ifndef HFOPT_CLIENT_CLI_TRAIN_JOB_H_
#define HFOPT_CLIENT_CLI_TRAIN_JOB_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/models/model_factory.h"
#include "hfopt/v1/run.pb.h"

namespace hfopt::cli {

// What a directory of `hfopt train` is about. Kept there in the file train.json, so that the training can be resumed.
struct TrainJob {
  std::string run_id;
  int workers = 2;
  models::ModelSpec model;  // data: an absolute path
  v1::RunOptions options;   // as asked for

  std::string ToJson() const;
};

inline constexpr char kTrainJobFile[] = "train.json";

absl::Status SaveTrainJob(const std::string& directory, const TrainJob& job);
// NOT_FOUND when there is no such file; DATA_LOSS when it is damaged.
absl::StatusOr<TrainJob> LoadTrainJob(const std::string& directory);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_TRAIN_JOB_H_
