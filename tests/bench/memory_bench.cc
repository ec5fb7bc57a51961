// The peak of a server's memory against the formula by which it refuses runs that do not fit (server/run/memory.h), and the time of an
// iteration: a real server, a real worker, a quadratic of many parameters, L-BFGS with 16 pairs.
//
//   hfopt_memory_bench [parameters, 10,000,000]        45,000,000 take 19 GB of memory and as much of disk

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cpp/model_worker.h"
#include "client/cpp/run_client.h"
#include "nlohmann/json.hpp"
#include "proto/wire/allocator.h"
#include "server/convert/options.h"
#include "server/run/memory.h"
#include "tests/bench/process_memory.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

constexpr char kRun[] = "quadratic";
constexpr int kExamples = 10;

// Each example costs sum_i d_i (theta_i - 1)^2 / 2 with d_i from 0.01 to 10.
class Quadratic : public client::Model<float> {
 public:
  explicit Quadratic(int64_t n) : curvature_(n) {
    for (int64_t i = 0; i < n; ++i) curvature_[i] = 0.01f + 9.99f * static_cast<float>(i % 1009) / 1008;
  }
  int64_t num_parameters() const override { return curvature_.size(); }
  int64_t num_examples(client::DataSet) const override { return kExamples; }
  std::string signature() const override { return "quadratic"; }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>& theta,
                                       const client::Examples& examples) override {
    const double count = static_cast<double>(examples.size());
    double loss = 0;
    for (int64_t i = 0; i < theta.size(); ++i) loss += curvature_[i] * (theta[i] - 1) * (theta[i] - 1) / 2;
    return client::LossSum{count * loss, count, {}};
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>& theta, const client::Examples& examples,
                                           client::VectorRef<float> gradient) override {
    gradient.array() = Scale(examples) * curvature_.array() * (theta.array() - 1);
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>&,
                                                                          const client::Examples& examples) override {
    struct Diagonal : client::Linearization<float> {
      Diagonal(const Quadratic& model, const client::Examples& e) : model(model), examples(e) {}
      absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
        product.array() = Scale(examples) * model.curvature_.array() * v.array();
        return absl::OkStatus();
      }
      double weight() const override { return static_cast<double>(examples.size()); }
      const Quadratic& model;
      const client::Examples examples;
    };
    return std::make_unique<Diagonal>(*this, examples);
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<float>> InitialParameters(uint64_t) override {
    return client::Vector<float>(client::Vector<float>::Zero(num_parameters()));
  }

 private:
  static float Scale(const client::Examples& examples) { return static_cast<float>(examples.size()); }
  client::Vector<float> curvature_;
};

int Work(const std::string& address, int64_t n) {
  Quadratic model(n);
  client::ModelWorker<float> worker(
      model, {.channel = client::MakeChannel(address), .run_id = kRun, .worker_id = "w"});
  return worker.Run().ok() ? 0 : 1;
}

int Main(int64_t n) {
  v1::RunOptions options;
  options.set_shards(1);
  options.set_keep_checkpoints(1);
  v1::OptimizerOptions& optimizer = *options.mutable_optimizer();
  optimizer.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  optimizer.mutable_conjugate_gradient()->set_initial_max_iterations(0);
  optimizer.mutable_conjugate_gradient()->set_max_iterations(20);
  optimizer.mutable_conjugate_gradient()->set_progress_tolerance(0);
  optimizer.mutable_preconditioner()->set_lbfgs(v1::PreconditionerOptions::LBFGS_FROZEN);
  optimizer.mutable_preconditioner()->set_memory(16);
  optimizer.mutable_damping()->set_initial(1e-3);  // long solves
  optimizer.mutable_stop()->set_max_iterations(3);  // pairs of the solve before are there from the second on
  optimizer.mutable_stop()->set_gradient_tolerance(0);

  TemporaryDirectory state;
  Process server({HFOPT_SERVER_BINARY, "--address", "127.0.0.1:0", "--state-dir", state.path(), "--memory-limit", "100000"});
  const std::string address = server.AwaitErrorLine("listening on ");
  Process worker({"/proc/self/exe", "work", address, std::to_string(n)});
  client::RunClient client(client::MakeChannel(address));
  if (!client.Create(kRun, options).ok() || !client.Start(kRun).ok()) return 1;
  const auto run = client.Watch(kRun, 0, [](const v1::WatchRunResponse& event) {
    if (event.has_iteration()) {
      const v1::IterationReport& report = event.iteration();
      std::printf("iteration %d: %d CG iterations (%s) with %d pairs, %.1f s\n", static_cast<int>(report.iteration()),
                  static_cast<int>(report.cg_iterations()), v1::CgStop_Name(report.cg_stop()).c_str(),
                  static_cast<int>(report.pairs_kept()), report.seconds().total());
    }
    return true;
  });
  if (!run.ok() || run->state() != v1::RUN_STATE_ENDED) {
    std::fprintf(stderr, "memory: %s\n", run.ok() ? run->state_detail().c_str() : run.status().ToString().c_str());
    return 1;
  }
  const double peak = MemoryOf(server.pid(), "VmHWM:");
  const OptimizerOptions effective = server::OptionsFromProto(options.optimizer()).value();
  const double formula = static_cast<double>(server::BytesNeeded(effective, 1, n, sizeof(float)));
  const nlohmann::json result = {{"bench", "memory"},
                                 {"parameters", n},
                                 {"vectors", server::VectorsHeld(effective, 1)},
                                 {"formula_mib", formula / (1 << 20)},
                                 {"peak_mib", peak / (1 << 20)},
                                 {"ratio", peak / formula}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace hfopt::testing

int main(int argc, char** argv) {
  using namespace hfopt::testing;
  hfopt::wire::KeepFreedPages();
  if (argc == 4) return Work(argv[2], std::stol(argv[3]));
  return Main(argc > 1 ? std::stol(argv[1]) : 10'000'000);
}
