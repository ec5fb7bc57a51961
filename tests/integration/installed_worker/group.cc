// The same model on the processes that mpirun starts: each has a part of the examples, rank 0 has the sum.

#include <mpi.h>

#include <iostream>

#include "client/cpp/mpi_group.h"
#include "quadratic.h"

absl::Status Compute(hc::Model<double>& model, int rank) {
  if (rank != 0) return hc::FollowMpiGroup(model, MPI_COMM_WORLD);
  const auto group = hc::MpiModel<double>::Create(model, MPI_COMM_WORLD);
  if (!group.ok()) return group.status();
  const auto sum = (*group)->Loss(hc::Vector<double>::Zero(4), {.ranges = {{0, 4}}});
  if (!sum.ok()) return sum.status();
  if (sum->loss == 7 && sum->weight == 4) return absl::OkStatus();  // (0 + 1 + 4 + 9) / 2
  return absl::InternalError("another sum than that of one process");
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  Quadratic model;
  const absl::Status status = Compute(model, rank);
  std::cout << "rank " << rank << ": " << status << "\n";
  MPI_Finalize();
  return status.ok() ? 0 : 1;
}
