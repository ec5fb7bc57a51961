#ifndef HFOPT_CLIENT_CLI_REPORT_PAGE_H_
#define HFOPT_CLIENT_CLI_REPORT_PAGE_H_

#include <string>
#include <vector>

#include "client/cli/run_history.h"

namespace hfopt::cli {

// The page without its data: HTML with the charts' library in it, and the mark where a JSON document goes. What the document
// holds is said in client/cli/report/report.html.
extern const char kReportTemplate[];

// A page, in one file, that shows these runs over each other: held-out loss against seconds, example-passes, synchronisations and
// iterations; CG length, damping, sample sizes, rho.
std::string ReportPage(const std::vector<RunHistory>& histories);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_REPORT_PAGE_H_
