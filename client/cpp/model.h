#ifndef HFOPT_CLIENT_CPP_MODEL_H_
#define HFOPT_CLIENT_CPP_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hfopt::client {

// A dense column of n numbers; Scalar is float or double.
template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

// A column to read and one to write, wherever they lie: a Vector is passed as it is; what came from the server is read where it was
// received, and an answer is written where it is sent from. Their memory is the caller's, and valid during the call. When the server has
// given up the request meanwhile, the numbers may change under it: its answer is dropped, but what a model keeps beyond a call it has to
// compute from a copy of its own.
template <typename Scalar>
using ConstVectorRef = Eigen::Ref<const Vector<Scalar>>;
template <typename Scalar>
using VectorRef = Eigen::Ref<Vector<Scalar>>;

enum class DataSet { kTraining, kHeldOut };

// Examples begin .. end - 1 of a data set, in the model's own fixed, shuffled order.
struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// The examples of one request: one range, or two where a window wraps round its shard, in this order.
struct Examples {
  DataSet data = DataSet::kTraining;
  std::vector<IndexRange> ranges;

  int64_t size() const {
    int64_t n = 0;
    for (const IndexRange& r : ranges) n += r.end - r.begin;
    return n;
  }
  // The examples at positions [begin, end) of this list. 0 <= begin <= end <= size().
  Examples Part(int64_t begin, int64_t end) const;
};

// Sums over examples, never means.
struct LossSum {
  double loss = 0;
  double weight = 0;                      // examples or frames: a function of the examples alone
  std::map<std::string, double> metrics;  // named sums, for example {"frame_errors", 1234}
};

// A model at one point on fixed examples, with whatever is worth keeping for many products (activations, factors).
template <typename Scalar>
class Linearization {
 public:
  virtual ~Linearization() = default;

  // product = sum over the examples of J'HJ v, with J the Jacobian of the model's outputs and H the (positive semidefinite) Hessian
  // of the loss with respect to them. v and product have n elements; product is overwritten.
  virtual absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) = 0;
  virtual double weight() const = 0;
};

// What a user implements to have a model trained. All functions are pure: the same arguments give the same bits, in any order, on
// any worker (no dropout, no running averages). They are called from one thread. A Status tells that the answer cannot be had; a non-finite
// loss is an answer. A regulariser r(theta) belongs in the sums as weight * r, its gradient as weight * grad r, its curvature
// likewise.
template <typename Scalar>
class Model {
 public:
  virtual ~Model() = default;

  virtual int64_t num_parameters() const = 0;  // n
  virtual int64_t num_examples(DataSet data) const = 0;
  // What the model is, for people and for the check that all workers of a run agree, for example "mlp 440-256-256-102".
  virtual std::string signature() const = 0;

  virtual absl::StatusOr<LossSum> Loss(const ConstVectorRef<Scalar>& theta, const Examples& examples) = 0;

  // gradient = sum of per-example gradients; n elements, to be overwritten. Answers the loss as Loss does (metrics may be left out).
  virtual absl::StatusOr<LossSum> Gradient(const ConstVectorRef<Scalar>& theta, const Examples& examples,
                                           VectorRef<Scalar> gradient) = 0;

  // The numbers of theta are valid until the linearization has gone, with the same exception.
  virtual absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> Linearize(const ConstVectorRef<Scalar>& theta,
                                                                           const Examples& examples) = 0;

  // Optional: second_moment = sum of squared per-example gradients, element-wise; n elements, to be overwritten.
  virtual bool has_second_moment() const { return false; }
  virtual absl::Status SecondMoment(const ConstVectorRef<Scalar>& theta, const Examples& examples,
                                    VectorRef<Scalar> second_moment);

  // Optional: starting values, a pure function of the seed.
  virtual bool has_initial_parameters() const { return false; }
  virtual absl::StatusOr<Vector<Scalar>> InitialParameters(uint64_t seed);
};

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_MODEL_H_
