#include "client/cpp/evaluator.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/sub_batches.h"
#include "client/cpp/windows.h"
#include "proto/failpoint/failpoint.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::client {
namespace {

using Clock = std::chrono::steady_clock;

void AddNames(const v1::Point& point, std::set<std::string>& names) {
  names.insert(point.base());
  for (const v1::Term& term : point.terms()) names.insert(term.vector());
}

// "gradient on training shard 1 of 4", for messages.
std::string Subject(const v1::EvaluationRequest& request) {
  const v1::Slice& slice = request.slice();
  const auto on_slice = [&](const char* kind) {
    return absl::StrCat(kind, " on ", slice.data_set() == v1::DATA_SET_HELD_OUT ? "held-out" : "training", " shard ",
                        slice.shard(), " of ", slice.shards());
  };
  switch (request.kind_case()) {
    case v1::EvaluationRequest::kLosses:
      return on_slice("losses");
    case v1::EvaluationRequest::kGradient:
      return on_slice("gradient");
    case v1::EvaluationRequest::kProduct:
      return on_slice("product");
    case v1::EvaluationRequest::kInitialParameters:
      return "initial parameters";
    case v1::EvaluationRequest::KIND_NOT_SET:
      break;
  }
  return "request";
}

// Which linearization a product needs: the same for all directions.
std::string LinearizationKey(const v1::EvaluationRequest& request) {
  v1::EvaluationRequest key;
  *key.mutable_slice() = request.slice();
  *key.mutable_product()->mutable_point() = request.product().point();
  return key.SerializeAsString();
}

}  // namespace

std::set<std::string> VectorNames(const v1::EvaluationRequest& request) {
  std::set<std::string> names;
  for (const v1::Point& point : request.losses().points()) AddNames(point, names);
  if (request.has_gradient()) AddNames(request.gradient().point(), names);
  if (request.has_product()) {
    AddNames(request.product().point(), names);
    names.insert(request.product().direction());
  }
  return names;
}

template <typename Scalar>
Evaluator<Scalar>::Evaluator(Model<Scalar>& model, std::set<uint32_t> shards, size_t max_linearizations,
                             NewVector new_vector)
    : model_(model),
      shards_(std::move(shards)),
      max_linearizations_(std::max<size_t>(1, max_linearizations)),
      buffers_(model.num_parameters() * sizeof(Scalar)),
      new_vector_(new_vector ? std::move(new_vector) : [this] { return buffers_.GetVector<Scalar>(); }) {}

template <typename Scalar>
Evaluated<Scalar> Evaluator<Scalar>::Evaluate(const Evaluation<Scalar>& evaluation) {
  const Clock::time_point begin = Clock::now();
  Evaluated<Scalar> result;
  absl::Status status;
  try {
    status = Answer(evaluation, result);
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    status = absl::InternalError(absl::StrCat("the model threw: ", error.what()));
  }
  if (!status.ok()) {
    result.vectors.clear();
    v1::Failure& failure = *result.answer.mutable_failure();
    failure.set_code(static_cast<int>(status.code()));
    failure.set_message(absl::StrCat(Subject(evaluation.request), ": ", status.message()));
  }
  result.answer.set_request_id(evaluation.request.id());
  result.answer.set_compute_seconds(std::chrono::duration<double>(Clock::now() - begin).count());
  return result;
}

template <typename Scalar>
absl::Status Evaluator<Scalar>::Answer(const Evaluation<Scalar>& evaluation, Evaluated<Scalar>& result) {
  const v1::EvaluationRequest& request = evaluation.request;
  if (request.has_initial_parameters()) return AnswerInitialParameters(evaluation, result);
  const absl::StatusOr<Examples> examples = ExamplesOfRequest(request);
  if (!examples.ok()) return examples.status();
  switch (request.kind_case()) {
    case v1::EvaluationRequest::kLosses:
      return AnswerLosses(evaluation, *examples, result);
    case v1::EvaluationRequest::kGradient:
      return AnswerGradient(evaluation, *examples, result);
    case v1::EvaluationRequest::kProduct:
      return AnswerProduct(evaluation, *examples, result);
    default:
      return absl::UnimplementedError("a kind of request that this worker does not know; update its client library");
  }
}

