#include "server/evaluation/remote_objective.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "core/derivative_check.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::server {

// Holds the point by name; theta itself may change or go.
template <typename Scalar>
class RemoteObjective<Scalar>::RemoteProduct : public CurvatureProduct<Scalar> {
 public:
  RemoteProduct(RemoteObjective& objective, NamedVectorPtr theta, Sample sample)
      : objective_(objective), theta_(std::move(theta)), sample_(std::move(sample)) {}

  absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
    const bool rounded = objective_.options_.bfloat16_products && !objective_.checking_;
    const NamedVectorPtr direction = rounded ? objective_.NameRounded(v) : objective_.Name(v, {theta_});
    v1::EvaluationRequest request;
    request.mutable_product()->set_bfloat16(rounded);
    request.mutable_product()->mutable_point()->set_base(theta_->name);
    request.mutable_product()->set_direction(direction->name);
    VectorReducer<Scalar> reducer(product);
    std::vector<Unit> units = objective_.MakeUnits(sample_, request, {theta_, direction});
    const std::optional<int> repeated = objective_.Repeat(units);
    std::optional<UnitAnswer> first;
    const absl::Status status = objective_.pool_.Evaluate(std::move(units), [&](UnitAnswer unit) -> absl::Status {
      constexpr absl::string_view kWhat = "Gauss-Newton product";
      const v1::ProductAnswer& a = unit.answer.product();
      if (first.has_value() && unit.shard == repeated) {
        return objective_.CheckRepeated(*first, first->answer.product().product_transfer(), unit, a.product_transfer(), kWhat);
      }
      if (unit.shard == repeated) first = unit;
      HFOPT_RETURN_IF_ERROR(objective_.Add(unit, a.product_transfer(), a.weight(), kWhat, reducer));
      HFOPT_FAILPOINT_OR_RETURN("evaluation.product");
      return absl::OkStatus();
    });
    if (direction != theta_) objective_.Release({direction});
    HFOPT_RETURN_IF_ERROR(status);
    reducer.Finish();
    return absl::OkStatus();
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
  std::string name = wire::ContentName<Scalar>(vector);
  for (const NamedVectorPtr& candidate : known) {
    if (candidate != nullptr && candidate->name == name) return candidate;
  }
  wire::SharedVector<Scalar> copy = pool_.NewVector<Scalar>(vector.size());
  copy.map() = vector;
  return std::make_shared<const NamedVector>(NamedVector{std::move(name), std::move(copy)});
}

