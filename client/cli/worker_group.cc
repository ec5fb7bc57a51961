#include "client/cli/worker_group.h"

#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/strings/numbers.h"
#include "client/cli/exit_code.h"
#ifdef HFOPT_MPI
#include "client/cpp/mpi_group.h"
#endif

namespace hfopt::cli {
namespace {

// As OpenMPI, MPICH and Slurm tell it to the processes that they start; 1 where nobody has.
int ProcessesStarted() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char* const value = std::getenv(name);
    if (int count = 0; value != nullptr && absl::SimpleAtoi(value, &count)) return count;
  }
  return 1;
}

}  // namespace

#ifdef HFOPT_MPI

WorkerGroup::WorkerGroup() {
  if (ProcessesStarted() == 1) return;
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  if (level < MPI_THREAD_FUNNELED) {
    std::cerr << "hfopt-worker: this MPI has no MPI_THREAD_FUNNELED, which a process of several threads needs\n";
    MPI_Abort(MPI_COMM_WORLD, kFailed);
  }
}

WorkerGroup::~WorkerGroup() {
  if (size_ > 1) MPI_Finalize();
}

int WorkerGroup::FromFirst(int value) {
  if (size_ > 1) MPI_Bcast(&value, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return value;
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> WorkerGroup::Lead(client::Model<Scalar>& model) {
  return client::MpiModel<Scalar>::Create(model, MPI_COMM_WORLD);
}

template <typename Scalar>
absl::Status WorkerGroup::Follow(client::Model<Scalar>& model) {
  return client::FollowMpiGroup(model, MPI_COMM_WORLD);
}

void WorkerGroup::Abort(int exit_code) {
  if (size_ > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
}

#else

WorkerGroup::WorkerGroup() {
  if (ProcessesStarted() == 1) return;
  std::cerr << "hfopt-worker: " << ProcessesStarted()
            << " processes were started as a group, but this program was built without MPI; build it with -DHFOPT_MPI=ON, or start one process for each "
               "worker, with a --worker-id of its own\n";
  std::exit(kUsage);
}

WorkerGroup::~WorkerGroup() = default;
int WorkerGroup::FromFirst(int value) { return value; }
void WorkerGroup::Abort(int) {}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<client::Model<Scalar>>> WorkerGroup::Lead(client::Model<Scalar>&) {
  return absl::InternalError("a group without MPI");
}

template <typename Scalar>
absl::Status WorkerGroup::Follow(client::Model<Scalar>&) {
  return absl::InternalError("a group without MPI");
}

#endif

template absl::StatusOr<std::unique_ptr<client::Model<float>>> WorkerGroup::Lead(client::Model<float>&);
template absl::StatusOr<std::unique_ptr<client::Model<double>>> WorkerGroup::Lead(client::Model<double>&);
template absl::Status WorkerGroup::Follow(client::Model<float>&);
template absl::Status WorkerGroup::Follow(client::Model<double>&);

}  // namespace hfopt::cli
