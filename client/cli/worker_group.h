#ifndef HFOPT_CLIENT_CLI_WORKER_GROUP_H_
#define HFOPT_CLIENT_CLI_WORKER_GROUP_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/model.h"

namespace hfopt::cli {

// The processes that mpirun has started as one worker; without mpirun, or without MPI (HFOPT_MPI), this one alone. To be made once, first thing in main,
// and used by one thread.
class WorkerGroup {
 public:
  // Ends the program, with what to do, when mpirun has started several processes and they cannot be a group.
  WorkerGroup();
  ~WorkerGroup();
  WorkerGroup(const WorkerGroup&) = delete;
  WorkerGroup& operator=(const WorkerGroup&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Rank 0's value, on all ranks.
  int FromFirst(int value);

  // On rank 0 of several: the model of the group. `model` outlives it.
  template <typename Scalar>
  absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> Lead(client::Model<Scalar>& model);
  // On the others, until rank 0's has gone.
  template <typename Scalar>
  absl::Status Follow(client::Model<Scalar>& model);

  // Ends all processes of the group at once; returns where this one is alone.
  void Abort(int exit_code);

 private:
  int rank_ = 0, size_ = 1;
};

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_WORKER_GROUP_H_
