#ifndef HFOPT_CORE_ITERATION_REPORT_H_
#define HFOPT_CORE_ITERATION_REPORT_H_

#include <cstdint>
#include <map>
#include <string>

#include "core/conjugate_gradient.h"
#include "core/cost.h"

namespace hfopt {

// What happened in one iteration, for people. Nothing depends on it.
struct IterationReport {
  int64_t iteration = 0;  // 1 for the first
  bool accepted = false;
  double training_loss = 0;  // at the old theta, on the gradient sample
  double held_out_loss = 0;  // at the new theta, on the held-out sample
  std::map<std::string, double> metrics;  // at the new theta, on the held-out sample
  double gradient_norm = 0;
  double gradient_noise = 0;  // 0: not measured
  double damping = 0;         // lambda of this solve
  double next_damping = 0;
  double reduction_ratio = 0;  // rho
  int cg_iterations = 0;
  CgStop cg_stop = CgStop::kSmallProgress;
  int chosen_iterate = 0;  // CG iteration of the chosen iterate; 0: none improved
  double step_length = 0;  // alpha; 0: rejected
  int losses_evaluated = 0;
  int64_t gradient_examples = 0;
  int64_t curvature_examples = 0;
  int64_t held_out_examples = 0;
  int pairs_kept = 0;     // by the preconditioner at the end of the solve
  int pairs_skipped = 0;  // for lack of curvature
  Cost cost;              // totals
};

}  // namespace hfopt

#endif  // HFOPT_CORE_ITERATION_REPORT_H_
