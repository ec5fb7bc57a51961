#ifndef HFOPT_CLIENT_CLI_CONFORMANCE_LINE_H_
#define HFOPT_CLIENT_CLI_CONFORMANCE_LINE_H_

#include <cstdint>
#include <vector>

#include "client/cli/conformance/lab.h"
#include "client/cli/conformance/numbers.h"

namespace hfopt::conformance {

// A run of parameters.
struct Block {
  int64_t begin = 0;
  int64_t size = 0;
};
// Everything, and runs that cover it: a mistake in a few parameters is small against the whole gradient, and not
// against its block.
std::vector<Block> Blocks(int64_t n);

// +-1 in the block, 0 elsewhere.
Vector RandomSigns(int64_t n, const Block& block, uint64_t seed);

// Derivatives of the loss along theta + t d at t = 0, from one request. The longest step changes a parameter by `reach`
// times Lab::step; there are `levels` steps, each half as long as the one before (fewer in float32).
absl::StatusOr<LineDerivatives> DerivativesAlong(Lab& lab, Dialogue& session, const Vector& theta, const Vector& d,
                                                 const Window& window, double reach = 0.125, int levels = 16);

}  // namespace hfopt::conformance

#endif  // HFOPT_CLIENT_CLI_CONFORMANCE_LINE_H_
