// The promise that everything else rests on: a run through gRPC, with any number of workers, has the bits of the optimizer alone.

#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/models/model_factory.h"
#include "core/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/wire/vector_codec.h"
#include "tests/support/local_objective.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

template <typename Scalar>
std::unique_ptr<client::Model<Scalar>> DigitsModel() {
  return models::MakeModel<Scalar>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-20-10", .l2 = 1e-4})
      .value();
}

// Growing samples of everything, so that windows move and wrap, and every kind of evaluation with every extra.
v1::OptimizerOptions SmallAccelerated() {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  options.mutable_samples()->set_initial_gradient_examples(150);
  options.mutable_samples()->set_growth(v1::SampleOptions::GROWTH_GEOMETRIC);
  options.mutable_samples()->set_growth_factor(1.5);
  options.mutable_samples()->set_curvature_fraction(0.3);
  options.mutable_samples()->set_min_curvature_examples(40);
  options.mutable_samples()->set_min_held_out_examples(60);
  options.mutable_stop()->set_max_iterations(6);
  return options;
}

v1::OptimizerOptions GrowingByDamping() {
  v1::OptimizerOptions options = SmallAccelerated();
  options.mutable_samples()->set_growth(v1::SampleOptions::GROWTH_DAMPING);
  return options;
}

v1::OptimizerOptions WithEveryExtra() {
  v1::OptimizerOptions options = SmallAccelerated();
  options.mutable_samples()->set_growth(v1::SampleOptions::GROWTH_VARIANCE);
  options.mutable_conjugate_gradient()->set_noise_factor(0.1);
  options.mutable_preconditioner()->set_lbfgs(v1::PreconditionerOptions::LBFGS_FLEXIBLE);
  options.mutable_preconditioner()->set_memory(4);
  options.mutable_preconditioner()->set_diagonal(v1::PreconditionerOptions::DIAGONAL_SQUARED_GRADIENTS);
  options.mutable_damping()->set_actual_reduction(v1::DampingOptions::ACTUAL_REDUCTION_GRADIENT_SAMPLE_AT_LAST);
  return options;
}

v1::OptimizerOptions Published() {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_PUBLISHED);
  options.mutable_samples()->set_curvature_fraction(0.1);
  options.mutable_stop()->set_max_iterations(4);
  return options;
}

struct Case {
  std::string name;
  int workers;
  v1::OptimizerOptions options;
  int without_shared_memory = 0;  // of the workers
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class RemoteEqualsLocal : public ::testing::TestWithParam<Case> {};

template <typename Scalar>
void ExpectSameBits(const Case& c) {
  constexpr int kShards = 3;
  TestServer server;
  client::RunClient client = server.Client();
  v1::RunOptions options;
  options.set_element_type(wire::ElementTypeOf<Scalar>());
  options.set_shards(kShards);
  options.set_seed(7);
  *options.mutable_optimizer() = c.options;
  ASSERT_TRUE(client.Create("digits", options).ok());
  ASSERT_TRUE(client.Start("digits").ok());
  std::vector<std::unique_ptr<WorkerThread<Scalar>>> workers;
  for (int w = 0; w < c.workers; ++w) {
    workers.push_back(std::make_unique<WorkerThread<Scalar>>(DigitsModel<Scalar>(), server.address(), "digits",
                                                             absl::StrCat("w-", w), std::set<uint32_t>(),
                                                             /*shared_memory=*/w >= c.without_shared_memory));
  }
  std::vector<v1::IterationReport> reports;
  const auto ended = client.Watch("digits", 0, [&](const v1::WatchRunResponse& event) {
    if (event.has_iteration()) reports.push_back(event.iteration());
    return true;
  });
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->state(), v1::RUN_STATE_ENDED) << ended->state_detail();
  EXPECT_EQ(ended->termination().reason(), v1::Termination::REASON_ITERATION_BUDGET);
  const v1::Run run = client.Get("digits").value();
  EXPECT_EQ(run.workers_size(), c.workers);
  for (const v1::WorkerStatus& status : run.workers()) {
    EXPECT_EQ(status.shared_memory(), status.worker_id() >= absl::StrCat("w-", c.without_shared_memory));
  }
  for (auto& worker : workers) {
    ASSERT_TRUE(worker->Join().ok()) << worker->Join().status();
    EXPECT_EQ(worker->Join()->reason, "ITERATION_BUDGET");
  }
  const auto remote = client.DownloadLast<Scalar>("digits");
  ASSERT_TRUE(remote.ok()) << remote.status();

  auto model = DigitsModel<Scalar>();
  LocalObjective<Scalar> objective(*model, kShards);
  const OptimizerState<Scalar> local = RunLocally<Scalar>(objective, *model->InitialParameters(7), c.options);
  EXPECT_EQ(remote->theta, local.theta);
  ASSERT_EQ(reports.size(), static_cast<size_t>(local.iteration));
  EXPECT_EQ(reports.back().held_out_loss(), local.held_out_loss);
  EXPECT_EQ(reports.back().cost().products(), static_cast<uint64_t>(local.cost.products));
  EXPECT_EQ(reports.back().cost().losses(), static_cast<uint64_t>(local.cost.losses));
  EXPECT_LT(local.held_out_loss, reports.front().held_out_loss()) << "nothing was learnt";
}

