// Workers whose answers contradict each other: found, named, and nothing of it used.

#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>

#include "client/models/model_factory.h"
#include "core/derivative_check.h"
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

// The model with mistakes in its answers.
class WrongModel : public client::Model<float> {
 public:
  std::function<void(client::VectorRef<float> gradient, const client::LossSum& loss)> on_gradient;
  std::function<void(client::VectorRef<float> product, double weight)> on_product;
  std::function<void(client::LossSum& loss)> on_loss;

  int64_t num_parameters() const override { return model_->num_parameters(); }
  int64_t num_examples(client::DataSet data) const override { return model_->num_examples(data); }
  std::string signature() const override { return model_->signature(); }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>& theta, const client::Examples& examples) override {
    auto loss = model_->Loss(theta, examples);
    if (loss.ok() && on_loss) on_loss(*loss);
    return loss;
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                                           client::VectorRef<float> gradient) override {
    auto loss = model_->Gradient(theta, examples, gradient);
    if (loss.ok() && on_gradient) on_gradient(gradient, *loss);
    if (loss.ok() && on_loss) on_loss(*loss);
    return loss;
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>& theta,
                                                                          const client::Examples& examples) override {
    auto linearization = model_->Linearize(theta, examples);
    if (!linearization.ok() || !on_product) return linearization;
    return std::make_unique<WrongLinearization>(*this, *std::move(linearization));
  }
  bool has_second_moment() const override { return model_->has_second_moment(); }
  absl::Status SecondMoment(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                            client::VectorRef<float> second_moment) override {
    return model_->SecondMoment(theta, examples, second_moment);
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<float>> InitialParameters(uint64_t seed) override { return model_->InitialParameters(seed); }

 private:
  struct WrongLinearization : client::Linearization<float> {
    WrongLinearization(WrongModel& model, std::unique_ptr<client::Linearization<float>> exact) : model(model), exact(std::move(exact)) {}
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
      const absl::Status status = exact->GaussNewtonProduct(v, product);
      model.on_product(product, exact->weight());
      return status;
    }
    double weight() const override { return exact->weight(); }

    WrongModel& model;
    std::unique_ptr<client::Linearization<float>> exact;
  };

  const std::unique_ptr<client::Model<float>> model_ = MakeModel();
};

// Adds something else to element 7 of every product, or gradient: dropout that was left on.
std::unique_ptr<WrongModel> Forgetful(bool in_gradients) {
  auto model = std::make_unique<WrongModel>();
  if (in_gradients) {
    model->on_gradient = [answers = 0](auto gradient, const auto&) mutable { gradient[7] += 1e-5f * static_cast<float>(++answers); };
  } else {
    model->on_product = [answers = 0](auto product, double) mutable { product[7] += 1e-5f * static_cast<float>(++answers); };
  }
  return model;
}

class WrongWorkerTest : public ::testing::Test {
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

TEST_F(WrongWorkerTest, AProductThatDiffersIsNamed) {
  const v1::Run run = Train("r", Options(5), Forgetful(false));
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  // The gradient is the first evaluation; the fifth is asked of shard 1 twice.
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("runs/r: shard 1: worker w-2 was asked twice for the same Gauss-Newton product"),
                                        HasSubstr("1 of 650 elements, the first at index 7, "), HasSubstr("dropout off")));
  EXPECT_EQ(run.last_iteration().iteration(), 0u) << "it entered a step";
}

TEST_F(WrongWorkerTest, AGradientThatDiffersIsNamed) {
  const v1::Run run = Train("r", Options(1), Forgetful(true));
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(),
              AllOf(HasSubstr("worker w-2 was asked twice for the same gradient"), HasSubstr("1 of 650 elements, the first at index 7, ")));
}

TEST_F(WrongWorkerTest, AskingTwiceChangesNothingElse) {
  ASSERT_EQ(Train("twice", Options(2), MakeModel()).state(), v1::RUN_STATE_ENDED);
  const auto model = MakeModel();
  LocalObjective<float> objective(*model, 2);
  const auto local = RunLocally<float>(objective, *model->InitialParameters(0), Options(2).optimizer());
  EXPECT_EQ(client_.DownloadLast<float>("twice")->theta, local.theta);
  EXPECT_EQ(client_.Get("twice")->last_iteration().cost().products(), static_cast<uint64_t>(local.cost.products)) << "a repetition was booked";
}

TEST_F(WrongWorkerTest, IsOnByDefaultAndCanBeSwitchedOff) {
  v1::RunOptions options = Options(0);
  EXPECT_EQ(Train("never", options, Forgetful(false)).state(), v1::RUN_STATE_ENDED);
  options.clear_repeat_every();
  EXPECT_EQ(client_.Create("default", options)->options().repeat_every(), 100u);
}

