// self_signalling_worker ADDRESS WORKER_ID SIGNAL PRODUCT: a worker for the digits task that sends SIGNAL (its number) to itself in the middle
// of the PRODUCT-th Gauss-Newton product, so that a test hits a running request every time, however fast or loaded the machine is.

#include <signal.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

#include "client/cpp/model_worker.h"
#include "client/models/model_factory.h"

namespace hc = hfopt::client;

namespace {

using Scalar = float;

class SignallingModel : public hc::Model<Scalar> {
 public:
  SignallingModel(std::unique_ptr<hc::Model<Scalar>> model, int signal, int product)
      : model_(std::move(model)), signal_(signal), products_left_(product) {}

  int64_t num_parameters() const override { return model_->num_parameters(); }
  int64_t num_examples(hc::DataSet data) const override { return model_->num_examples(data); }
  std::string signature() const override { return model_->signature(); }
  absl::StatusOr<hc::LossSum> Loss(const hc::ConstVectorRef<Scalar>& theta, const hc::Examples& examples) override {
    return model_->Loss(theta, examples);
  }
  absl::StatusOr<hc::LossSum> Gradient(const hc::ConstVectorRef<Scalar>& theta, const hc::Examples& examples,
                                       hc::VectorRef<Scalar> gradient) override {
    return model_->Gradient(theta, examples, gradient);
  }
  absl::StatusOr<std::unique_ptr<hc::Linearization<Scalar>>> Linearize(const hc::ConstVectorRef<Scalar>& theta,
                                                                       const hc::Examples& examples) override {
    auto linearization = model_->Linearize(theta, examples);
    if (!linearization.ok()) return linearization.status();
    return std::make_unique<SignallingLinearization>(*this, *std::move(linearization));
  }
  bool has_initial_parameters() const override { return model_->has_initial_parameters(); }
  absl::StatusOr<hc::Vector<Scalar>> InitialParameters(uint64_t seed) override {
    return model_->InitialParameters(seed);
  }

 private:
  struct SignallingLinearization : hc::Linearization<Scalar> {
    SignallingLinearization(SignallingModel& model, std::unique_ptr<hc::Linearization<Scalar>> linearization)
        : model(model), linearization(std::move(linearization)) {}
    absl::Status GaussNewtonProduct(const hc::ConstVectorRef<Scalar>& v, hc::VectorRef<Scalar> product) override {
      if (--model.products_left_ == 0) raise(model.signal_);
      return linearization->GaussNewtonProduct(v, product);
    }
    double weight() const override { return linearization->weight(); }

    SignallingModel& model;
    std::unique_ptr<hc::Linearization<Scalar>> linearization;
  };

  const std::unique_ptr<hc::Model<Scalar>> model_;
  const int signal_;
  int products_left_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  auto digits = hfopt::models::MakeModel<Scalar>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-40-10"});
  if (!digits.ok()) {
    std::cerr << digits.status() << "\n";
    return 1;
  }
  SignallingModel model(*std::move(digits), std::atoi(argv[3]), std::atoi(argv[4]));
  hc::ModelWorker<Scalar> worker(model, {.channel = hc::MakeChannel(argv[1]), .run_id = "r", .worker_id = argv[2]});
  const absl::StatusOr<hc::Finished> finished = worker.Run();
  if (!finished.ok()) std::cerr << finished.status() << "\n";
  return finished.ok() ? 0 : 1;
}
