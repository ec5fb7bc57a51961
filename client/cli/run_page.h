#ifndef HFOPT_CLIENT_CLI_RUN_PAGE_H_
#define HFOPT_CLIENT_CLI_RUN_PAGE_H_

#include <string>
#include <vector>

#include "hfopt/v1/run.pb.h"

namespace hfopt::cli {

// "an4" of "runs/an4".
std::string IdOf(const v1::Run& run);

// "waiting for workers (1 of 2 shards served)", "ended: target reached (held-out loss 0.99 <= 1)".
std::string DescribeState(const v1::Run& run);

// A line for each phase: seconds and share.
std::string DescribeSeconds(const v1::PhaseSeconds& seconds);

// Everything about a run, to be read.
std::string RunPage(const v1::Run& run);

// A line for each run.
std::string RunList(const std::vector<v1::Run>& runs);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_RUN_PAGE_H_
