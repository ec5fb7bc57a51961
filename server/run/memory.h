#ifndef HFOPT_SERVER_RUN_MEMORY_H_
#define HFOPT_SERVER_RUN_MEMORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "core/optimizer_options.h"

namespace hfopt::server {

// How many vectors of n elements the server holds for a run, at most and at once:
//   theta and warm start of the old and the new state                            4
//   g, d_0, x, r, z, the sent direction, the second moment and D                 8
//   directions with their products, orthogonalization depth k (1 unless flexible) 2 k
//   kept CG iterates, ceil(ratio^j) up to the cap N, and the last                K(N, ratio) + 1
//   L-BFGS with memory m: old pairs 2 m, new pairs 2 m, y of the preconditioner m 5 m
//   named copies: theta and three candidate directions                           4
//   answers of S shards waiting for their turn, and one that was asked for
//   twice; twice as many with the second moment                                  S + 1 or 2 S + 2
//   with products in bfloat16: halves of the direction and of S answers            S / 2 + 1
// Pages of shared memory that were written stay with their session: where shards wander between workers of this machine, each of them may
// have as many slots as it ever had answers waiting.
int64_t VectorsHeld(const OptimizerOptions& options, int shards, bool bfloat16_products = false);

int64_t BytesNeeded(const OptimizerOptions& options, int shards, int64_t num_parameters, int element_size);

// RESOURCE_EXHAUSTED with bytes needed and allowed, and what would make the run smaller.
absl::Status CheckMemory(const OptimizerOptions& options, int shards, int64_t num_parameters, int element_size,
                         int64_t limit_bytes, bool bfloat16_products = false);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_MEMORY_H_
