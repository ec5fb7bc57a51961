// Workers that answer the same request differently: found, named, and nothing of it used.

#include <memory>
#include <string>
#include <utility>

#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/local_objective.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::unique_ptr<client::Model<float>> MakeModel() {
  return models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-10"}).value();
}

// Adds something else to element 7 of every product, or gradient: dropout that was left on.
class Forgetful : public client::Model<float> {
 public:
  explicit Forgetful(bool in_gradients) : in_gradients_(in_gradients) {}

  int64_t num_parameters() const override { return model_->num_parameters(); }
  int64_t num_examples(client::DataSet data) const override { return model_->num_examples(data); }
  std::string signature() const override { return model_->signature(); }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>& theta, const client::Examples& examples) override {
    return model_->Loss(theta, examples);
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                                           client::VectorRef<float> gradient) override {
    auto loss = model_->Gradient(theta, examples, gradient);
    if (in_gradients_) gradient[7] += static_cast<float>(++answers_);
    return loss;
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>& theta,
                                                                          const client::Examples& examples) override {
    auto linearization = model_->Linearize(theta, examples);
    if (!linearization.ok() || in_gradients_) return linearization;
    return std::make_unique<ForgetfulLinearization>(*this, *std::move(linearization));
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<float>> InitialParameters(uint64_t seed) override { return model_->InitialParameters(seed); }

 private:
  struct ForgetfulLinearization : client::Linearization<float> {
    ForgetfulLinearization(Forgetful& model, std::unique_ptr<client::Linearization<float>> exact)
        : model(model), exact(std::move(exact)) {}
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
      const absl::Status status = exact->GaussNewtonProduct(v, product);
      product[7] += static_cast<float>(++model.answers_);
      return status;
    }
    double weight() const override { return exact->weight(); }

    Forgetful& model;
    std::unique_ptr<client::Linearization<float>> exact;
  };

  const std::unique_ptr<client::Model<float>> model_ = MakeModel();
  const bool in_gradients_;
  int answers_ = 0;
};

class DeterminismTest : public ::testing::Test {
 protected:
  v1::RunOptions Options(uint32_t repeat_every) {
    v1::RunOptions options;
    options.set_shards(2);
    options.set_repeat_every(repeat_every);
    options.mutable_optimizer()->mutable_samples()->set_initial_gradient_examples(200);
    options.mutable_optimizer()->mutable_stop()->set_max_iterations(3);
    return options;
  }
  v1::Run Train(const std::string& id, const v1::RunOptions& options, std::unique_ptr<client::Model<float>> model) {
    EXPECT_TRUE(client_.Create(id, options).ok());
    const WorkerThread<float> worker(std::move(model), server_.address(), id, "w-2");
    EXPECT_TRUE(client_.Start(id).ok());
    auto run = client_.Watch(id, 0, [](const v1::WatchRunResponse&) { return true; });
    EXPECT_TRUE(run.ok()) << run.status();
    return run.value_or(v1::Run());
  }

  TestServer server_;
  client::RunClient client_ = server_.Client();
};

TEST_F(DeterminismTest, AProductThatDiffersIsNamed) {
  const v1::Run run = Train("r", Options(5), std::make_unique<Forgetful>(false));
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  // The gradient is the first evaluation; the fifth is asked of shard 1 twice.
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("runs/r: shard 1: worker w-2 was asked twice for the same Gauss-Newton product"),
                                        HasSubstr("1 of 650 elements, the first at index 7, "), HasSubstr("dropout off")));
  EXPECT_EQ(run.last_iteration().iteration(), 0u) << "it entered a step";
}

TEST_F(DeterminismTest, AGradientThatDiffersIsNamed) {
  const v1::Run run = Train("r", Options(1), std::make_unique<Forgetful>(true));
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(),
              AllOf(HasSubstr("worker w-2 was asked twice for the same gradient"), HasSubstr("1 of 650 elements, the first at index 7, ")));
}

TEST_F(DeterminismTest, AskingTwiceChangesNothingElse) {
  ASSERT_EQ(Train("twice", Options(2), MakeModel()).state(), v1::RUN_STATE_ENDED);
  const auto model = MakeModel();
  LocalObjective<float> objective(*model, 2);
  const auto local = RunLocally<float>(objective, *model->InitialParameters(0), Options(2).optimizer());
  EXPECT_EQ(client_.DownloadLast<float>("twice")->theta, local.theta);
  EXPECT_EQ(client_.Get("twice")->last_iteration().cost().products(), static_cast<uint64_t>(local.cost.products)) << "a repetition was booked";
}

TEST_F(DeterminismTest, IsOnByDefaultAndCanBeSwitchedOff) {
  v1::RunOptions options = Options(0);
  EXPECT_EQ(Train("never", options, std::make_unique<Forgetful>(false)).state(), v1::RUN_STATE_ENDED);
  options.clear_repeat_every();
  EXPECT_EQ(client_.Create("default", options)->options().repeat_every(), 100u);
}

}  // namespace
}  // namespace hfopt::testing
