#include "client/cli/model_flags.h"

#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"

namespace hfopt::cli {

void AddModelFlags(CLI::App& command, models::ModelSpec& spec) {
  const std::string group = "Model";
  command
      .add_option(
          "--task", spec.task,
          "What to learn: an4 (speech, monophone states), an4-cd (tied triphone states), digits, idx-autoencoder, "
          "inverse (a conductivity field), pinn-poisson, pinn-convection (physics-informed networks); hfopt train takes "
          "--preset deterministic --element-type float64 for the last three")
      ->envname("HFOPT_TASK")
      ->type_name("TASK")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--data", spec.data,
                  "Folder of the task's data; by default what comes with hfopt: AN4, digits, and CURVES for "
                  "idx-autoencoder; inverse and pinn-* need none")
      ->envname("HFOPT_DATA")
      ->type_name("DIR")
      ->group(group);
  command.add_option("--layers", spec.layers, "Widths from the inputs to the outputs, for example 440-256-256-102")
      ->envname("HFOPT_LAYERS")
      ->type_name("WIDTHS")
      ->group(group);
  command
      .add_option("--activation", spec.activation,
                  "sigmoid, tanh, relu or linear for all hidden layers, or one for each with commas between")
      ->envname("HFOPT_ACTIVATION")
      ->type_name("NAME")
      ->group(group);
  command.add_option("--initialization", spec.initialization, "glorot or sparse")
      ->envname("HFOPT_INITIALIZATION")
      ->type_name("NAME")
      ->group(group);
  command.add_option("--l2", spec.l2, "Regulariser: adds l2 / 2 |theta|^2 to the loss")
      ->envname("HFOPT_L2")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--data-seed", spec.seed,
                  "Seed of the examples' order, or of synthetic data; equal on all workers of a run")
      ->envname("HFOPT_DATA_SEED")
      ->capture_default_str()
      ->group(group);
  command.add_option("--fraction", spec.fraction, "Part of AN4's training utterances to use, above 0 to 1")
      ->envname("HFOPT_FRACTION")
      ->capture_default_str()
      ->group(group);
  command.add_option("--grid", spec.grid, "Cells along a side of the field of inverse")
      ->envname("HFOPT_GRID")
      ->type_name("CELLS")
      ->capture_default_str()
      ->group(group);
}

std::vector<std::string> ModelArguments(const models::ModelSpec& spec) {
  std::vector<std::string> arguments = {"--task", spec.task};
  const auto add_text = [&](const char* name, const std::string& text) {
    if (!text.empty()) arguments.insert(arguments.end(), {name, text});
  };
  add_text("--data", spec.data);
  add_text("--layers", spec.layers);
  add_text("--activation", spec.activation);
  add_text("--initialization", spec.initialization);
  add_text("--l2", absl::StrCat(spec.l2));
  add_text("--data-seed", absl::StrCat(spec.seed));
  add_text("--fraction", absl::StrCat(spec.fraction));
  add_text("--grid", absl::StrCat(spec.grid));
  return arguments;
}

std::string ProgramPath() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).string();
}

std::string FindData(const std::string& task, const std::string& program) {
  const std::string folder = task == "an4" || task == "an4-cd" ? "an4"
                             : task == "digits"                ? "digits"
                             : task == "idx-autoencoder"       ? "curves"
                                                               : "";
  if (folder.empty()) return "";
  for (std::filesystem::path above = std::filesystem::path(program).parent_path();; above = above.parent_path()) {
    for (const char* place : {"share/hfopt", "client/models"}) {
      std::error_code ignored;
      const std::filesystem::path found = above / place / folder;
      if (std::filesystem::is_directory(found, ignored)) return found.string();
    }
    if (above == above.parent_path()) return "";
  }
}

}  // namespace hfopt::cli