template <typename Scalar>
absl::Status Evaluator<Scalar>::AnswerLosses(const Evaluation<Scalar>& evaluation, const Examples& examples,
                                             Evaluated<Scalar>& result) {
  const v1::LossesRequest& request = evaluation.request.losses();
  v1::LossesAnswer& answer = *result.answer.mutable_losses();
  std::map<std::string, std::vector<double>> metrics;  // each as long as the list of points
  for (int i = 0; i < request.points_size(); ++i) {
    const absl::StatusOr<LossSum> loss = model_.Loss(PointOf(request.points(i), evaluation).map(), examples);
    if (!loss.ok()) return loss.status();
    if (request.points(i).terms().empty() || request.points(i).terms(0).coefficient() == 1) {
      HFOPT_FAILPOINT_OR_RETURN("worker.backtracking");
    } else {
      HFOPT_FAILPOINT_OR_RETURN("worker.line_search");
    }
    if (i > 0 && loss->weight != answer.weight()) {
      return absl::InternalError(absl::StrCat("the model's weight changed from ", answer.weight(), " to ", loss->weight,
                                              " between points; it must depend on the examples alone"));
    }
    answer.add_loss_sums(loss->loss);
    answer.set_weight(loss->weight);
    for (const auto& [name, sum] : loss->metrics) {
      std::vector<double>& sums = metrics[name];
      sums.resize(request.points_size());
      sums[i] = sum;
    }
  }
  for (const auto& [name, sums] : metrics) {
    v1::MetricSums& metric = *answer.add_metrics();
    metric.set_name(name);
    metric.mutable_sums()->Assign(sums.begin(), sums.end());
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Evaluator<Scalar>::AnswerGradient(const Evaluation<Scalar>& evaluation, const Examples& examples,
                                               Evaluated<Scalar>& result) {
  const v1::GradientRequest& request = evaluation.request.gradient();
  v1::GradientAnswer& answer = *result.answer.mutable_gradient();
  const SharedVector<Scalar> theta = PointOf(request.point(), evaluation);

  SharedVector<Scalar> gradient = new_vector_();
  std::vector<SubBatch> sub_batches;
  const absl::StatusOr<LossSum> loss =
      GradientBySubBatches(model_, theta.map(), examples, request.sub_batches(), gradient.map(), sub_batches);
  if (!loss.ok()) return loss.status();
  HFOPT_FAILPOINT_OR_RETURN("worker.gradient");

  answer.set_loss_sum(loss->loss);
  answer.set_weight(loss->weight);
  answer.set_gradient_transfer(Attach(std::move(gradient), result));
  for (const SubBatch& s : sub_batches) {
    v1::SubBatch& sub_batch = *answer.add_sub_batches();
    sub_batch.set_squared_norm(s.squared_norm);
    sub_batch.set_weight(s.weight);
  }
  if (request.second_moment()) {
    SharedVector<Scalar> second_moment = new_vector_();
    if (auto s = model_.SecondMoment(theta.map(), examples, second_moment.map()); !s.ok()) return s;
    answer.set_second_moment_transfer(Attach(std::move(second_moment), result));
  }
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Evaluator<Scalar>::AnswerProduct(const Evaluation<Scalar>& evaluation, const Examples& examples,
                                              Evaluated<Scalar>& result) {
  const absl::StatusOr<Linearization<Scalar>*> linearization = LinearizationAt(evaluation, examples);
  if (!linearization.ok()) return linearization.status();
  SharedVector<Scalar> product = new_vector_();
  const SharedVector<Scalar>& direction = evaluation.vectors.at(evaluation.request.product().direction());
  if (auto s = (*linearization)->GaussNewtonProduct(direction.map(), product.map()); !s.ok()) return s;
  HFOPT_FAILPOINT_OR_RETURN("worker.product");
  if (evaluation.request.product().bfloat16()) {
    if constexpr (std::is_same_v<Scalar, float>) {
      wire::RoundToBfloat16(product.map());
      result.bfloat16 = true;
    } else {
      return absl::InvalidArgumentError("asks for bfloat16 in a run of float64");
    }
  }
  result.answer.mutable_product()->set_product_transfer(Attach(std::move(product), result));
  result.answer.mutable_product()->set_weight((*linearization)->weight());
  return absl::OkStatus();
}

template <typename Scalar>
absl::Status Evaluator<Scalar>::AnswerInitialParameters(const Evaluation<Scalar>& evaluation,
                                                        Evaluated<Scalar>& result) {
  const absl::StatusOr<Vector<Scalar>> theta =
      model_.InitialParameters(evaluation.request.initial_parameters().seed());
  if (!theta.ok()) return theta.status();
  if (theta->size() != model_.num_parameters()) {
    return absl::InternalError(absl::StrCat("the model's vector of initial parameters has ", theta->size(),
                                            " elements, but the model has ", model_.num_parameters(), " parameters"));
  }
  HFOPT_FAILPOINT_OR_RETURN("worker.initial_parameters");
  SharedVector<Scalar> parameters = new_vector_();
  parameters.map() = *theta;
  result.answer.mutable_initial_parameters()->set_parameters_transfer(Attach(std::move(parameters), result));
  return absl::OkStatus();
}

template <typename Scalar>
absl::StatusOr<Examples> Evaluator<Scalar>::ExamplesOfRequest(const v1::EvaluationRequest& request) const {
  if (!shards_.empty() && shards_.count(request.slice().shard()) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("this worker has the data of shards ", absl::StrJoin(shards_, ", "), " only, as its Hello said"));
  }
  return ExamplesOf(request.slice(), model_.num_examples(DataSet::kTraining), model_.num_examples(DataSet::kHeldOut));
}

template <typename Scalar>
SharedVector<Scalar> Evaluator<Scalar>::PointOf(const v1::Point& point, const Evaluation<Scalar>& evaluation) {
  const SharedVector<Scalar>& base = evaluation.vectors.at(point.base());
  if (point.terms().empty()) return base;
  SharedVector<Scalar> theta = buffers_.GetVector<Scalar>();
  theta.map() = base.map();
  for (const v1::Term& term : point.terms()) {
    theta.map() += static_cast<Scalar>(term.coefficient()) * evaluation.vectors.at(term.vector()).map();
  }
  return theta;
}

template <typename Scalar>
absl::StatusOr<Linearization<Scalar>*> Evaluator<Scalar>::LinearizationAt(const Evaluation<Scalar>& evaluation,
                                                                          const Examples& examples) {
  std::string key = LinearizationKey(evaluation.request);
  const auto kept = std::find_if(linearizations_.begin(), linearizations_.end(),
                                 [&](const KeptLinearization& k) { return k.key == key; });
  if (kept != linearizations_.end()) {
    linearizations_.splice(linearizations_.begin(), linearizations_, kept);
    return linearizations_.front().linearization.get();
  }

  // Make room first: the activations of two linearizations may not fit into memory.
  if (linearizations_.size() >= max_linearizations_) linearizations_.pop_back();
  SharedVector<Scalar> theta = PointOf(evaluation.request.product().point(), evaluation);
  absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> made = model_.Linearize(theta.map(), examples);
  if (!made.ok()) return made.status();
  std::set<std::string> vectors;
  AddNames(evaluation.request.product().point(), vectors);
  linearizations_.push_front({std::move(key), std::move(vectors), std::move(theta), *std::move(made)});
  return linearizations_.front().linearization.get();
}

template <typename Scalar>
uint64_t Evaluator<Scalar>::Attach(SharedVector<Scalar> vector, Evaluated<Scalar>& result) {
  result.vectors.emplace_back(next_transfer_, std::move(vector));
  return next_transfer_++;
}

template <typename Scalar>
void Evaluator<Scalar>::Release(const std::string& vector) {
  linearizations_.remove_if([&](const KeptLinearization& k) { return k.vectors.count(vector) > 0; });
}

template class Evaluator<float>;
template class Evaluator<double>;

}  // namespace hfopt::client
