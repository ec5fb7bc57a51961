#ifndef HFOPT_SERVER_EVALUATION_REMOTE_OBJECTIVE_H_
#define HFOPT_SERVER_EVALUATION_REMOTE_OBJECTIVE_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/objective.h"
#include "server/evaluation/shard_reducer.h"
#include "server/evaluation/worker_pool.h"

namespace hfopt::server {

// The objective of a run, computed by its workers: one call becomes one request for each shard, whose answers are added in the order of
// the shards. Calls block as WorkerPool::Evaluate does. Used by one thread.
//
// Vectors are named by their content, so what is on the workers is not sent again: theta stays until another theta is used, the
// directions of a Losses call until the next one, which may be a line search along one of them.
template <typename Scalar>
class RemoteObjective : public Objective<Scalar> {
 public:
  struct Options {
    // In every so many gradients or products one shard is asked for twice, and answers of one worker that differ are an error; so are answers to
    // the first gradient of a worker that contradict its losses and products (core/derivative_check.h, SpotCheckDerivatives). 0: neither.
    uint32_t repeat_every = 0;
    // Directions and products are rounded to bfloat16. Takes a pool that asks for it.
    bool bfloat16_products = false;
    // The workers offer second moments.
    bool second_moment = false;
  };

  // `pool` outlives this and has its shards set to layout.shards. `run_name` is for messages.
  RemoteObjective(std::string run_name, WorkerPool& pool, int64_t num_parameters, DataLayout layout, Options options)
      : run_name_(std::move(run_name)), pool_(pool), num_parameters_(num_parameters), layout_(layout), options_(options) {}
  ~RemoteObjective() override;

  int64_t num_parameters() const override { return num_parameters_; }
  const DataLayout& layout() const override { return layout_; }
  bool has_second_moment() const override { return options_.second_moment; }

  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample& sample) override;
  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override;
  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                          const Sample& sample) override;

  // Asks one worker for the model's own starting point.
  absl::StatusOr<Vector<Scalar>> InitialParameters(uint64_t seed);

 private:
  class RemoteProduct;

  // Spot-checks, at theta, the shards of `sample` whose gradient has come from a worker that is new. INVALID_ARGUMENT naming shard and worker.
  absl::Status CheckNewWorkers(const Vector<Scalar>& theta, const Sample& sample);

  // Asks for the unit of one shard twice, if it is time to: another shard each time. Answers the shard.
  std::optional<int> Repeat(std::vector<Unit>& units);
  // INVALID_ARGUMENT naming worker, shard, index and both values unless the vectors have the same bits, where both are of one worker.
  absl::Status CheckRepeated(const UnitAnswer& first, uint64_t first_transfer, const UnitAnswer& second, uint64_t second_transfer,
                             absl::string_view what) const;

  // One unit for each shard with data in the sample; `request` is completed with the shard's slice.
  std::vector<Unit> MakeUnits(const Sample& sample, const v1::EvaluationRequest& request,
                              const std::vector<NamedVectorPtr>& vectors) const;
  // `vector` under its name: one of `known` that has it already, else a copy.
  NamedVectorPtr Name(const Vector<Scalar>& vector, const std::vector<NamedVectorPtr>& known) const;
  // `vector` rounded to bfloat16, likewise.
  NamedVectorPtr NameRounded(const Vector<Scalar>& vector) const;
  // Makes `theta` the resident point; releases what belonged to the one before.
  NamedVectorPtr SetTheta(const Vector<Scalar>& theta);
  void Release(const std::vector<NamedVectorPtr>& vectors);
  // Adds a vector of an answer to the sum over the shards; INVALID_ARGUMENT naming worker, shard and index when it is not finite.
  absl::Status Add(const UnitAnswer& answer, uint64_t transfer, double weight, absl::string_view what,
                   VectorReducer<Scalar>& reducer) const;

  const std::string run_name_;
  WorkerPool& pool_;
  const int64_t num_parameters_;
  const DataLayout layout_;
  const Options options_;
  uint64_t evaluations_ = 0;  // gradients and products
  using WorkerName = std::pair<std::string, uint64_t>;  // and its incarnation
  std::map<int, WorkerName> gradient_of_;  // by shard: who has answered last
  std::set<WorkerName> checked_;
  bool checking_ = false;  // what is asked is no part of the optimization
  NamedVectorPtr theta_;
  std::vector<NamedVectorPtr> directions_;  // of the last Losses call
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_REMOTE_OBJECTIVE_H_
