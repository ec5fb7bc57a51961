#ifndef HFOPT_CLIENT_CPP_MPI_GROUP_H_
#define HFOPT_CLIENT_CPP_MPI_GROUP_H_

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/model.h"

// One worker of many processes (mpirun -n K): the ranks of a communicator share out the examples of every request, and MPI adds up what they answer. The
// server sees a single worker, and sends and receives each vector once, whatever K is. Built where HFOPT_MPI is on.
//
// Every rank makes the same model. Rank 0 serves an MpiModel; the others call FollowMpiGroup. All MPI calls come from the thread that uses the model, so
// MPI_THREAD_FUNNELED is enough. A rank that dies takes the group with it, as MPI has it; started again, the group is the same worker, newer.
namespace hfopt::client {

// Rank 0's model: the sum of all ranks'. Answers are those of one process up to rounding, and for one K have the same bits every time. A failure names
// the rank. Its destructor lets the others go.
template <typename Scalar>
class MpiModel final : public Model<Scalar> {
 public:
  // Collective: the other ranks are in FollowMpiGroup, or will be. `model` outlives this. FAILED_PRECONDITION naming rank and both values when a rank
  // has another model.
  static absl::StatusOr<std::unique_ptr<MpiModel>> Create(Model<Scalar>& model, MPI_Comm group);
  ~MpiModel() override;

  int64_t num_parameters() const override { return model_.num_parameters(); }
  int64_t num_examples(DataSet data) const override { return model_.num_examples(data); }
  std::string signature() const override { return model_.signature(); }
  absl::StatusOr<LossSum> Loss(const ConstVectorRef<Scalar>& theta, const Examples& examples) override;
  absl::StatusOr<LossSum> Gradient(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> gradient) override;
  absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> Linearize(const ConstVectorRef<Scalar>& theta, const Examples& examples) override;
  bool has_second_moment() const override { return model_.has_second_moment(); }
  absl::Status SecondMoment(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> second_moment) override;
  bool has_initial_parameters() const override { return model_.has_initial_parameters(); }
  absl::StatusOr<Vector<Scalar>> InitialParameters(uint64_t seed) override { return model_.InitialParameters(seed); }

 private:
  class Impl;
  class GroupLinearization;
  MpiModel(Model<Scalar>& model, std::unique_ptr<Impl> impl);

  Model<Scalar>& model_;
  const std::shared_ptr<Impl> impl_;
};

// Every other rank's part: computes its share of what rank 0 is asked for, until rank 0 lets it go. Sleeps while there is nothing to do. The model's own
// failures are rank 0's to tell; FAILED_PRECONDITION as above.
template <typename Scalar>
absl::Status FollowMpiGroup(Model<Scalar>& model, MPI_Comm group);

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_MPI_GROUP_H_