TEST_P(RemoteEqualsLocal, Float32) { ExpectSameBits<float>(GetParam()); }
TEST_P(RemoteEqualsLocal, Float64) { ExpectSameBits<double>(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Workers, RemoteEqualsLocal,
                         ::testing::Values(Case{"OneWorker", 1, SmallAccelerated()},
                                           Case{"TwoWorkers", 2, SmallAccelerated()},
                                           Case{"ThreeWorkers", 3, SmallAccelerated()},
                                           Case{"GrowingByDamping", 2, GrowingByDamping()},
                                           Case{"EveryExtra", 2, WithEveryExtra()},
                                           Case{"OneOfTwoInChunks", 2, WithEveryExtra(), 1},
                                           Case{"AllInChunks", 2, WithEveryExtra(), 2},
                                           Case{"Published", 2, Published()}),
                         [](const auto& info) { return info.param.name; });

// What a run with products in bfloat16 computes: directions and the products of shards are rounded, and nothing else is.
class RoundedModel : public client::Model<float> {
 public:
  RoundedModel() : model_(DigitsModel<float>()) {}
  std::string signature() const override { return model_->signature(); }
  int64_t num_parameters() const override { return model_->num_parameters(); }
  int64_t num_examples(client::DataSet data) const override { return model_->num_examples(data); }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector<float>> InitialParameters(uint64_t seed) override { return model_->InitialParameters(seed); }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>& theta, const client::Examples& examples) override {
    return model_->Loss(theta, examples);
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                                           client::VectorRef<float> gradient) override {
    return model_->Gradient(theta, examples, gradient);
  }
  bool has_second_moment() const override { return model_->has_second_moment(); }
  absl::Status SecondMoment(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                            client::VectorRef<float> second_moment) override {
    return model_->SecondMoment(theta, examples, second_moment);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>& theta,
                                                                          const client::Examples& examples) override {
    HFOPT_ASSIGN_OR_RETURN(auto exact, model_->Linearize(theta, examples));
    return std::make_unique<Rounded>(std::move(exact));
  }

 private:
  class Rounded : public client::Linearization<float> {
   public:
    explicit Rounded(std::unique_ptr<client::Linearization<float>> exact) : exact_(std::move(exact)) {}
    double weight() const override { return exact_->weight(); }
    absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
      Vector<float> direction = v;
      wire::RoundToBfloat16(direction);
      HFOPT_RETURN_IF_ERROR(exact_->GaussNewtonProduct(direction, product));
      wire::RoundToBfloat16(product);
      return absl::OkStatus();
    }

   private:
    const std::unique_ptr<client::Linearization<float>> exact_;
  };
  const std::unique_ptr<client::Model<float>> model_;
};

// Bytes of vectors that went to and from the workers of a run of SmallAccelerated, whose products are all that differs, and its parameters.
struct Traffic {
  uint64_t sent = 0, received = 0;
  v1::Cost cost;
  Vector<float> theta;
};
Traffic TrafficOf(bool bfloat16_products, bool shared_memory) {
  TestServer server;
  client::RunClient client = server.Client();
  v1::RunOptions options;
  options.set_shards(2);
  options.set_seed(7);
  options.set_bfloat16_products(bfloat16_products);
  options.set_repeat_every(0);
  *options.mutable_optimizer() = SmallAccelerated();
  EXPECT_TRUE(client.Create("digits", options).ok());
  EXPECT_TRUE(client.Start("digits").ok());
  WorkerThread<float> worker(DigitsModel<float>(), server.address(), "digits", "w", {}, shared_memory);
  const auto ended = client.Watch("digits", 0, [](const v1::WatchRunResponse&) { return true; });
  EXPECT_TRUE(ended.ok()) << ended.status();
  const v1::Run run = client.Get("digits").value();
  EXPECT_EQ(run.termination().reason(), v1::Termination::REASON_ITERATION_BUDGET) << run.state_detail();
  return {run.workers(0).bytes_sent(), run.workers(0).bytes_received(), run.last_iteration().cost(), client.DownloadLast<float>("digits").value().theta};
}

