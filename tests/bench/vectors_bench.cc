// The server's vector arithmetic against the memory bandwidth of this machine: bytes read and written per second, relative to the STREAM
// triad a = b + s c (3 n numbers, as STREAM counts), float32, with one thread and with as many as a server takes here. The triad's three arrays take as many bytes as the vectors of
// the arithmetic: STREAM wants arrays of four times the last cache, which no vector here is where that cache has hundreds of MiB, and then
// a triad over less memory measures the cache. The ratio to the triad of the same n is printed too.

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
#include "server/run/arithmetic_threads.h"

namespace hfopt {
namespace {

constexpr int kMemory = 16, kShards = 8;

Vector<float> Numbers(int64_t n, int phase) {
  Vector<float> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = 1 + 0.001f * static_cast<float>((i + phase) % 97);
  return v;
}

// The vectors that each kind of arithmetic has in memory.
constexpr int kDotVectors = 2, kCgVectors = 5, kTwoLoopVectors = 2 * kMemory + 2, kReductionVectors = kShards + 1;

void Report(benchmark::State& state, double vectors) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(vectors * state.range(0) * sizeof(float)));
}

// Of all that follow: with so many threads.
void UseThreads(const benchmark::State& state) { server::ShareOutArithmetic(static_cast<int>(state.range(1))); }

// Three arrays that together take as much as `vectors` vectors. a, b and c are distinct, so __restrict holds.
void Triad(benchmark::State& state, int vectors) {
  const int64_t n = state.range(0) * vectors / 3;
  Vector<float> a = Vector<float>::Ones(n), b = a, c = a;
  UseThreads(state);
  for (auto _ : state) {
    ForParts(n, [&](int64_t begin, int64_t end) {
      float* __restrict pa = a.data();
      const float *__restrict pb = b.data(), *__restrict pc = c.data();
      for (int64_t i = begin; i < end; ++i) pa[i] = pb[i] + 3.0f * pc[i];
    });
    benchmark::ClobberMemory();
  }
  Report(state, vectors);
}

void DotProduct(benchmark::State& state) {
  const Vector<float> a = Numbers(state.range(0), 0), b = Numbers(state.range(0), 1);
  UseThreads(state);
  for (auto _ : state) benchmark::DoNotOptimize(Dot(a, b));
  Report(state, kDotVectors);
}

void FusedCgUpdate(benchmark::State& state) {
  const int64_t n = state.range(0);
  const Vector<float> p = Numbers(n, 0), Gp = Numbers(n, 1), g = Numbers(n, 2);
  Vector<float> x = Numbers(n, 3), r = Numbers(n, 4);
  UseThreads(state);
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
  UseThreads(state);
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
  UseThreads(state);
  for (auto _ : state) {
    server::VectorReducer<float> reducer(mean);
    for (const Vector<float>& answer : answers) {
      if (!reducer.Add(answer, 1)) state.SkipWithError("not finite");
    }
    reducer.Finish();
  }
  Report(state, 2 + 3 * (kShards - 1) + 2);  // the first is copied, the others are added, the sum is scaled
}

struct Kernel {
  const char* name;
  void (*run)(benchmark::State&);
  int vectors;
};
constexpr Kernel kKernels[] = {{"DotProduct", DotProduct, kDotVectors},
                               {"FusedCgUpdate", FusedCgUpdate, kCgVectors},
                               {"LbfgsTwoLoop", LbfgsTwoLoop, kTwoLoopVectors},
                               {"ShardReduction", ShardReduction, kReductionVectors}};
constexpr char kTriad[] = "Triad";

std::vector<int> Threads() {
  const int all = server::DefaultArithmeticThreads();
  return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
}

// The triad that a kernel is measured by, run right after it.
std::string TriadOf(const std::string& kernel) { return kTriad + kernel; }

void Register() {
  const auto sizes = [](benchmark::internal::Benchmark* bench) {
    for (const int threads : Threads()) bench->Args({10'000'000, threads})->Args({45'000'000, threads});
    bench->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(0.4)->Repetitions(5)->ReportAggregatesOnly();
  };
  sizes(benchmark::RegisterBenchmark(kTriad, Triad, 3));
  for (const Kernel& kernel : kKernels) {
    sizes(benchmark::RegisterBenchmark(kernel.name, kernel.run));
    sizes(benchmark::RegisterBenchmark(TriadOf(kernel.name).c_str(), Triad, kernel.vectors));
  }
}

// Remembers the median bandwidths.
class Medians : public benchmark::ConsoleReporter {
 public:
  Medians() : ConsoleReporter(OO_None) {}  // no colours: their end would stand before the JSON
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
  Register();
  benchmark::Initialize(&argc, argv);
  Medians medians;
  benchmark::RunSpecifiedBenchmarks(&medians);
  nlohmann::json result = {{"bench", "vectors"}};  // by length/threads
  double worst = INFINITY;
  for (const auto& [size, triad] : medians.bandwidth[kTriad]) {
    result["triad_gb_per_s"][size] = triad / 1e9;
    for (const Kernel& kernel : kKernels) {
      if (!medians.bandwidth.contains(kernel.name)) continue;  // filtered out
      const double bandwidth = medians.bandwidth[kernel.name].at(size);
      const double ratio = bandwidth / medians.bandwidth[TriadOf(kernel.name)].at(size);
      result["ratio"][kernel.name][size] = ratio;
      result["ratio_to_triad_of_same_n"][kernel.name][size] = bandwidth / triad;
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