struct Case {
  std::string name;
  std::function<void(WrongModel&)> mistake;
  std::string finding;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

class WrongAnswersTest : public WrongWorkerTest, public ::testing::WithParamInterface<Case> {};

TEST_P(WrongAnswersTest, AreNamedBeforeTheFirstStep) {
  auto model = std::make_unique<WrongModel>();
  GetParam().mistake(*model);
  v1::RunOptions options = Options(100);
  const v1::Run run = Train("r", options, std::move(model));
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("runs/r: shard 0: the answers of worker w-2 contradict each other at 4 examples from 0 on: "),
                                        HasSubstr(GetParam().finding), HasSubstr("nothing of them was used")));
  EXPECT_EQ(run.last_iteration().iteration(), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    All, WrongAnswersTest,
    ::testing::Values(
        Case{"GradientOfTheWrongSign", [](WrongModel& m) { m.on_gradient = [](auto g, const auto&) { g = -g; }; }, "|g| against central differences"},
        Case{"GradientTwiceAsLarge", [](WrongModel& m) { m.on_gradient = [](auto g, const auto&) { g *= 2; }; }, "|g| against central differences"},
        Case{"GradientThatIsAMean",
             [](WrongModel& m) { m.on_gradient = [](auto g, const auto& loss) { g /= static_cast<float>(loss.weight); }; },
             "|g| against central differences"},
        Case{"EverythingIsAMean",
             [](WrongModel& m) {
               m.on_gradient = [](auto g, const auto& loss) { g /= static_cast<float>(loss.weight); };
               m.on_loss = [](auto& loss) { loss.loss /= loss.weight; };
               m.on_product = [](auto product, double weight) { product /= static_cast<float>(weight); };
             },
             "means in the place of sums"},
        Case{"ProductOfTheWrongSign", [](WrongModel& m) { m.on_product = [](auto product, double) { product = -product; }; }, "-g'Gg over |g||Gg|"},
        Case{"ProductThatIsAMean",
             [](WrongModel& m) { m.on_product = [](auto product, double weight) { product /= static_cast<float>(weight); }; },
             "means in the place of sums"}),
    [](const auto& info) { return info.param.name; });

// One that joins in the middle is asked too.
TEST_F(WrongWorkerTest, AlsoALaterWorkerIsChecked) {
  v1::RunOptions options = Options(1'000'000);
  options.mutable_optimizer()->mutable_stop()->set_max_iterations(1'000'000);
  ASSERT_TRUE(client_.Create("r", options).ok());
  const WorkerThread<float> right(MakeModel(), server_.address(), "r", "right");
  ASSERT_TRUE(client_.Start("r").ok());
  auto model = std::make_unique<WrongModel>();
  model->on_gradient = [](auto g, const auto&) { g = -g; };
  std::optional<WorkerThread<float>> wrong;
  const auto run = client_.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
    if (event.has_iteration() && !wrong.has_value()) wrong.emplace(std::move(model), server_.address(), "r", "wrong");
    return true;
  });
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run->state_detail(), HasSubstr("the answers of worker wrong contradict each other"));
}

// Every reference model, where its training begins and a little later, in every shard.
TEST(SpotCheckOfModels, RaisesNoAlarm) {
  const auto check = [&]<typename Scalar>(const models::ModelSpec& spec, Scalar) {
    const auto model = models::MakeModel<Scalar>(spec);
    ASSERT_TRUE(model.ok()) << model.status();
    LocalObjective<Scalar> objective(**model, 3);
    Vector<Scalar> theta = *(*model)->InitialParameters(1);
    for (int iterations = 0; iterations < 2; ++iterations) {
      for (int shard = 0; shard < 3; ++shard) {
        Sample sample{.windows = std::vector<Window>(3)};
        sample.windows[shard] = {.begin = 1, .count = 4};
        const auto results = SpotCheckDerivatives<Scalar>(objective, theta, sample);
        ASSERT_TRUE(results.ok()) << results.status();
        for (const DerivativeCheckResult& result : *results) {
          EXPECT_TRUE(result.passed) << spec.task << " after " << iterations << ", shard " << shard << ": " << result.meaning << ": " << result.error;
        }
      }
      v1::OptimizerOptions options;
      options.mutable_stop()->set_max_iterations(3);
      theta = RunLocally<Scalar>(objective, theta, options).theta;
    }
  };
  check({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10"}, float{});
  check({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-30-10", .activation = "relu"}, float{});
  check({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10", .l2 = 1e-2}, double{});
  check({.task = "pinn-poisson", .layers = "2-6-6-1"}, double{});
  check({.task = "pinn-convection", .layers = "2-6-6-1"}, double{});
  check({.task = "inverse", .grid = 8}, double{});
}

}  // namespace
}  // namespace hfopt::testing
