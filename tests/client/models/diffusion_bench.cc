// Speed of DiffusionInversion's parts and evaluations, in milliseconds; by default of 64 sources at grid 96.

#include <memory>

#include "benchmark/benchmark.h"
#include "client/models/diffusion.h"

namespace hfopt::models {
namespace {

using client::DataSet;
using client::Examples;
using client::Vector;

void Factorize(benchmark::State& state) {
  DiffusionOperator op(state.range(0));
  const Eigen::VectorXd m = Eigen::VectorXd::Zero(op.num_cells());
  for (auto _ : state) benchmark::DoNotOptimize(op.Factorize(m)->lower.data());
  state.counters["entries"] = static_cast<double>(op.num_factor_entries());
}

// One unit: a solve for each of 64 sources.
void Solve(benchmark::State& state) {
  DiffusionOperator op(state.range(0));
  const auto factor = op.Factorize(Eigen::VectorXd::Zero(op.num_cells()));
  const DiffusionOperator::Fields b = DiffusionOperator::Fields::Ones(DiffusionOperator::kLanes, op.num_cells());
  DiffusionOperator::Fields x[64 / DiffusionOperator::kLanes];
  for (auto _ : state) {
    for (DiffusionOperator::Fields& fields : x) {
      fields = b;
      op.Solve(*factor, fields);
    }
  }
}

struct Problem {
  explicit Problem(int64_t grid) : model(*DiffusionInversion<double>::Create({.grid = grid})) {
    theta[0] = Vector<double>::Zero(grid * grid);
    theta[1] = Vector<double>::Constant(grid * grid, 0.1);
  }
  // Another point at each call.
  const Vector<double>& Next() { return theta[++calls % 2]; }

  std::unique_ptr<DiffusionInversion<double>> model;
  Examples examples = {DataSet::kTraining, {{0, 64}}};
  Vector<double> theta[2];
  int calls = 0;
};

// At a new point: a factorization, one unit.
void Loss(benchmark::State& state) {
  Problem p(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(p.model->Loss(p.Next(), p.examples)->loss);
}

// At the point of the loss before: one unit.
void GradientAfterLoss(benchmark::State& state) {
  Problem p(state.range(0));
  Vector<double> gradient(p.model->num_parameters());
  for (auto _ : state) benchmark::DoNotOptimize(p.model->Gradient(p.theta[0], p.examples, gradient)->loss);
}

// Two units.
void Product(benchmark::State& state) {
  Problem p(state.range(0));
  Vector<double> product(p.model->num_parameters());
  const auto linearization = *p.model->Linearize(p.theta[0], p.examples);
  for (auto _ : state) {
    if (!linearization->GaussNewtonProduct(p.theta[1], product).ok()) state.SkipWithError("no product");
  }
}

void Grids(benchmark::internal::Benchmark* bench) {
  bench->ArgName("grid")->Arg(48)->Arg(96)->Arg(192)->Unit(benchmark::kMillisecond);
}
BENCHMARK(Factorize)->Apply(Grids);
BENCHMARK(Solve)->Apply(Grids);
BENCHMARK(Loss)->Apply(Grids);
BENCHMARK(GradientAfterLoss)->Apply(Grids);
BENCHMARK(Product)->Apply(Grids);

}  // namespace
}  // namespace hfopt::models

BENCHMARK_MAIN();
