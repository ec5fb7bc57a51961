#ifndef HFOPT_SERVER_CONVERT_REPORT_H_
#define HFOPT_SERVER_CONVERT_REPORT_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/conjugate_gradient.h"
#include "core/cost.h"
#include "core/iteration_report.h"
#include "core/termination.h"
#include "hfopt/v1/run.pb.h"

namespace hfopt::server {

// The fields that only a server with a clock and workers knows (seconds, end_time, reissued, hedged) are left unset.
v1::IterationReport ReportToProto(const IterationReport& report, int64_t training_examples);

// `training_examples` is the unit of example_passes; 0, when it is not known, leaves that field unset.
v1::Cost CostToProto(const Cost& cost, int64_t training_examples);
// INVALID_ARGUMENT when a count is above 2^63 - 1.
absl::StatusOr<Cost> CostFromProto(const v1::Cost& cost);

// The conversions from proto answer INVALID_ARGUMENT for UNSPECIFIED and for numbers that this version does not know.
v1::CgStop CgStopToProto(CgStop stop);
absl::StatusOr<CgStop> CgStopFromProto(v1::CgStop stop);

v1::Termination::Reason TerminationReasonToProto(TerminationReason reason);
absl::StatusOr<TerminationReason> TerminationReasonFromProto(v1::Termination::Reason reason);

v1::Termination TerminationToProto(const Termination& termination);
absl::StatusOr<Termination> TerminationFromProto(const v1::Termination& termination);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_CONVERT_REPORT_H_
