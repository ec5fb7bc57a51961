#ifndef HFOPT_CLIENT_CLI_TIME_LEFT_H_
#define HFOPT_CLIENT_CLI_TIME_LEFT_H_

#include <optional>
#include <vector>

#include "hfopt/v1/run.pb.h"

namespace hfopt::cli {

// Seconds until the first of the run's budgets is spent, or its target reached, at the pace of the last iterations;
// iterations become longer while samples grow. The loss is taken to fall as a + b / iteration: on AN4 that names the
// end within 15 % from a third of the run on (linear or logarithmic courses are several times too hopeful there).
// Nothing when no budget or target is set, or too little is known yet. `reports` are all of the run, in order;
// `options` have every field filled in.
std::optional<double> EstimateSecondsLeft(const std::vector<v1::IterationReport>& reports,
                                          const v1::RunOptions& options);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_TIME_LEFT_H_
