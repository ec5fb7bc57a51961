#include "server/run/memory.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace hfopt::server {

int64_t VectorsHeld(const OptimizerOptions& options, int shards, bool bfloat16_products) {
  const auto& cg = options.conjugate_gradient;
  const bool lbfgs = options.preconditioner.lbfgs != LbfgsMode::kNone;
  const bool flexible = options.preconditioner.lbfgs == LbfgsMode::kFlexible;
  int64_t kept = 1;
  for (double next = 1; std::ceil(next) <= cg.max_iterations;) {
    const double here = std::ceil(next);
    ++kept;
    while (std::ceil(next) <= here) next *= cg.kept_iterate_ratio;
  }
  return 4 + 8 + 2 * (flexible ? cg.orthogonalization_depth : 1) + kept +
         (lbfgs ? 5 * options.preconditioner.memory : 0) + 4 +
         (shards + 1) * (options.preconditioner.diagonal != DiagonalMode::kNone ? 2 : 1) + (bfloat16_products ? (shards + 1) / 2 + 1 : 0);
}

int64_t BytesNeeded(const OptimizerOptions& options, int shards, int64_t num_parameters, int element_size) {
  return VectorsHeld(options, shards) * num_parameters * element_size;
}

absl::Status CheckMemory(const OptimizerOptions& options, int shards, int64_t num_parameters, int element_size,
                         int64_t limit_bytes, bool bfloat16_products) {
  const int64_t vectors = VectorsHeld(options, shards, bfloat16_products);
  const double needed = static_cast<double>(vectors) * num_parameters * element_size;
  if (needed <= static_cast<double>(limit_bytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the run needs ", needed / (1 << 20), " MiB (", vectors, " vectors of ", num_parameters, " x ", element_size,
      " bytes), the server allows ", limit_bytes / (1 << 20),
      " MiB; lower shards, preconditioner.memory or conjugate_gradient.max_iterations, or raise the server's --memory-limit"));
}

}  // namespace hfopt::server
