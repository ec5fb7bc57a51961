// What a slow worker costs where there is a spare one: the same training on two workers, and on these, one that takes ten times as long in the place of
// one of them, and the spare. The models wait instead of computing, so that two cores are enough for any number of them.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/models/model_factory.h"
#include "nlohmann/json.hpp"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

constexpr int kIterations = 12;
constexpr int kRounds = 3;
constexpr auto kUsual = std::chrono::milliseconds(20);
constexpr int kTimesSlower = 10;

class SlowLinearization final : public client::Linearization<float> {
 public:
  SlowLinearization(std::unique_ptr<client::Linearization<float>> linearization, std::chrono::milliseconds pause)
      : linearization_(std::move(linearization)), pause_(pause) {}

  absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
    std::this_thread::sleep_for(pause_);
    return linearization_->GaussNewtonProduct(v, product);
  }
  double weight() const override { return linearization_->weight(); }

 private:
  const std::unique_ptr<client::Linearization<float>> linearization_;
  const std::chrono::milliseconds pause_;
};

// A model that takes at least `pause` for each answer.
class SlowModel final : public client::Model<float> {
 public:
  SlowModel(std::unique_ptr<client::Model<float>> model, std::chrono::milliseconds pause) : model_(std::move(model)), pause_(pause) {}

  int64_t num_parameters() const override { return model_->num_parameters(); }
  int64_t num_examples(client::DataSet data_set) const override { return model_->num_examples(data_set); }
  std::string signature() const override { return model_->signature(); }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>& theta, const client::Examples& examples) override {
    std::this_thread::sleep_for(pause_);
    return model_->Loss(theta, examples);
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                                           client::VectorRef<float> gradient) override {
    std::this_thread::sleep_for(pause_);
    return model_->Gradient(theta, examples, gradient);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>& theta,
                                                                          const client::Examples& examples) override {
    auto linearization = model_->Linearize(theta, examples);
    if (!linearization.ok()) return linearization.status();
    return std::make_unique<SlowLinearization>(*std::move(linearization), pause_);
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<Vector<float>> InitialParameters(uint64_t seed) override { return model_->InitialParameters(seed); }

 private:
  const std::unique_ptr<client::Model<float>> model_;
  const std::chrono::milliseconds pause_;
};

struct Measurement {
  double seconds = 0;
  uint32_t hedged = 0;
  Vector<float> theta;
};

// One worker for each of `pauses`.
Measurement Train(const std::vector<std::chrono::milliseconds>& pauses) {
  TestServer server;
  client::RunClient client = server.Client();
  v1::RunOptions options;
  options.set_shards(2);
  options.set_seed(1);
  options.mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  options.mutable_optimizer()->mutable_stop()->set_max_iterations(kIterations);
  if (!client.Create("r", options).ok()) std::abort();
  std::vector<std::unique_ptr<WorkerThread<float>>> workers;
  for (size_t i = 0; i < pauses.size(); ++i) {
    auto model = models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-10"}).value();
    workers.push_back(std::make_unique<WorkerThread<float>>(std::make_unique<SlowModel>(std::move(model), pauses[i]), server.address(), "r",
                                                            absl::StrCat("w", i)));
  }
  // All are there before the first request.
  while (client.Get("r")->workers_size() < static_cast<int>(pauses.size())) std::this_thread::yield();
  if (!client.Start("r").ok()) std::abort();
  Measurement result;
  const auto run = client.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
    result.hedged += event.iteration().hedged();
    return true;
  });
  result.seconds = run->seconds().total() - run->seconds().waiting();
  result.theta = client.DownloadLast<float>("r")->theta;
  return result;
}

int Main() {
  std::vector<double> ratios;
  Measurement usual, with_slow;
  for (int round = 0; round < kRounds; ++round) {
    usual = Train({kUsual, kUsual});
    with_slow = Train({kUsual, kTimesSlower * kUsual, kUsual});
    if (usual.theta != with_slow.theta) {
      std::fprintf(stderr, "straggler: the two did not compute the same bits\n");
      return 1;
    }
    ratios.push_back(with_slow.seconds / usual.seconds);
    std::printf("round %d: two workers %.2f s; with one %d times slower and a spare one %.2f s, %u requests hedged; ratio %.2f\n", round + 1, usual.seconds, kTimesSlower,
                with_slow.seconds, with_slow.hedged, ratios.back());
  }
  std::sort(ratios.begin(), ratios.end());
  const nlohmann::json result = {{"bench", "straggler"}, {"times_slower", kTimesSlower}, {"seconds", usual.seconds}, {"with_slow_worker_seconds", with_slow.seconds},
                                 {"hedged", with_slow.hedged}, {"ratio", ratios[ratios.size() / 2]}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace hfopt::testing

int main() { return hfopt::testing::Main(); }
