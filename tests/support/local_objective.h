#ifndef HFOPT_TESTS_SUPPORT_LOCAL_OBJECTIVE_H_
#define HFOPT_TESTS_SUPPORT_LOCAL_OBJECTIVE_H_

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "client/cpp/model.h"
#include "client/cpp/sub_batches.h"
#include "client/cpp/windows.h"
#include "core/objective.h"
#include "core/status_macros.h"
#include "server/evaluation/shard_reducer.h"

namespace hfopt::testing {

// A model as an objective in this process: what RemoteObjective and its workers compute, without anything in between. The sums are cut into
// the same shards and added by the same code, so the bits are the same.
template <typename Scalar>
class LocalObjective : public Objective<Scalar> {
 public:
  // The model must outlive this.
  LocalObjective(client::Model<Scalar>& model, int shards)
      : model_(model),
        layout_{.shards = shards,
                .training_examples = model.num_examples(client::DataSet::kTraining),
                .held_out_examples = model.num_examples(client::DataSet::kHeldOut)} {}

  int64_t num_parameters() const override { return model_.num_parameters(); }
  const DataLayout& layout() const override { return layout_; }
  bool has_second_moment() const override { return model_.has_second_moment(); }

  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample& sample) override {
    server::LossReducer reducer(trials.size());
    HFOPT_ASSIGN_OR_RETURN(const auto shards, ExamplesOf(sample));
    for (const client::Examples& examples : shards) {
      std::vector<double> sums;
      std::map<std::string, std::vector<double>> metrics;
      double weight = 0;
      for (const Trial<Scalar>& trial : trials) {
        point_ = theta;
        if (trial.direction != nullptr) point_ += static_cast<Scalar>(trial.step) * *trial.direction;
        HFOPT_ASSIGN_OR_RETURN(const client::LossSum sum, model_.Loss(point_, examples));
        sums.push_back(sum.loss);
        weight = sum.weight;
        for (const auto& [name, value] : sum.metrics) metrics[name].push_back(value);
      }
      reducer.Add(sums, weight);
      for (const auto& [name, values] : metrics) reducer.AddMetric(name, values);
    }
    return reducer.Mean();
  }

  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override {
    server::LossReducer loss(1);
    GradientAnswer<Scalar> mean;
    server::VectorReducer<Scalar> gradient(mean.gradient), second_moment(mean.second_moment);
    std::vector<server::PartNorm> parts;
    HFOPT_ASSIGN_OR_RETURN(const auto shards, ExamplesOf(sample));
    for (const client::Examples& examples : shards) {
      const int64_t wanted = (extras.sub_batches + layout_.shards - 1) / layout_.shards;
      Vector<Scalar> sum(num_parameters());
      std::vector<client::SubBatch> sub_batches;
      HFOPT_ASSIGN_OR_RETURN(const client::LossSum answer,
                             client::GradientBySubBatches(model_, theta, examples,
                                                          static_cast<int>(std::min(wanted, examples.size())), sum,
                                                          sub_batches));
      loss.Add({answer.loss}, answer.weight);
      if (!gradient.Add(sum, answer.weight)) return absl::InvalidArgumentError("the gradient is not finite");
      for (const client::SubBatch& part : sub_batches) parts.push_back({part.squared_norm, part.weight});
      if (extras.second_moment) {
        Vector<Scalar> squares(num_parameters());
        HFOPT_RETURN_IF_ERROR(model_.SecondMoment(theta, examples, squares));
        if (!second_moment.Add(squares, answer.weight)) return absl::InvalidArgumentError("the moment is not finite");
      }
    }
    gradient.Finish();
    if (extras.second_moment) second_moment.Finish();
    mean.loss = loss.Mean()[0].loss;
    mean.weight = gradient.weight();
    mean.noise = server::GradientNoise(parts, Norm(mean.gradient));
    return mean;
  }

  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                          const Sample& sample) override {
    auto product = std::make_unique<Product>();
    HFOPT_ASSIGN_OR_RETURN(const auto shards, ExamplesOf(sample));
    for (const client::Examples& examples : shards) {
      HFOPT_ASSIGN_OR_RETURN(auto linearization, model_.Linearize(theta, examples));
      product->linearizations.push_back(std::move(linearization));
    }
    return product;
  }

 private:
  struct Product : CurvatureProduct<Scalar> {
    absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
      server::VectorReducer<Scalar> reducer(product);
      sum.resize(v.size());
      for (const auto& linearization : linearizations) {
        HFOPT_RETURN_IF_ERROR(linearization->GaussNewtonProduct(v, sum));
        if (!reducer.Add(sum, linearization->weight())) return absl::InvalidArgumentError("the product is not finite");
      }
      reducer.Finish();
      return absl::OkStatus();
    }

    Vector<Scalar> sum;
    std::vector<std::unique_ptr<client::Linearization<Scalar>>> linearizations;
  };

  // Of each shard that has a part in the sample.
  absl::StatusOr<std::vector<client::Examples>> ExamplesOf(const Sample& sample) const {
    std::vector<client::Examples> shards;
    for (int shard = 0; shard < layout_.shards; ++shard) {
      if (sample.windows[shard].count == 0) continue;
      v1::Slice slice;
      slice.set_data_set(sample.data == DataSet::kTraining ? v1::DATA_SET_TRAINING : v1::DATA_SET_HELD_OUT);
      slice.set_shard(shard);
      slice.set_shards(layout_.shards);
      slice.set_begin(sample.windows[shard].begin);
      slice.set_count(sample.windows[shard].count);
      HFOPT_ASSIGN_OR_RETURN(client::Examples examples,
                             client::ExamplesOf(slice, layout_.training_examples, layout_.held_out_examples));
      shards.push_back(std::move(examples));
    }
    return shards;
  }

  client::Model<Scalar>& model_;
  const DataLayout layout_;
  Vector<Scalar> point_;
};

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_LOCAL_OBJECTIVE_H_
