// The server's vector arithmetic against the memory bandwidth of this machine: bytes read and written per second, relative to the STREAM
// triad a = b + s c (3 n numbers, as STREAM counts) of the same length, one thread, float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "core/lbfgs_preconditioner.h"
#include "core/vector.h"
#include "nlohmann/json.hpp"
#include "server/evaluation/shard_reducer.h"

namespace hfopt {
namespace {

constexpr int kMemory = 16, kShards = 8;

Vector<float> Numbers(int64_t n, int phase) {
  Vector<float> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = 1 + 0.001f * static_cast<float>((i + phase) % 97);
  return v;
}

void Report(benchmark::State& state, double vectors) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(vectors * state.range(0) * sizeof(float)));
}

// a, b and c are distinct, so __restrict holds.
void Triad(benchmark::State& state) {
  const int64_t n = state.range(0);
  Vector<float> a = Numbers(n, 0), b = Numbers(n, 1), c = Numbers(n, 2);
  for (auto _ : state) {
    float* __restrict pa = a.data();
    const float *__restrict pb = b.data(), *__restrict pc = c.data();
    for (int64_t i = 0; i < n; ++i) pa[i] = pb[i] + 3.0f * pc[i];
    benchmark::ClobberMemory();
  }
  Report(state, 3);
}

void DotProduct(benchmark::State& state) {
  const Vector<float> a = Numbers(state.range(0), 0), b = Numbers(state.range(0), 1);
  for (auto _ : state) benchmark::DoNotOptimize(Dot(a, b));
  Report(state, 2);
}

void FusedCgUpdate(benchmark::State& state) {
  const int64_t n = state.range(0);
  const Vector<float> p = Numbers(n, 0), Gp = Numbers(n, 1), g = Numbers(n, 2);
  Vector<float> x = Numbers(n, 3), r = Numbers(n, 4);
  for (auto _ : state) benchmark::DoNotOptimize(CgStep(1e-9, 1e-3, p, Gp, g, x, r));
  Report(state, 7);  // reads five, writes two
}

void LbfgsTwoLoop(benchmark::State& state) {
  const int64_t n = state.range(0);
  LbfgsPreconditioner<float> M(1e-3, 1e-6);
  {
    PairList<float> pairs;
    for (int i = 0; i < kMemory; ++i) {
      pairs.push_back(std::make_shared<const CurvaturePair<float>>(CurvaturePair<float>{Numbers(n, i), Numbers(n, i + 1)}));
    }
    M.SetPairs(pairs);
  }
  const Vector<float> r = Numbers(n, 50);
  Vector<float> z(n);
  M.Apply(r, z);  // touches all pages
  for (auto _ : state) M.Apply(r, z);
  // Copy 2; first loop: dot 2, fused 4 (m - 1), last 3; scaling 2; second loop likewise.
  Report(state, 2 + 2 + 2 * (2 + 4 * (kMemory - 1) + 3));
}

void ShardReduction(benchmark::State& state) {
  const int64_t n = state.range(0);
  std::vector<Vector<float>> answers;
  for (int shard = 0; shard < kShards; ++shard) answers.push_back(Numbers(n, shard));
  Vector<float> mean(n);
  for (auto _ : state) {
    server::VectorReducer<float> reducer(mean);
    for (const Vector<float>& answer : answers) {
      if (!reducer.Add(answer, 1)) state.SkipWithError("not finite");
    }
    reducer.Finish();
  }
  Report(state, 2 + 3 * (kShards - 1) + 2);  // the first is copied, the others are added, the sum is scaled
}

void Sizes(benchmark::internal::Benchmark* bench) {
  bench->Arg(10'000'000)->Arg(45'000'000)->Unit(benchmark::kMillisecond)->MinTime(0.4)->Repetitions(5)->ReportAggregatesOnly();
}
BENCHMARK(Triad)->Apply(Sizes);
BENCHMARK(DotProduct)->Apply(Sizes);
BENCHMARK(FusedCgUpdate)->Apply(Sizes);
BENCHMARK(LbfgsTwoLoop)->Apply(Sizes);
BENCHMARK(ShardReduction)->Apply(Sizes);

// Remembers the median bandwidths.
class Medians : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.aggregate_name == "median") {
        bandwidth[run.run_name.function_name][run.run_name.args] = run.counters.at("bytes_per_second");
      }
    }
    ConsoleReporter::ReportRuns(runs);
  }
  std::map<std::string, std::map<std::string, double>> bandwidth;
};

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  Medians medians;
  benchmark::RunSpecifiedBenchmarks(&medians);
  nlohmann::json result = {{"bench", "vectors"}};
  double worst = INFINITY;
  for (const auto& [size, triad] : medians.bandwidth["Triad"]) {
    result["triad_gb_per_s"][size] = triad / 1e9;
    for (const auto& [name, by_size] : medians.bandwidth) {
      if (name == "Triad" || !by_size.contains(size)) continue;
      const double ratio = by_size.at(size) / triad;
      result["ratio"][name][size] = ratio;
      worst = std::min(worst, ratio);
    }
  }
  result["worst_ratio"] = worst;
  std::printf("%s\n", result.dump().c_str());
  return std::isfinite(worst) ? 0 : 1;
}

}  // namespace
}  // namespace hfopt

int main(int argc, char** argv) { return hfopt::Main(argc, argv); }
