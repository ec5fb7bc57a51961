#include "server/evaluation/remote_objective.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "server/evaluation/shard_reducer.h"

namespace hfopt::server {

// Holds the point by name; theta itself may change or go.
template <typename Scalar>
class RemoteObjective<Scalar>::RemoteProduct : public CurvatureProduct<Scalar> {
 public:
  RemoteProduct(RemoteObjective& objective, NamedVectorPtr theta, Sample sample)
      : objective_(objective), theta_(std::move(theta)), sample_(std::move(sample)) {}

  absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
    const NamedVectorPtr direction = objective_.Name(v, {theta_});
    v1::EvaluationRequest request;
    request.mutable_product()->mutable_point()->set_base(theta_->name);
    request.mutable_product()->set_direction(direction->name);
    std::vector<Unit> units = objective_.MakeUnits(sample_, request, {theta_, direction});
    const std::vector<int> shards = ShardsOf(units);
    auto answers = objective_.pool_.Evaluate(std::move(units));
    if (direction != theta_) objective_.Release({direction});
    HFOPT_RETURN_IF_ERROR(answers.status());
    VectorReducer<Scalar> reducer;
    for (size_t i = 0; i < answers->size(); ++i) {
      UnitAnswer& unit = (*answers)[i];
      const v1::ProductAnswer& a = unit.answer.product();
      HFOPT_ASSIGN_OR_RETURN(
          Vector<Scalar> sum, objective_.TakeFinite(unit, a.product_transfer(), shards[i], "Gauss-Newton product"));
      reducer.Add(std::move(sum), a.weight());
    }
    product = std::move(reducer).Mean();
    return absl::OkStatus();
  }

  static std::vector<int> ShardsOf(const std::vector<Unit>& units) {
    std::vector<int> shards;
    for (const Unit& unit : units) shards.push_back(unit.shard);
    return shards;
  }

 private:
  RemoteObjective& objective_;
  const NamedVectorPtr theta_;
  const Sample sample_;
};

template <typename Scalar>
RemoteObjective<Scalar>::~RemoteObjective() {
  Release(directions_);
  if (theta_ != nullptr) Release({theta_});
}

template <typename Scalar>
NamedVectorPtr RemoteObjective<Scalar>::Name(const Vector<Scalar>& vector,
                                             const std::vector<NamedVectorPtr>& known) const {
  std::string name = wire::ContentName(vector);
  for (const NamedVectorPtr& candidate : known) {
    if (candidate != nullptr && candidate->name == name) return candidate;
  }
  return std::make_shared<const NamedVector>(NamedVector{std::move(name), vector});
}

template <typename Scalar>
void RemoteObjective<Scalar>::Release(const std::vector<NamedVectorPtr>& vectors) {
  std::vector<std::string> names;
  for (const NamedVectorPtr& vector : vectors) names.push_back(vector->name);
  if (!names.empty()) pool_.Release(names);
}

template <typename Scalar>
NamedVectorPtr RemoteObjective<Scalar>::SetTheta(const Vector<Scalar>& theta) {
  NamedVectorPtr named = Name(theta, {theta_});
  if (named != theta_) {
    Release(std::exchange(directions_, {}));
    if (theta_ != nullptr) Release({theta_});
    theta_ = named;
  }
  return named;
}

template <typename Scalar>
std::vector<Unit> RemoteObjective<Scalar>::MakeUnits(const Sample& sample, const v1::EvaluationRequest& request,
                                                     const std::vector<NamedVectorPtr>& vectors) const {
  std::vector<Unit> units;
  for (int shard = 0; shard < layout_.shards; ++shard) {
    const Window& window = sample.windows[shard];
    if (window.count == 0) continue;
    Unit unit{.shard = shard, .request = request, .vectors = vectors};
    v1::Slice& slice = *unit.request.mutable_slice();
    slice.set_data_set(sample.data == DataSet::kTraining ? v1::DATA_SET_TRAINING : v1::DATA_SET_HELD_OUT);
    slice.set_shard(shard);
    slice.set_shards(layout_.shards);
    slice.set_begin(window.begin);
    slice.set_count(window.count);
    units.push_back(std::move(unit));
  }
  return units;
}

template <typename Scalar>
absl::StatusOr<Vector<Scalar>> RemoteObjective<Scalar>::TakeFinite(UnitAnswer& answer, uint64_t transfer, int shard,
                                                                   absl::string_view what) const {
  const auto it = answer.vectors.find(transfer);
  auto* const vector = it == answer.vectors.end() ? nullptr : std::get_if<Vector<Scalar>>(&it->second);
  if (vector == nullptr) {
    return absl::InternalError(absl::StrCat(run_name_, ": shard ", shard, ": transfer ", transfer, " is missing"));
  }
  if (const int64_t first = FirstNonFinite(*vector); first >= 0) {
    const int64_t count = vector->size() - vector->array().isFinite().count();
    return absl::InvalidArgumentError(absl::StrCat(
        run_name_, ": shard ", shard, ": the ", what, " of worker ", answer.worker_id, " has ", count,
        " non-finite elements of ", vector->size(), ", the first (", (*vector)[first], ") at index ", first,
        "; nothing of it was used. Check the model's arithmetic there (overflow, log of 0) and resume the run"));
  }
  return std::move(*vector);
}

