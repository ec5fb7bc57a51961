#ifndef HFOPT_TESTS_CONFORMANCE_FAULTY_MODEL_H_
#define HFOPT_TESTS_CONFORMANCE_FAULTY_MODEL_H_

#include <functional>
#include <memory>
#include <random>
#include <utility>

#include "client/cpp/model.h"

namespace hfopt::conformance {

using client::Examples;
using client::IndexRange;
using client::LossSum;
using Theta = client::ConstVectorRef<double>;
using Result = client::VectorRef<double>;

// What is wrong with a model. Each hook may change a right answer, or what is asked; those that are not set change
// nothing.
struct Mistake {
  std::function<void(Examples&)> examples;
  std::function<Examples(const Examples&)> second_moment_examples;
  std::function<client::Vector<double>(const Theta&)> theta, product_theta;
  std::function<void(LossSum&)> loss;
  std::function<void(LossSum&)> gradient_loss;
  // The gradient, or a product, with all that a mistake may need.
  std::function<void(const Theta& theta, const LossSum& loss, Result gradient)> gradient;
  std::function<void(client::Model<double>& model, const Theta& theta, const Examples& examples, const Theta& v,
                     Result product)>
      product;
  std::function<void(Result second_moment)> second_moment;
  std::function<void(client::Vector<double>&)> initial_parameters;
  std::function<double(double)> product_weight;
};

// A right model with a mistake.
class FaultyModel final : public client::Model<double> {
 public:
  FaultyModel(std::unique_ptr<client::Model<double>> right, Mistake mistake)
      : right_(std::move(right)), mistake_(std::move(mistake)) {}

  int64_t num_parameters() const override { return right_->num_parameters(); }
  int64_t num_examples(client::DataSet data) const override { return right_->num_examples(data); }
  std::string signature() const override { return right_->signature(); }
  bool has_second_moment() const override { return true; }
  bool has_initial_parameters() const override { return true; }

  absl::StatusOr<LossSum> Loss(const Theta& theta, const Examples& examples) override {
    absl::StatusOr<LossSum> sum = right_->Loss(Moved(theta), Changed(examples));
    if (sum.ok() && mistake_.loss) mistake_.loss(*sum);
    return sum;
  }
  absl::StatusOr<LossSum> Gradient(const Theta& theta, const Examples& examples, Result gradient) override {
    absl::StatusOr<LossSum> sum = right_->Gradient(Moved(theta), Changed(examples), gradient);
    if (!sum.ok()) return sum;
    if (mistake_.gradient) mistake_.gradient(theta, *sum, gradient);
    if (mistake_.loss) mistake_.loss(*sum);
    if (mistake_.gradient_loss) mistake_.gradient_loss(*sum);
    return sum;
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<double>>> Linearize(const Theta& theta,
                                                                           const Examples& examples) override {
    const client::Vector<double> point = mistake_.product_theta ? mistake_.product_theta(theta) : Moved(theta);
    auto right = right_->Linearize(point, Changed(examples));
    if (!right.ok()) return right.status();
    return std::make_unique<Faulty>(*this, point, Changed(examples), *std::move(right));
  }
  absl::Status SecondMoment(const Theta& theta, const Examples& examples, Result second_moment) override {
    const absl::Status status = right_->SecondMoment(Moved(theta), Changed(examples), second_moment);
    if (status.ok() && mistake_.second_moment) mistake_.second_moment(second_moment);
    return status;
  }
  absl::StatusOr<client::Vector<double>> InitialParameters(uint64_t seed) override {
    absl::StatusOr<client::Vector<double>> theta = right_->InitialParameters(seed);
    if (theta.ok() && mistake_.initial_parameters) mistake_.initial_parameters(*theta);
    return theta;
  }

 private:
  class Faulty final : public client::Linearization<double> {
   public:
    Faulty(FaultyModel& model, client::Vector<double> theta, Examples examples,
           std::unique_ptr<client::Linearization<double>> right)
        : model_(model), theta_(std::move(theta)), examples_(std::move(examples)), right_(std::move(right)) {}
    absl::Status GaussNewtonProduct(const Theta& v, Result product) override {
      const absl::Status status = right_->GaussNewtonProduct(v, product);
      if (status.ok() && model_.mistake_.product)
        model_.mistake_.product(*model_.right_, theta_, examples_, v, product);
      return status;
    }
    double weight() const override {
      return model_.mistake_.product_weight ? model_.mistake_.product_weight(right_->weight()) : right_->weight();
    }

   private:
    FaultyModel& model_;
    const client::Vector<double> theta_;
    const Examples examples_;
    const std::unique_ptr<client::Linearization<double>> right_;
  };

  client::Vector<double> Moved(const Theta& theta) const {
    return mistake_.theta ? mistake_.theta(theta) : client::Vector<double>(theta);
  }
  Examples Changed(const Examples& examples) const {
    Examples changed = examples;
    if (mistake_.examples) mistake_.examples(changed);
    return changed;
  }

  const std::unique_ptr<client::Model<double>> right_;
  const Mistake mistake_;
};

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_FAULTY_MODEL_H_
