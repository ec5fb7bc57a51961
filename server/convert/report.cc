#include "server/convert/report.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "server/convert/enum_table.h"

namespace hfopt::server {
namespace {

constexpr EnumRow<CgStop, v1::CgStop> kCgStops[] = {
    {CgStop::kSmallProgress, v1::CG_STOP_SMALL_PROGRESS},
    {CgStop::kMaxIterations, v1::CG_STOP_MAX_ITERATIONS},
    {CgStop::kResidual, v1::CG_STOP_RESIDUAL},
    {CgStop::kNoise, v1::CG_STOP_NOISE},
    {CgStop::kNonPositiveCurvature, v1::CG_STOP_NON_POSITIVE_CURVATURE},
    {CgStop::kPreconditionerNotPositive, v1::CG_STOP_PRECONDITIONER_NOT_POSITIVE},
    {CgStop::kNonFinite, v1::CG_STOP_NON_FINITE},
    {CgStop::kZeroResidual, v1::CG_STOP_ZERO_RESIDUAL},
};

constexpr EnumRow<TerminationReason, v1::Termination::Reason> kReasons[] = {
    {TerminationReason::kConverged, v1::Termination::REASON_CONVERGED},
    {TerminationReason::kHeldOutStalled, v1::Termination::REASON_HELD_OUT_STALLED},
    {TerminationReason::kTargetReached, v1::Termination::REASON_TARGET_REACHED},
    {TerminationReason::kIterationBudget, v1::Termination::REASON_ITERATION_BUDGET},
    {TerminationReason::kProductBudget, v1::Termination::REASON_PRODUCT_BUDGET},
    {TerminationReason::kExamplePassBudget, v1::Termination::REASON_EXAMPLE_PASS_BUDGET},
    {TerminationReason::kTooManyRejections, v1::Termination::REASON_TOO_MANY_REJECTIONS},
    {TerminationReason::kWallTimeBudget, v1::Termination::REASON_WALL_TIME_BUDGET},
    {TerminationReason::kCancelled, v1::Termination::REASON_CANCELLED},
};

absl::Status ReadCount(const char* name, uint64_t count, int64_t& value) {
  if (count > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("cost.", name, " is ", count, "; allowed: up to ", std::numeric_limits<int64_t>::max()));
  }
  value = static_cast<int64_t>(count);
  return absl::OkStatus();
}

}  // namespace

v1::CgStop CgStopToProto(CgStop stop) { return ToProto(kCgStops, stop); }

absl::StatusOr<CgStop> CgStopFromProto(v1::CgStop stop) {
  if (const auto known = FromProto(kCgStops, stop)) return *known;
  return absl::InvalidArgumentError(absl::StrCat("cg_stop is ", stop, ", which is no reason known to this version"));
}

v1::Termination::Reason TerminationReasonToProto(TerminationReason reason) { return ToProto(kReasons, reason); }

absl::StatusOr<TerminationReason> TerminationReasonFromProto(v1::Termination::Reason reason) {
  if (const auto known = FromProto(kReasons, reason)) return *known;
  return absl::InvalidArgumentError(
      absl::StrCat("termination.reason is ", reason, ", which is no reason known to this version"));
}

v1::Termination TerminationToProto(const Termination& termination) {
  v1::Termination message;
  message.set_reason(TerminationReasonToProto(termination.reason));
  message.set_detail(termination.detail);
  return message;
}

absl::StatusOr<Termination> TerminationFromProto(const v1::Termination& message) {
  HFOPT_ASSIGN_OR_RETURN(const TerminationReason reason, TerminationReasonFromProto(message.reason()));
  return Termination{reason, message.detail()};
}

v1::Cost CostToProto(const Cost& cost, int64_t training_examples) {
  v1::Cost message;
  message.set_gradients(cost.gradients);
  message.set_gradient_examples(cost.gradient_examples);
  message.set_linearizations(cost.linearizations);
  message.set_linearization_examples(cost.linearization_examples);
  message.set_products(cost.products);
  message.set_product_examples(cost.product_examples);
  message.set_losses(cost.losses);
  message.set_loss_examples(cost.loss_examples);
  message.set_exchanges(cost.exchanges);
  if (training_examples > 0) message.set_example_passes(cost.ExamplePasses(training_examples));
  return message;
}

absl::StatusOr<Cost> CostFromProto(const v1::Cost& message) {
  Cost cost;
  HFOPT_RETURN_IF_ERROR(ReadCount("gradients", message.gradients(), cost.gradients));
  HFOPT_RETURN_IF_ERROR(ReadCount("gradient_examples", message.gradient_examples(), cost.gradient_examples));
  HFOPT_RETURN_IF_ERROR(ReadCount("linearizations", message.linearizations(), cost.linearizations));
  HFOPT_RETURN_IF_ERROR(
      ReadCount("linearization_examples", message.linearization_examples(), cost.linearization_examples));
  HFOPT_RETURN_IF_ERROR(ReadCount("products", message.products(), cost.products));
  HFOPT_RETURN_IF_ERROR(ReadCount("product_examples", message.product_examples(), cost.product_examples));
  HFOPT_RETURN_IF_ERROR(ReadCount("losses", message.losses(), cost.losses));
  HFOPT_RETURN_IF_ERROR(ReadCount("loss_examples", message.loss_examples(), cost.loss_examples));
  HFOPT_RETURN_IF_ERROR(ReadCount("exchanges", message.exchanges(), cost.exchanges));
  return cost;
}

v1::IterationReport ReportToProto(const IterationReport& report, int64_t training_examples) {
  v1::IterationReport message;
  message.set_iteration(report.iteration);
  message.set_accepted(report.accepted);
  message.set_training_loss(report.training_loss);
  message.set_held_out_loss(report.held_out_loss);
  message.mutable_metrics()->insert(report.metrics.begin(), report.metrics.end());
  message.set_gradient_norm(report.gradient_norm);
  message.set_gradient_noise(report.gradient_noise);
  message.set_damping(report.damping);
  message.set_next_damping(report.next_damping);
  message.set_reduction_ratio(report.reduction_ratio);
  message.set_cg_iterations(report.cg_iterations);
  message.set_cg_stop(CgStopToProto(report.cg_stop));
  message.set_chosen_iterate(report.chosen_iterate);
  message.set_step_length(report.step_length);
  message.set_losses_evaluated(report.losses_evaluated);
  message.set_gradient_examples(report.gradient_examples);
  message.set_curvature_examples(report.curvature_examples);
  message.set_held_out_examples(report.held_out_examples);
  message.set_pairs_kept(report.pairs_kept);
  message.set_pairs_skipped(report.pairs_skipped);
  *message.mutable_cost() = CostToProto(report.cost, training_examples);
  return message;
}

}  // namespace hfopt::server
