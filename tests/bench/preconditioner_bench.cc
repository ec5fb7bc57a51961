// How many CG iterations the preconditioners save on a system from late training.
//
//     hfopt_preconditioner_bench PARAMETERS LAMBDA CURVATURE_EXAMPLES [options of the model]
//
// At the trained parameters of a safetensors file one solve is made; its best iterate is the step to a neighbouring point. There the system
// (G + lambda I) d = -g, on another curvature sample if it is smaller than the data, is solved to relative residuals 0.1, 0.01 and 0.001:
// without preconditioner, and with the frozen pairs of the first solve. Where the model has second moments, also with the diagonal of squared
// gradients, alone and under the pairs of a first solve that had it, too. The last line is JSON.

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/model_flags.h"
#include "client/cli/parameter_file.h"
#include "client/models/model_factory.h"
#include "core/conjugate_gradient.h"
#include "core/curvature_pairs.h"
#include "core/lbfgs_preconditioner.h"
#include "core/optimizer_options.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/support/local_objective.h"

namespace hfopt {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kResiduals[] = {0.1, 0.01, 0.001};
constexpr int kMemories[] = {8, 16, 32, 64};
// Of the first solve: as long as one of the presets may be.
constexpr int kMaxFirst = 200;
constexpr double kFirstResidual = 0.01;

// G, and what a solve that starts at zero makes of it: its residuals, and its pairs for each of kMemories if asked for.
template <typename Scalar>
class WatchedProduct : public CurvatureProduct<Scalar> {
 public:
  WatchedProduct(CurvatureProduct<Scalar>& G, double damping, const Vector<Scalar>& gradient, bool collect_pairs)
      : G_(G), damping_(damping), r_(-gradient), norms_{Norm(gradient)} {
    if (!collect_pairs) return;
    for (const int memory : kMemories) pairs_.emplace_back(memory);
  }

  absl::Status Apply(const Vector<Scalar>& p, Vector<Scalar>& Gp) override {
    HFOPT_RETURN_IF_ERROR(G_.Apply(p, Gp));
    for (EvenlySpacedPairs<Scalar>& pairs : pairs_) pairs.Offer(static_cast<int64_t>(norms_.size()) - 1, p, Gp);
    // CG's step along p is the minimum of q.
    const double step = Dot(r_, p) / (Dot(p, Gp) + damping_ * Dot(p, p));
    Axpy(-step, Gp, r_);
    Axpy(-step * damping_, p, r_);
    norms_.push_back(Norm(r_));
    return absl::OkStatus();
  }

  // Of the first iterate whose residual is within `residual` |g|; null without such an iterate.
  Json IterationsTo(double residual) const {
    for (size_t i = 0; i < norms_.size(); ++i) {
      if (norms_[i] <= residual * norms_[0]) return i;
    }
    return nullptr;
  }

  // For kMemories[i].
  const PairList<Scalar>& pairs(size_t i) const { return pairs_[i].pairs(); }

 private:
  CurvatureProduct<Scalar>& G_;
  const double damping_;
  Vector<Scalar> r_;
  std::vector<double> norms_;  // |r_0|, |r_1|, ...
  std::vector<EvenlySpacedPairs<Scalar>> pairs_;
};

template <typename Scalar>
class Systems {
 public:
  Systems(client::Model<Scalar>& model, double damping, int64_t curvature_examples, int max_iterations)
      : objective_(model, /*shards=*/1), damping_(damping), curvature_examples_(curvature_examples), max_iterations_(max_iterations) {}

  // For each preconditioner, the iterations to each of kResiduals.
  absl::StatusOr<Json> Measure(Vector<Scalar> theta) {
    const bool has_diagonal = objective_.has_second_moment();
    HFOPT_ASSIGN_OR_RETURN(const System first, SystemAt(theta, /*cursor=*/0));
    WatchedProduct<Scalar> plain(*first.G, damping_, first.gradient, /*collect_pairs=*/true);
    WatchedProduct<Scalar> with_diagonal(*first.G, damping_, first.gradient, /*collect_pairs=*/true);
    HFOPT_ASSIGN_OR_RETURN(const CgResult<Scalar> step, Solve(first, plain, {}, {}, kMaxFirst, kFirstResidual));
    if (has_diagonal) HFOPT_RETURN_IF_ERROR(Solve(first, with_diagonal, first.diagonal, {}, kMaxFirst, kFirstResidual).status());

    theta += step.last().x;
    HFOPT_ASSIGN_OR_RETURN(const System second, SystemAt(theta, /*cursor=*/curvature_examples_));
    Json rows = {{"damping", damping_}, {"residuals", kResiduals}};
    HFOPT_RETURN_IF_ERROR(AddRows("none", "", second, {}, plain, rows));
    if (has_diagonal) HFOPT_RETURN_IF_ERROR(AddRows("diagonal", " + diagonal", second, second.diagonal, with_diagonal, rows));
    return rows;
  }

 private:
  struct System {
    Vector<Scalar> gradient;
    Vector<Scalar> diagonal;  // of squared gradients; empty where the model has no second moments
    std::unique_ptr<CurvatureProduct<Scalar>> G;
  };

