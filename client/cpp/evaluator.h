#ifndef HFOPT_CLIENT_CPP_EVALUATOR_H_
#define HFOPT_CLIENT_CPP_EVALUATOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/model.h"
#include "hfopt/v1/evaluation.pb.h"
#include "proto/wire/shared_vector.h"

namespace hfopt::client {

using wire::SharedVector;

// A request together with the vectors it names, so that nothing that happens meanwhile can change its answer.
template <typename Scalar>
struct Evaluation {
  v1::EvaluationRequest request;
  std::map<std::string, SharedVector<Scalar>> vectors;  // by name; each has n elements
};

// An answer together with the vectors it names by their transfer, to be sent before it.
template <typename Scalar>
struct Evaluated {
  v1::Answer answer;
  std::vector<std::pair<uint64_t, SharedVector<Scalar>>> vectors;
  bool bfloat16 = false;  // the vectors have been rounded to it
};

// The names of all vectors that a request uses.
std::set<std::string> VectorNames(const v1::EvaluationRequest& request);

// Answers requests by asking a model. Knows the messages, not the conversation. To be used from one thread, the only
// one that calls the model.
template <typename Scalar>
class Evaluator {
 public:
  // The memory for a vector of an answer, of n elements; empty: memory of the evaluator's.
  using NewVector = std::function<SharedVector<Scalar>()>;

  // The model must outlive the evaluator. `shards` are those whose data the model has; empty: any. At most
  // `max_linearizations` are kept; the least recently used one goes first.
  Evaluator(Model<Scalar>& model, std::set<uint32_t> shards, size_t max_linearizations, NewVector new_vector = {});

  // Blocks while the model computes. Whatever goes wrong in the model or with the request, exceptions included, becomes
  // a Failure answer. Transfers are numbered on and on, so they are unique in all sessions.
  Evaluated<Scalar> Evaluate(const Evaluation<Scalar>& evaluation);

  // Forgets what was computed at points that use this vector.
  void Release(const std::string& vector);

 private:
  struct KeptLinearization {
    std::string key;  // of point and slice
    std::set<std::string> vectors;
    SharedVector<Scalar> theta;  // models may keep a reference to its numbers
    std::unique_ptr<Linearization<Scalar>> linearization;
  };

  absl::Status Answer(const Evaluation<Scalar>& evaluation, Evaluated<Scalar>& result);
  absl::Status AnswerLosses(const Evaluation<Scalar>& evaluation, const Examples& examples, Evaluated<Scalar>& result);
  absl::Status AnswerGradient(const Evaluation<Scalar>& evaluation, const Examples& examples,
                              Evaluated<Scalar>& result);
  absl::Status AnswerProduct(const Evaluation<Scalar>& evaluation, const Examples& examples, Evaluated<Scalar>& result);
  absl::Status AnswerInitialParameters(const Evaluation<Scalar>& evaluation, Evaluated<Scalar>& result);

  absl::StatusOr<Examples> ExamplesOfRequest(const v1::EvaluationRequest& request) const;
  SharedVector<Scalar> PointOf(const v1::Point& point, const Evaluation<Scalar>& evaluation);
  absl::StatusOr<Linearization<Scalar>*> LinearizationAt(const Evaluation<Scalar>& evaluation,
                                                         const Examples& examples);
  // Adds a vector to the answer and returns its transfer.
  uint64_t Attach(SharedVector<Scalar> vector, Evaluated<Scalar>& result);

  Model<Scalar>& model_;
  const std::set<uint32_t> shards_;
  const size_t max_linearizations_;
  std::list<KeptLinearization> linearizations_;  // most recently used first
  wire::BufferPool buffers_;
  const NewVector new_vector_;
  uint64_t next_transfer_ = 1;
};

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_EVALUATOR_H_
