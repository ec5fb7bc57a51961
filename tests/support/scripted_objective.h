#ifndef HFOPT_TESTS_SUPPORT_SCRIPTED_OBJECTIVE_H_
#define HFOPT_TESTS_SUPPORT_SCRIPTED_OBJECTIVE_H_

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/objective.h"
#include "core/status_macros.h"

namespace hfopt::support {

enum class CallKind { kLosses, kGradient, kLinearization, kProduct };

struct Call {
  CallKind kind;
  Sample sample;  // of a product: the one it was made for
  int trials = 0;
  GradientExtras extras;
};

// Another objective with every call written down, failures at will, and answers changed on their way.
template <typename Scalar>
class ScriptedObjective : public Objective<Scalar> {
 public:
  // `objective` must outlive this.
  explicit ScriptedObjective(Objective<Scalar>& objective) : objective_(objective) {}

  std::vector<Call> calls;
  int fails_at = -1;  // index in `calls` of the call that fails
  absl::Status failure = absl::UnavailableError("scripted failure");
  int linearizations_alive = 0;

  std::function<void(CallKind, Sample&)> on_sample;
  std::function<void(absl::Span<const Trial<Scalar>>, std::vector<LossAnswer>&)> on_losses;
  std::function<void(GradientAnswer<Scalar>&)> on_gradient;
  std::function<void(const Vector<Scalar>& v, Vector<Scalar>& product)> on_product;

  int Count(CallKind kind) const {
    int count = 0;
    for (const Call& call : calls) count += call.kind == kind ? 1 : 0;
    return count;
  }

  int64_t num_parameters() const override { return objective_.num_parameters(); }
  const DataLayout& layout() const override { return objective_.layout(); }
  bool has_second_moment() const override { return objective_.has_second_moment(); }

  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample& sample) override {
    HFOPT_RETURN_IF_ERROR(Record({CallKind::kLosses, sample, static_cast<int>(trials.size())}));
    HFOPT_ASSIGN_OR_RETURN(auto answers, (objective_.Losses(theta, trials, Changed(CallKind::kLosses, sample))));
    if (on_losses) on_losses(trials, answers);
    return answers;
  }

  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override {
    HFOPT_RETURN_IF_ERROR(Record({CallKind::kGradient, sample, 0, extras}));
    HFOPT_ASSIGN_OR_RETURN(auto answer, (objective_.Gradient(theta, Changed(CallKind::kGradient, sample), extras)));
    if (on_gradient) on_gradient(answer);
    return answer;
  }

  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                          const Sample& sample) override {
    HFOPT_RETURN_IF_ERROR(Record({CallKind::kLinearization, sample}));
    HFOPT_ASSIGN_OR_RETURN(auto product, (objective_.GaussNewtonAt(theta, Changed(CallKind::kLinearization, sample))));
    return std::make_unique<Product>(*this, sample, std::move(product));
  }

 private:
  class Product : public CurvatureProduct<Scalar> {
   public:
    Product(ScriptedObjective& owner, Sample sample, std::unique_ptr<CurvatureProduct<Scalar>> product)
        : owner_(owner), sample_(std::move(sample)), product_(std::move(product)) {
      ++owner_.linearizations_alive;
    }
    ~Product() override { --owner_.linearizations_alive; }

    absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
      HFOPT_RETURN_IF_ERROR(owner_.Record({CallKind::kProduct, sample_}));
      HFOPT_RETURN_IF_ERROR(product_->Apply(v, product));
      if (owner_.on_product) owner_.on_product(v, product);
      return absl::OkStatus();
    }

   private:
    ScriptedObjective& owner_;
    Sample sample_;
    std::unique_ptr<CurvatureProduct<Scalar>> product_;
  };

  absl::Status Record(Call call) {
    const bool fails = static_cast<int>(calls.size()) == fails_at;
    calls.push_back(std::move(call));
    return fails ? failure : absl::OkStatus();
  }

  Sample Changed(CallKind kind, Sample sample) const {
    if (on_sample) on_sample(kind, sample);
    return sample;
  }

  Objective<Scalar>& objective_;
};

}  // namespace hfopt::support

#endif  // HFOPT_TESTS_SUPPORT_SCRIPTED_OBJECTIVE_H_