template <typename Scalar>
NamedVectorPtr RemoteObjective<Scalar>::NameRounded(const Vector<Scalar>& vector) const {
  wire::SharedVector<wire::Bfloat16> halves = wire::NewSharedVector<wire::Bfloat16>(vector.size());
  halves.map() = vector.template cast<wire::Bfloat16>();
  wire::SharedVector<Scalar> rounded = pool_.NewVector<Scalar>(vector.size());
  rounded.map() = halves.map().template cast<Scalar>();
  std::string name = wire::ContentName<Scalar>(rounded.map());
  return std::make_shared<const NamedVector>(NamedVector{std::move(name), std::move(rounded), std::move(halves)});
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
absl::Status RemoteObjective<Scalar>::Add(const UnitAnswer& answer, uint64_t transfer, double weight, absl::string_view what,
                                          VectorReducer<Scalar>& reducer) const {
  const auto it = answer.vectors.find(transfer);
  const auto* const shared = it == answer.vectors.end() ? nullptr : std::get_if<wire::SharedVector<Scalar>>(&it->second);
  if (shared == nullptr) {
    return absl::InternalError(absl::StrCat(run_name_, ": shard ", answer.shard, ": transfer ", transfer, " is missing"));
  }
  const auto vector = shared->map();
  if (vector.size() != num_parameters_) {
    return absl::FailedPreconditionError(absl::StrCat(run_name_, ": shard ", answer.shard, ": the ", what, " of worker ",
                                                      answer.worker_id, " has ", vector.size(), " elements, theta has ",
                                                      num_parameters_));
  }
  if (reducer.Add(vector, weight)) return absl::OkStatus();
  const int64_t first = std::max<int64_t>(0, FirstNonFinite<Scalar>(vector));
  const int64_t count = vector.size() - vector.array().isFinite().count();
  return absl::InvalidArgumentError(absl::StrCat(
      run_name_, ": shard ", answer.shard, ": the ", what, " of worker ", answer.worker_id, " is not finite in ",
      count, " of ", vector.size(), " elements, the first (", vector[first], ") at index ", first,
      "; nothing of it was used. Check the model's arithmetic there (overflow, log of 0) and resume the run"));
}

template <typename Scalar>
std::optional<int> RemoteObjective<Scalar>::Repeat(std::vector<Unit>& units) {
  if (options_.repeat_every == 0 || checking_ || ++evaluations_ % options_.repeat_every != 0) return std::nullopt;
  const size_t i = evaluations_ / options_.repeat_every % units.size();
  const Unit again = units[i];
  units.insert(units.begin() + i, again);
  return again.shard;
}

template <typename Scalar>
absl::Status RemoteObjective<Scalar>::CheckNewWorkers(const Vector<Scalar>& theta, const Sample& sample) {
  constexpr int64_t kExamples = 4;
  checking_ = true;
  const auto checked = absl::MakeCleanup([this] { checking_ = false; });
  for (const auto& [shard, worker] : std::map(gradient_of_)) {
    if (checked_.contains(worker) || sample.windows[shard].count == 0) continue;
    Sample few{.data = sample.data, .windows = std::vector<Window>(sample.windows.size())};
    few.windows[shard] = sample.windows[shard];
    few.windows[shard].count = std::min(kExamples, few.windows[shard].count);
    HFOPT_ASSIGN_OR_RETURN(const std::vector<DerivativeCheckResult> results, SpotCheckDerivatives<Scalar>(*this, theta, few));
    for (const DerivativeCheckResult& result : results) {
      if (result.passed) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          run_name_, ": shard ", shard, ": the answers of worker ", worker.first, " contradict each other at ", few.windows[shard].count,
          " examples from ", few.windows[shard].begin, " on: ", result.meaning, " (relative error ", result.error, ", limit ", result.limit,
          "); nothing of them was used. hfopt conformance and the check of the client library find the place. Mend the model and resume the run, or "
          "create it anew with repeat_every 0, which asks no such questions"));
    }
    checked_.insert(worker);
  }
  return absl::OkStatus();
}

// Workers of one run may round differently, for example in two languages, and so may one that was started again on another processor; what is
// found here is a process that contradicts itself.
template <typename Scalar>
absl::Status RemoteObjective<Scalar>::CheckRepeated(const UnitAnswer& first, uint64_t first_transfer, const UnitAnswer& second,
                                                    uint64_t second_transfer, absl::string_view what) const {
  if (first.worker_id != second.worker_id || first.incarnation != second.incarnation) return absl::OkStatus();
  const auto bytes_of = [](const UnitAnswer& answer, uint64_t transfer) { return Bytes(answer.vectors.at(transfer)); };
  const absl::Span<const char> a = bytes_of(first, first_transfer), b = bytes_of(second, second_transfer);
  if (std::equal(a.begin(), a.end(), b.begin(), b.end())) return absl::OkStatus();
  const auto vector_of = [](absl::Span<const char> bytes) {
    return Eigen::Map<const Vector<Scalar>>(reinterpret_cast<const Scalar*>(bytes.data()), bytes.size() / sizeof(Scalar));
  };
  const auto u = vector_of(a), v = vector_of(b);
  const auto is_other = [&](int64_t i) { return std::memcmp(u.data() + i, v.data() + i, sizeof(Scalar)) != 0; };
  int64_t index = 0, differing = 0;
  for (int64_t i = std::min(u.size(), v.size()); i-- > 0;) {
    if (!is_other(i)) continue;
    index = i;
    ++differing;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      run_name_, ": shard ", first.shard, ": worker ", first.worker_id, " was asked twice for the same ", what, " and answered differently: ",
      differing, " of ", u.size(), " elements, the first at index ", index, ", ", u[index], " and ", v[index],
      "; nothing of it was used. Make the model a pure function (dropout off, no running averages, sums in a fixed order) and resume the "
      "run, or create it anew with repeat_every 0, for a result that cannot be reproduced"));
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
  LossReducer reducer(trials.size());
  HFOPT_RETURN_IF_ERROR(pool_.Evaluate(MakeUnits(sample, request, vectors), [&](UnitAnswer unit) -> absl::Status {
    const v1::LossesAnswer& a = unit.answer.losses();
    reducer.Add({a.loss_sums().begin(), a.loss_sums().end()}, a.weight());
    for (const v1::MetricSums& metric : a.metrics()) {
      reducer.AddMetric(metric.name(), {metric.sums().begin(), metric.sums().end()});
    }
    if (trials.front().step == 1) {
      HFOPT_FAILPOINT_OR_RETURN("evaluation.backtracking");
    } else {
      HFOPT_FAILPOINT_OR_RETURN("evaluation.line_search");
    }
    return absl::OkStatus();
  }));
  return reducer.Mean();
}

