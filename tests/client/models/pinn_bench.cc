// Speed of Pinn's evaluations over all of a problem's points, in double on one core.

#include <cstdint>
#include <memory>

#include "benchmark/benchmark.h"
#include "client/cpp/model.h"
#include "client/models/pinn.h"

namespace hfopt::models {
namespace {

using client::Vector;

struct Setting {
  explicit Setting(const benchmark::State& state) {
    pinn = *Pinn<double>::Create(
        {.problem = static_cast<PinnProblem>(state.range(0)), .block_size = static_cast<int64_t>(state.range(1))});
    theta = *pinn->InitialParameters(1);
    out.resize(theta.size());
    all = {client::DataSet::kTraining, {{0, pinn->num_examples(client::DataSet::kTraining)}}};
  }

  std::unique_ptr<Pinn<double>> pinn;
  Vector<double> theta, out;
  client::Examples all;
};

void Loss(benchmark::State& state) {
  Setting s(state);
  for (auto _ : state) benchmark::DoNotOptimize(s.pinn->Loss(s.theta, s.all)->loss);
}

void Gradient(benchmark::State& state) {
  Setting s(state);
  for (auto _ : state) benchmark::DoNotOptimize(s.pinn->Gradient(s.theta, s.all, s.out)->loss);
}

void Linearize(benchmark::State& state) {
  Setting s(state);
  for (auto _ : state) benchmark::DoNotOptimize(*s.pinn->Linearize(s.theta, s.all));
}

void Product(benchmark::State& state) {
  Setting s(state);
  const std::unique_ptr<client::Linearization<double>> at = *s.pinn->Linearize(s.theta, s.all);
  for (auto _ : state) {
    if (!at->GaussNewtonProduct(s.theta, s.out).ok()) state.SkipWithError("no product");
  }
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"problem", "block"})->Unit(benchmark::kMillisecond);
  for (const PinnProblem problem : {PinnProblem::kPoisson, PinnProblem::kConvection}) {
    for (const int block : {32, 64, 128, 256, 512, 2048}) bench->Args({static_cast<int>(problem), block});
  }
}
BENCHMARK(Loss)->Apply(Shapes);
BENCHMARK(Gradient)->Apply(Shapes);
BENCHMARK(Linearize)->Apply(Shapes);
BENCHMARK(Product)->Apply(Shapes);

}  // namespace
}  // namespace hfopt::models

BENCHMARK_MAIN();
