// Speed of Mlp's evaluations on the AN4 acoustic model against Eigen's sgemm, in GFLOP/s. Counted are the
// multiplications and additions of the matrix products alone, so what activations, losses and reading the data cost
// lowers the figure.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "Eigen/Core"
#include "benchmark/benchmark.h"
#include "client/cpp/shuffle.h"
#include "client/models/data_source.h"
#include "client/models/mlp.h"

namespace hfopt::models {
namespace {

using client::DataSet;
using client::Examples;
using client::Vector;

constexpr int64_t kExamples = 8192;

// Bytes of noise with labels: the speed does not depend on what they mean.
class NoiseSource final : public DataSource<float> {
 public:
  NoiseSource(int64_t inputs, int64_t classes) : inputs_(inputs), classes_(classes), bytes_(inputs * kExamples) {
    client::SplitMix64 generator(1);
    for (uint8_t& b : bytes_) b = static_cast<uint8_t>(generator.Next());
  }
  int64_t num_examples(DataSet) const override { return kExamples; }
  int64_t input_size() const override { return inputs_; }
  int64_t num_classes() const override { return classes_; }
  std::string signature() const override { return "noise"; }
  void Inputs(DataSet, int64_t begin, Eigen::Ref<Matrix<float>> inputs) const override {
    for (int64_t j = 0; j < inputs.cols(); ++j) {
      const uint8_t* bytes = &bytes_[(begin + j) * inputs_];
      float* column = &inputs(0, j);
      for (int64_t i = 0; i < inputs_; ++i) column[i] = (bytes[i] - 128) * 0x1p-7f;
    }
  }
  void Labels(DataSet, int64_t begin, absl::Span<int32_t> labels) const override {
    for (size_t j = 0; j < labels.size(); ++j) labels[j] = static_cast<int32_t>((begin + j) % classes_);
  }

 private:
  int64_t inputs_, classes_;
  std::vector<uint8_t> bytes_;
};

struct Problem {
  explicit Problem(Activation activation = Activation::kTanh, int64_t block_size = 512) {
    auto data = std::make_shared<NoiseSource>(440, 102);
    mlp = *Mlp<float>::Create(
        {.layers = {440, 256, 256, 102}, .activations = {activation, activation}, .block_size = block_size}, data);
    theta = *mlp->InitialParameters(1);
    examples = {DataSet::kTraining, {{0, kExamples}}};
  }

  std::unique_ptr<Mlp<float>> mlp;
  Vector<float> theta;
  Examples examples;
};

// Multiply-adds of one pass of the examples through the weights, twice: 2 (P_1 + P_2 + P_3) each; P_1 has no gradient
// of its input.
constexpr double kFirst = 2.0 * 440 * 256, kRest = 2.0 * (256 * 256 + 256 * 102);
constexpr double kLossFlop = kExamples * (kFirst + kRest);
constexpr double kGradientFlop = kExamples * (2 * kFirst + 3 * kRest);
constexpr double kProductFlop = kExamples * (2 * kFirst + 4 * kRest);

void Report(benchmark::State& state, double flop) {
  state.counters["GFLOP/s"] = benchmark::Counter(flop * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void Sgemm(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(m, k), b = Eigen::MatrixXf::Random(k, n);
  Eigen::MatrixXf c = Eigen::MatrixXf::Zero(m, n);
  for (auto _ : state) {
    c.noalias() += a * b;
    benchmark::DoNotOptimize(c.data());
  }
  Report(state, 2.0 * m * n * k);
}
BENCHMARK(Sgemm)
    ->ArgNames({"m", "n", "k"})
    ->Args({1024, 1024, 1024})
    ->Args({256, 512, 440})
    ->Args({256, 512, 256})
    ->Args({102, 512, 256});

void Loss(benchmark::State& state) {
  Problem p(static_cast<Activation>(state.range(0)), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(p.mlp->Loss(p.theta, p.examples)->loss);
  Report(state, kLossFlop);
}

void Gradient(benchmark::State& state) {
  Problem p(static_cast<Activation>(state.range(0)), state.range(1));
  Vector<float> gradient(p.mlp->num_parameters());
  for (auto _ : state) benchmark::DoNotOptimize(p.mlp->Gradient(p.theta, p.examples, gradient)->loss);
  Report(state, kGradientFlop);
}

void Product(benchmark::State& state) {
  Problem p(static_cast<Activation>(state.range(0)), state.range(1));
  Vector<float> product(p.mlp->num_parameters());
  const std::unique_ptr<client::Linearization<float>> at = *p.mlp->Linearize(p.theta, p.examples);
  for (auto _ : state) {
    if (!at->GaussNewtonProduct(p.theta, product).ok()) state.SkipWithError("no product");
  }
  Report(state, kProductFlop);
}

// Each activation at the usual block size, tanh at others.
void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"activation", "block"})->Unit(benchmark::kMillisecond);
  for (const Activation a : {Activation::kSigmoid, Activation::kTanh, Activation::kRelu})
    bench->Args({static_cast<int>(a), 512});
  for (const int block : {128, 256, 1024, 2048}) bench->Args({static_cast<int>(Activation::kTanh), block});
}
BENCHMARK(Loss)->Apply(Shapes);
BENCHMARK(Gradient)->Apply(Shapes);
BENCHMARK(Product)->Apply(Shapes);

// Runs a second of each function, the best of many short turns: taken in rotation, so that what else the machine does
// slows all of them or none.
std::vector<double> BestRates(const std::vector<std::function<void()>>& functions) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> best(functions.size());
  for (int turn = 0; turn < 20; ++turn) {
    for (size_t f = 0; f < functions.size(); ++f) {
      const Clock::time_point start = Clock::now();
      functions[f]();
      best[f] = std::max(best[f], 1 / std::chrono::duration<double>(Clock::now() - start).count());
    }
  }
  return best;
}

// The figures that the project promises: rates of the evaluations over that of a 1024 x 1024 x 1024 sgemm.
void PrintRatios() {
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(1024, 1024), b = Eigen::MatrixXf::Random(1024, 1024);
  Eigen::MatrixXf c = Eigen::MatrixXf::Zero(1024, 1024);
  Problem p;
  Vector<float> out(p.mlp->num_parameters());
  const std::unique_ptr<client::Linearization<float>> at = *p.mlp->Linearize(p.theta, p.examples);
  const std::vector<double> rates = BestRates(
      {[&] { c.noalias() += a * b; }, [&] { (void)p.mlp->Loss(p.theta, p.examples); },
       [&] { (void)p.mlp->Gradient(p.theta, p.examples, out); }, [&] { (void)at->GaussNewtonProduct(p.theta, out); }});
  const double sgemm = 2.0 * 1024 * 1024 * 1024 * rates[0];
  std::printf("{\"sgemm_gflops\": %.1f, \"loss_ratio\": %.3f, \"gradient_ratio\": %.3f, \"product_ratio\": %.3f}\n",
              sgemm * 1e-9, kLossFlop * rates[1] / sgemm, kGradientFlop * rates[2] / sgemm,
              kProductFlop * rates[3] / sgemm);
}

}  // namespace
}  // namespace hfopt::models

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  hfopt::models::PrintRatios();
}
