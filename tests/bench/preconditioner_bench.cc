// How many CG iterations the L-BFGS preconditioner saves on a system from late training.
//
//     hfopt_preconditioner_bench PARAMETERS LAMBDA CURVATURE_EXAMPLES [options of the model]
//
// At the trained parameters of a safetensors file one solve is made without preconditioner; its best iterate is the step to a neighbouring
// point. There the system (G + lambda I) d = -g, on another curvature sample if it is smaller than the data, is solved to relative
// residuals 0.1, 0.01 and 0.001: without preconditioner, and with the frozen pairs of the first solve. The last line is JSON.

#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/cli/model_flags.h"
#include "client/cli/parameter_file.h"
#include "client/models/model_factory.h"
#include "core/conjugate_gradient.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/support/local_objective.h"

namespace hfopt {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kResiduals[] = {0.1, 0.01, 0.001};
constexpr int kMemories[] = {8, 16, 32, 64, 128};
// Of the first solve, as long as a solve of the presets may be.
constexpr int kMaxFirst = 200, kMaxSecond = 2000;

template <typename Scalar>
class Systems {
 public:
  Systems(client::Model<Scalar>& model, double damping, int64_t curvature_examples)
      : objective_(model, /*shards=*/1), damping_(damping), curvature_examples_(curvature_examples) {}

  absl::StatusOr<Json> Measure(Vector<Scalar> theta) {
    // The pairs of every memory come from this one solve.
    std::vector<PairList<Scalar>> pairs;
    for (const int memory : kMemories) {
      HFOPT_ASSIGN_OR_RETURN(CgResult<Scalar> first, Solve(theta, /*cursor=*/0, {}, memory, kMaxFirst, 0.01));
      pairs.push_back(std::move(first.pairs));
      if (memory == kMemories[std::size(kMemories) - 1]) theta += first.last().x;
    }
    Json answer = {{"damping", damping_}, {"residuals", kResiduals}};
    HFOPT_ASSIGN_OR_RETURN(answer["none"], IterationsTo(theta, {}, kMemories[0]));
    for (size_t i = 0; i < pairs.size(); ++i) {
      HFOPT_ASSIGN_OR_RETURN(answer["m=" + std::to_string(kMemories[i])], IterationsTo(theta, pairs[i], kMemories[i]));
    }
    return answer;
  }

 private:
  absl::StatusOr<CgResult<Scalar>> Solve(const Vector<Scalar>& theta, int64_t cursor, const PairList<Scalar>& pairs,
                                         int memory, int max_iterations, double residual) {
    const DataLayout& layout = objective_.layout();
    const Sample all = DrawSample(layout, DataSet::kTraining, layout.training_examples, 0);
    const Sample sample = DrawSample(layout, DataSet::kTraining, curvature_examples_, cursor);
    HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> gradient, objective_.Gradient(theta, all, {}));
    HFOPT_ASSIGN_OR_RETURN(const auto G, objective_.GaussNewtonAt(theta, sample));
    const Vector<Scalar> none;
    return MinimizeQuadratic<Scalar>(
        {.G = *G, .damping = damping_, .gradient = gradient.gradient, .start = none, .diagonal = none, .pairs = pairs},
        {.max_iterations = max_iterations, .progress_tolerance = 0, .residual_tolerance = residual},
        {.lbfgs = LbfgsMode::kFrozen, .memory = memory});
  }

  // One number for each of kResiduals; null when it was not reached.
  absl::StatusOr<Json> IterationsTo(const Vector<Scalar>& theta, const PairList<Scalar>& pairs, int memory) {
    Json iterations = Json::array();
    for (const double residual : kResiduals) {
      HFOPT_ASSIGN_OR_RETURN(const CgResult<Scalar> result,
                             Solve(theta, curvature_examples_, pairs, memory, kMaxSecond, residual));
      iterations.push_back(result.stop == CgStop::kResidual ? Json(result.iterations) : Json());
    }
    return iterations;
  }

  testing::LocalObjective<Scalar> objective_;
  const double damping_;
  const int64_t curvature_examples_;
};

template <typename Scalar>
absl::StatusOr<Json> Measure(const std::string& file, double damping, int64_t examples, const models::ModelSpec& spec) {
  HFOPT_ASSIGN_OR_RETURN(const auto model, models::MakeModel<Scalar>(spec));
  HFOPT_ASSIGN_OR_RETURN(Vector<Scalar> theta, cli::ReadParameters<Scalar>(file));
  return Systems<Scalar>(*model, damping, examples).Measure(std::move(theta));
}

}  // namespace
}  // namespace hfopt

int main(int argc, char** argv) {
  CLI::App app("Counts CG iterations with and without L-BFGS preconditioner at trained parameters",
               "hfopt_preconditioner_bench");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  std::string file, scalar = "float32";
  double damping = 0;
  int64_t examples = 0;
  hfopt::models::ModelSpec spec;
  app.add_option("PARAMETERS", file)->required();
  app.add_option("LAMBDA", damping)->required();
  app.add_option("CURVATURE_EXAMPLES", examples)->required();
  app.add_option("--element-type", scalar)->check(CLI::IsMember({"float32", "float64"}));
  hfopt::cli::AddModelFlags(app, spec);
  CLI11_PARSE(app, argc, argv);
  if (spec.data.empty()) spec.data = hfopt::cli::FindData(spec.task, hfopt::cli::ProgramPath());
  const auto answer = scalar == "float64" ? hfopt::Measure<double>(file, damping, examples, spec)
                                          : hfopt::Measure<float>(file, damping, examples, spec);
  if (!answer.ok()) {
    std::cerr << "hfopt_preconditioner_bench: " << answer.status() << "\n";
    return 1;
  }
  std::cout << *answer << "\n";
  return 0;
}
