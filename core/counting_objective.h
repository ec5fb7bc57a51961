#ifndef HFOPT_CORE_COUNTING_OBJECTIVE_H_
#define HFOPT_CORE_COUNTING_OBJECTIVE_H_

#include <memory>
#include <utility>
#include <vector>

#include "core/cost.h"
#include "core/objective.h"
#include "core/status_macros.h"

namespace hfopt {

// Books every evaluation of another objective that was answered.
template <typename Scalar>
class CountingObjective : public Objective<Scalar> {
 public:
  // Both must outlive this.
  CountingObjective(Objective<Scalar>& objective, Cost& cost) : objective_(objective), cost_(cost) {}

  int64_t num_parameters() const override { return objective_.num_parameters(); }
  const DataLayout& layout() const override { return objective_.layout(); }
  bool has_second_moment() const override { return objective_.has_second_moment(); }

  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                 const Sample& sample) override {
    auto answers = objective_.Losses(theta, trials, sample);
    if (answers.ok()) {
      ++cost_.exchanges;
      cost_.losses += trials.size();
      cost_.loss_examples += trials.size() * sample.size();
    }
    return answers;
  }

  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                  const GradientExtras& extras) override {
    auto answer = objective_.Gradient(theta, sample, extras);
    if (answer.ok()) {
      ++cost_.exchanges;
      ++cost_.gradients;
      cost_.gradient_examples += sample.size();
    }
    return answer;
  }

  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta,
                                                                          const Sample& sample) override {
    HFOPT_ASSIGN_OR_RETURN(auto product, objective_.GaussNewtonAt(theta, sample));
    ++cost_.linearizations;
    cost_.linearization_examples += sample.size();
    return std::make_unique<CountingProduct>(std::move(product), sample.size(), cost_);
  }

 private:
  class CountingProduct : public CurvatureProduct<Scalar> {
   public:
    CountingProduct(std::unique_ptr<CurvatureProduct<Scalar>> product, int64_t examples, Cost& cost)
        : product_(std::move(product)), examples_(examples), cost_(cost) {}

    absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
      HFOPT_RETURN_IF_ERROR(product_->Apply(v, product));
      ++cost_.exchanges;
      ++cost_.products;
      cost_.product_examples += examples_;
      return absl::OkStatus();
    }

   private:
    std::unique_ptr<CurvatureProduct<Scalar>> product_;
    int64_t examples_;
    Cost& cost_;
  };

  Objective<Scalar>& objective_;
  Cost& cost_;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_COUNTING_OBJECTIVE_H_