TEST(Bfloat16Products, AreRoundedAndNothingElseIsWhicheverWayTheyGo) {
  RoundedModel model;
  LocalObjective<float> objective(model, 2);
  const OptimizerState<float> local = RunLocally<float>(objective, *model.InitialParameters(7), SmallAccelerated());
  const Traffic chunks = TrafficOf(true, false);
  EXPECT_EQ(chunks.theta, local.theta);
  EXPECT_EQ(TrafficOf(true, true).theta, local.theta);

  // The initial parameters, and for each shard gradients of four bytes a number (every other with a second moment) and products of two,
  // where they were four.
  const uint64_t n = model.num_parameters(), shards = 2;
  const auto received = [&](const v1::Cost& cost, uint64_t bytes) { return 4 * n + shards * (4 * n * cost.gradients() * 3 / 2 + bytes * n * cost.products()); };
  EXPECT_GT(chunks.cost.products(), 10);
  EXPECT_EQ(chunks.received, received(chunks.cost, 2));
  const Traffic whole = TrafficOf(false, false);
  EXPECT_EQ(whole.received, received(whole.cost, 4));
  // Directions of CG of two bytes a number; what else is sent, the points of six iterations and at most one iterate for each loss, of four.
  const auto others = [&](const Traffic& traffic, uint64_t bytes) { return traffic.sent - bytes * n * traffic.cost.products(); };
  for (const auto& [traffic, bytes] : {std::pair{&chunks, 2}, {&whole, 4}}) {
    EXPECT_EQ(others(*traffic, bytes) % (4 * n), 0u);
    EXPECT_GT(others(*traffic, bytes), 4 * n * 6);
    EXPECT_LE(others(*traffic, bytes), 4 * n * (6 + traffic->cost.losses()));
  }
  EXPECT_NE(whole.theta, chunks.theta);
}

TEST(Bfloat16Products, AreOfRunsOfFloat32) {
  TestServer server;
  v1::RunOptions options;
  options.set_element_type(v1::ELEMENT_TYPE_FLOAT64);
  options.set_bfloat16_products(true);
  const auto refused = server.Client().Create("digits", options);
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()), ::testing::HasSubstr("bfloat16_products"));
  options.set_element_type(v1::ELEMENT_TYPE_BFLOAT16);
  EXPECT_THAT(std::string(server.Client().Create("digits", options).status().message()), ::testing::HasSubstr("element_type is 3"));
}

// Passes everything on and remembers the vectors that it was asked with.
class DistinctVectors : public Objective<float> {
 public:
  explicit DistinctVectors(Objective<float>& objective) : objective_(objective) {}
  int64_t num_parameters() const override { return objective_.num_parameters(); }
  const DataLayout& layout() const override { return objective_.layout(); }
  bool has_second_moment() const override { return objective_.has_second_moment(); }
  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<float>& theta, absl::Span<const Trial<float>> trials,
                                                 const Sample& sample) override {
    See(theta);
    for (const Trial<float>& trial : trials) {
      if (trial.direction != nullptr) See(*trial.direction);
    }
    return objective_.Losses(theta, trials, sample);
  }
  absl::StatusOr<GradientAnswer<float>> Gradient(const Vector<float>& theta, const Sample& sample,
                                                 const GradientExtras& extras) override {
    See(theta);
    answers_ += extras.second_moment ? 2 : 1;
    return objective_.Gradient(theta, sample, extras);
  }
  absl::StatusOr<std::unique_ptr<CurvatureProduct<float>>> GaussNewtonAt(const Vector<float>& theta,
                                                                         const Sample& sample) override {
    See(theta);
    HFOPT_ASSIGN_OR_RETURN(auto product, objective_.GaussNewtonAt(theta, sample));
    return std::make_unique<Product>(*this, std::move(product));
  }

  size_t asked_with() const { return names_.size(); }
  size_t answers() const { return answers_; }  // that are vectors

 private:
  struct Product : CurvatureProduct<float> {
    Product(DistinctVectors& all, std::unique_ptr<CurvatureProduct<float>> product)
        : all(all), product(std::move(product)) {}
    absl::Status Apply(const Vector<float>& v, Vector<float>& Gv) override {
      all.See(v);
      ++all.answers_;
      return product->Apply(v, Gv);
    }
    DistinctVectors& all;
    const std::unique_ptr<CurvatureProduct<float>> product;
  };
  void See(const Vector<float>& vector) { names_.insert(wire::ContentName<float>(vector)); }

  Objective<float>& objective_;
  std::set<std::string> names_;
  size_t answers_ = 0;
};

TEST(Bytes, EveryVectorIsSentOnce) {
  const v1::OptimizerOptions optimizer = Published();
  TestServer server;
  client::RunClient client = server.Client();
  v1::RunOptions options;
  options.set_shards(1);
  options.set_seed(7);
  options.set_repeat_every(0);
  *options.mutable_optimizer() = optimizer;
  ASSERT_TRUE(client.Create("digits", options).ok());
  ASSERT_TRUE(client.Start("digits").ok());
  WorkerThread<float> worker(DigitsModel<float>(), server.address(), "digits", "w", {}, /*shared_memory=*/false);
  ASSERT_TRUE(client.Watch("digits", 0, [](const v1::WatchRunResponse&) { return true; }).ok());
  const v1::Run run = client.Get("digits").value();

  auto model = DigitsModel<float>();
  LocalObjective<float> local(*model, 1);
  DistinctVectors vectors(local);
  RunLocally<float>(vectors, *model->InitialParameters(7), optimizer);
  const uint64_t bytes = model->num_parameters() * sizeof(float);
  ASSERT_EQ(run.workers_size(), 1);
  EXPECT_EQ(run.workers(0).bytes_sent(), vectors.asked_with() * bytes);
  EXPECT_EQ(run.workers(0).bytes_received(), (1 + vectors.answers()) * bytes) << "the initial parameters too";
  EXPECT_GT(vectors.asked_with(), 20u);
}

}  // namespace
}  // namespace hfopt::testing