  absl::StatusOr<System> SystemAt(const Vector<Scalar>& theta, int64_t cursor) {
    const DataLayout& layout = objective_.layout();
    const auto sample = [&](int64_t size, int64_t begin) { return DrawSample(layout, DataSet::kTraining, size, begin); };
    System system;
    HFOPT_ASSIGN_OR_RETURN(GradientAnswer<Scalar> answer, objective_.Gradient(theta, sample(layout.training_examples, 0), {}));
    system.gradient = std::move(answer.gradient);
    HFOPT_ASSIGN_OR_RETURN(system.G, objective_.GaussNewtonAt(theta, sample(curvature_examples_, cursor)));
    if (objective_.has_second_moment()) {
      HFOPT_ASSIGN_OR_RETURN(answer, objective_.Gradient(theta, sample(kDefaults.diagonal_examples, cursor), {.second_moment = true}));
      system.diagonal = DampedDiagonal(answer.second_moment, damping_, kDefaults.diagonal_exponent);
    }
    return system;
  }

  absl::StatusOr<CgResult<Scalar>> Solve(const System& system, WatchedProduct<Scalar>& G, const Vector<Scalar>& diagonal,
                                         const PairList<Scalar>& pairs, int max_iterations, double residual) {
    const Vector<Scalar> none;
    PreconditionerOptions options = kDefaults;
    options.lbfgs = pairs.empty() ? LbfgsMode::kNone : LbfgsMode::kFrozen;
    return MinimizeQuadratic<Scalar>(
        {.G = G, .damping = damping_, .gradient = system.gradient, .start = none, .diagonal = diagonal, .pairs = pairs},
        {.max_iterations = max_iterations, .progress_tolerance = 0, .residual_tolerance = residual}, options);
  }

  // `diagonal` alone, under the name `alone`, and under the pairs of `first_solve`.
  absl::Status AddRows(const std::string& alone, const std::string& suffix, const System& system, const Vector<Scalar>& diagonal,
                       const WatchedProduct<Scalar>& first_solve, Json& rows) {
    HFOPT_RETURN_IF_ERROR(AddRow(alone, system, diagonal, {}, rows));
    for (size_t i = 0; i < std::size(kMemories); ++i) {
      HFOPT_RETURN_IF_ERROR(AddRow(absl::StrCat("m=", kMemories[i], suffix), system, diagonal, first_solve.pairs(i), rows));
    }
    return absl::OkStatus();
  }

  absl::Status AddRow(const std::string& name, const System& system, const Vector<Scalar>& diagonal, const PairList<Scalar>& pairs, Json& rows) {
    WatchedProduct<Scalar> G(*system.G, damping_, system.gradient, /*collect_pairs=*/false);
    // A little further, for residuals that round differently here and in CG.
    const double last = 0.99 * kResiduals[std::size(kResiduals) - 1];
    HFOPT_RETURN_IF_ERROR(Solve(system, G, diagonal, pairs, max_iterations_, last).status());
    for (const double residual : kResiduals) rows[name].push_back(G.IterationsTo(residual));
    return absl::OkStatus();
  }

  inline static const PreconditionerOptions kDefaults;

  testing::LocalObjective<Scalar> objective_;
  const double damping_;
  const int64_t curvature_examples_;
  const int max_iterations_;
};

template <typename Scalar>
absl::StatusOr<Json> Measure(const std::string& file, double damping, int64_t examples, int max_iterations, const models::ModelSpec& spec) {
  HFOPT_ASSIGN_OR_RETURN(const auto model, models::MakeModel<Scalar>(spec));
  HFOPT_ASSIGN_OR_RETURN(const Vector<Scalar> theta, cli::ReadParameters<Scalar>(file));
  return Systems<Scalar>(*model, damping, examples, max_iterations).Measure(theta);
}

}  // namespace
}  // namespace hfopt

int main(int argc, char** argv) {
  CLI::App app("Counts CG iterations with and without preconditioner at trained parameters",
               "hfopt_preconditioner_bench");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  std::string file, scalar = "float32";
  double damping = 0;
  int64_t examples = 0;
  int max_iterations = 2000;
  hfopt::models::ModelSpec spec;
  app.add_option("PARAMETERS", file)->required();
  app.add_option("LAMBDA", damping)->required();
  app.add_option("CURVATURE_EXAMPLES", examples)->required();
  app.add_option("--element-type", scalar)->check(CLI::IsMember({"float32", "float64"}));
  app.add_option("--max-iterations", max_iterations, "of each solve that is counted")->capture_default_str();
  hfopt::cli::AddModelFlags(app, spec);
  CLI11_PARSE(app, argc, argv);
  if (spec.data.empty()) spec.data = hfopt::cli::FindData(spec.task, hfopt::cli::ProgramPath());
  const auto measure = scalar == "float64" ? hfopt::Measure<double> : hfopt::Measure<float>;
  const auto answer = measure(file, damping, examples, max_iterations, spec);
  if (!answer.ok()) {
    std::cerr << "hfopt_preconditioner_bench: " << answer.status() << "\n";
    return 1;
  }
  std::cout << *answer << "\n";
  return 0;
}
