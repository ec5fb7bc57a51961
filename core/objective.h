#ifndef HFOPT_CORE_OBJECTIVE_H_
#define HFOPT_CORE_OBJECTIVE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/sample.h"
#include "core/vector.h"

namespace hfopt {

// The Gauss-Newton matrix G(theta; sample), n x n, symmetric positive semidefinite, usable only as a product. Holding it keeps theta
// and whatever the model computed there resident; destroying it releases them.
template <typename Scalar>
class CurvatureProduct {
 public:
  virtual ~CurvatureProduct() = default;

  // product = G v, the mean over the sample. v has n elements and is finite; product is resized. May block.
  virtual absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) = 0;
};

// The point theta + step * direction. A null direction is theta itself.
template <typename Scalar>
struct Trial {
  const Vector<Scalar>* direction = nullptr;
  double step = 1;
};

struct LossAnswer {
  double loss = 0;    // mean over the sample; NaN or infinite where the model overflows
  double weight = 0;  // examples or frames of the sample
  std::map<std::string, double> metrics;  // means of the model's own named sums
};

// What the gradient call is asked beyond the gradient.
struct GradientExtras {
  int sub_batches = 0;         // for the noise of the gradient; 0: not asked
  bool second_moment = false;  // for the diagonal preconditioner
};

template <typename Scalar>
struct GradientAnswer {
  double loss = 0;    // mean over the sample
  double weight = 0;  // examples or frames of the sample
  Vector<Scalar> gradient;
  // Estimate of the standard deviation of `gradient` as a sample mean, |.| over all elements; 0 unless sub-batches were asked for.
  double noise = 0;
  // Mean of the squared per-example gradients; empty unless asked for.
  Vector<Scalar> second_moment;
};

// The function to minimise, a mean over examples, and its derivatives. Each answer is a pure function of the arguments. A call may block
// for as long as its answer takes; a Status means that the answer cannot be had, and ends the iteration with the state unchanged.
template <typename Scalar>
class Objective {
 public:
  virtual ~Objective() = default;

  virtual int64_t num_parameters() const = 0;
  virtual const DataLayout& layout() const = 0;
  // Whether Gradient can be asked for second moments.
  virtual bool has_second_moment() const { return false; }

  // Losses at several points in one exchange, in the order of `trials`.
  virtual absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta,
                                                         absl::Span<const Trial<Scalar>> trials,
                                                         const Sample& sample) = 0;

  virtual absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                          const GradientExtras& extras) = 0;

  // The product stays valid after `theta` is gone, and must not outlive the objective.
  virtual absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                                  const Sample& sample) = 0;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_OBJECTIVE_H_