template <typename Scalar>
absl::StatusOr<std::vector<LossAnswer>> RemoteObjective<Scalar>::Losses(const Vector<Scalar>& theta,
                                                                        absl::Span<const Trial<Scalar>> trials,
                                                                        const Sample& sample) {
  const NamedVectorPtr base = SetTheta(theta);
  v1::EvaluationRequest request;
  std::vector<NamedVectorPtr> directions;
  std::map<const Vector<Scalar>*, NamedVectorPtr> by_address;  // a line search names one direction many times
  for (const Trial<Scalar>& trial : trials) {
    v1::Point& point = *request.mutable_losses()->add_points();
    point.set_base(base->name);
    if (trial.direction == nullptr) continue;
    NamedVectorPtr& direction = by_address[trial.direction];
    if (direction == nullptr) {
      direction = Name(*trial.direction, directions_);
      directions.push_back(direction);
    }
    v1::Term& term = *point.add_terms();
    term.set_coefficient(trial.step);
    term.set_vector(direction->name);
  }
  std::vector<NamedVectorPtr> stale;
  for (const NamedVectorPtr& old : directions_) {
    if (std::find(directions.begin(), directions.end(), old) == directions.end()) stale.push_back(old);
  }
  // Directions of the call before stay while they may be asked for again: CG backtracking ends one iterate before the chosen one.
  constexpr size_t kMostKept = 3;
  while (stale.size() + directions.size() > kMostKept && !stale.empty()) {
    Release({stale.front()});
    stale.erase(stale.begin());
  }
  directions_ = stale;
  directions_.insert(directions_.end(), directions.begin(), directions.end());

  std::vector<NamedVectorPtr> vectors = directions;
  vectors.push_back(base);
  HFOPT_ASSIGN_OR_RETURN(const std::vector<UnitAnswer> answers,
                         pool_.Evaluate(MakeUnits(sample, request, vectors)));
  LossReducer reducer(trials.size());
  for (const UnitAnswer& unit : answers) {
    const v1::LossesAnswer& a = unit.answer.losses();
    reducer.Add({a.loss_sums().begin(), a.loss_sums().end()}, a.weight());
    for (const v1::MetricSums& metric : a.metrics()) {
      reducer.AddMetric(metric.name(), {metric.sums().begin(), metric.sums().end()});
    }
  }
  return reducer.Mean();
}

template <typename Scalar>
absl::StatusOr<GradientAnswer<Scalar>> RemoteObjective<Scalar>::Gradient(const Vector<Scalar>& theta,
                                                                         const Sample& sample,
                                                                         const GradientExtras& extras) {
  pool_.Rebalance();  // between solves, when no activations are kept
  const NamedVectorPtr base = SetTheta(theta);
  v1::EvaluationRequest request;
  request.mutable_gradient()->mutable_point()->set_base(base->name);
  request.mutable_gradient()->set_second_moment(extras.second_moment);
  std::vector<Unit> units = MakeUnits(sample, request, {base});
  const int parts = (extras.sub_batches + layout_.shards - 1) / layout_.shards;
  for (Unit& unit : units) {
    unit.request.mutable_gradient()->set_sub_batches(std::min<uint64_t>(parts, unit.request.slice().count()));
  }
  const std::vector<int> shards = RemoteProduct::ShardsOf(units);
  HFOPT_ASSIGN_OR_RETURN(std::vector<UnitAnswer> answers, pool_.Evaluate(std::move(units)));

  LossReducer loss(1);
  VectorReducer<Scalar> gradient, second_moment;
  std::vector<PartNorm> part_norms;
  for (size_t i = 0; i < answers.size(); ++i) {
    const v1::GradientAnswer& a = answers[i].answer.gradient();
    loss.Add({a.loss_sum()}, a.weight());
    HFOPT_ASSIGN_OR_RETURN(Vector<Scalar> sum,
                           TakeFinite(answers[i], a.gradient_transfer(), shards[i], "gradient"));
    gradient.Add(std::move(sum), a.weight());
    if (extras.second_moment) {
      HFOPT_ASSIGN_OR_RETURN(Vector<Scalar> squares,
                             TakeFinite(answers[i], a.second_moment_transfer(), shards[i], "second moment"));
      second_moment.Add(std::move(squares), a.weight());
    }
    for (const v1::SubBatch& part : a.sub_batches()) part_norms.push_back({part.squared_norm(), part.weight()});
  }
  GradientAnswer<Scalar> answer;
  answer.loss = loss.Mean()[0].loss;
  answer.weight = gradient.weight();
  answer.gradient = std::move(gradient).Mean();
  answer.noise = GradientNoise(part_norms, Norm(answer.gradient));
  if (extras.second_moment) answer.second_moment = std::move(second_moment).Mean();
  return answer;
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> RemoteObjective<Scalar>::GaussNewtonAt(
    const Vector<Scalar>& theta, const Sample& sample) {
  return std::make_unique<RemoteProduct>(*this, SetTheta(theta), sample);
}

template <typename Scalar>
absl::StatusOr<Vector<Scalar>> RemoteObjective<Scalar>::InitialParameters(uint64_t seed) {
  Unit unit;
  unit.request.mutable_initial_parameters()->set_seed(seed);
  std::vector<Unit> units;
  units.push_back(std::move(unit));
  HFOPT_ASSIGN_OR_RETURN(std::vector<UnitAnswer> answers, pool_.Evaluate(std::move(units)));
  return TakeFinite(answers[0], answers[0].answer.initial_parameters().parameters_transfer(), 0, "initial parameters");
}

template class RemoteObjective<float>;
template class RemoteObjective<double>;

}  // namespace hfopt::server