template <typename Scalar>
absl::StatusOr<GradientAnswer<Scalar>> RemoteObjective<Scalar>::Gradient(const Vector<Scalar>& theta,
                                                                         const Sample& sample,
                                                                         const GradientExtras& extras) {
  if (!checking_) pool_.Rebalance();  // between solves, when no activations are kept
  const NamedVectorPtr base = SetTheta(theta);
  v1::EvaluationRequest request;
  request.mutable_gradient()->mutable_point()->set_base(base->name);
  request.mutable_gradient()->set_second_moment(extras.second_moment);
  std::vector<Unit> units = MakeUnits(sample, request, {base});
  const int parts = (extras.sub_batches + layout_.shards - 1) / layout_.shards;
  for (Unit& unit : units) {
    unit.request.mutable_gradient()->set_sub_batches(std::min<uint64_t>(parts, unit.request.slice().count()));
  }

  const std::optional<int> repeated = Repeat(units);
  std::optional<UnitAnswer> first;
  GradientAnswer<Scalar> answer;
  LossReducer loss(1);
  VectorReducer<Scalar> gradient(answer.gradient), second_moment(answer.second_moment);
  std::vector<PartNorm> part_norms;
  HFOPT_RETURN_IF_ERROR(pool_.Evaluate(std::move(units), [&](UnitAnswer unit) -> absl::Status {
    const v1::GradientAnswer& a = unit.answer.gradient();
    if (first.has_value() && unit.shard == repeated) {
      return CheckRepeated(*first, first->answer.gradient().gradient_transfer(), unit, a.gradient_transfer(), "gradient");
    }
    if (unit.shard == repeated) first = unit;
    gradient_of_[unit.shard] = {unit.worker_id, unit.incarnation};
    loss.Add({a.loss_sum()}, a.weight());
    HFOPT_RETURN_IF_ERROR(Add(unit, a.gradient_transfer(), a.weight(), "gradient", gradient));
    if (extras.second_moment) {
      HFOPT_RETURN_IF_ERROR(Add(unit, a.second_moment_transfer(), a.weight(), "second moment", second_moment));
    }
    for (const v1::SubBatch& part : a.sub_batches()) part_norms.push_back({part.squared_norm(), part.weight()});
    HFOPT_FAILPOINT_OR_RETURN("evaluation.gradient");
    return absl::OkStatus();
  }));
  gradient.Finish();
  if (extras.second_moment) second_moment.Finish();
  answer.loss = loss.Mean()[0].loss;
  answer.weight = gradient.weight();
  answer.noise = GradientNoise(part_norms, Norm(answer.gradient));
  if (options_.repeat_every != 0 && !checking_) HFOPT_RETURN_IF_ERROR(CheckNewWorkers(theta, sample));
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
  Vector<Scalar> theta;
  VectorReducer<Scalar> reducer(theta);  // of one answer
  HFOPT_RETURN_IF_ERROR(pool_.Evaluate(std::move(units), [&](UnitAnswer answer) {
    return Add(answer, answer.answer.initial_parameters().parameters_transfer(), 1, "initial parameters", reducer);
  }));
  return theta;
}

template class RemoteObjective<float>;
template class RemoteObjective<double>;

}  // namespace hfopt::server
