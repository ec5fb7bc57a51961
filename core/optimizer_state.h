#ifndef HFOPT_CORE_OPTIMIZER_STATE_H_
#define HFOPT_CORE_OPTIMIZER_STATE_H_

#include <cstdint>
#include <limits>
#include <map>
#include <string>

#include "core/cost.h"
#include "core/curvature_pairs.h"
#include "core/vector.h"

namespace hfopt {

// All that the next iteration depends on besides options and objective. A value: an iteration makes a new one. Saved whole, it resumes a
// run with the same bits.
template <typename Scalar>
struct OptimizerState {
  int64_t iteration = 0;  // finished iterations
  Vector<Scalar> theta;
  double damping = 0;  // lambda; before the first iteration options.damping.initial
  int cg_limit = 0;    // iterations at which the next solve is cut; 0: as at the start

  // The last CG iterate d_N of the solve before, not yet decayed; empty: start at zero.
  Vector<Scalar> warm_start;
  // Of the solve before; empty unless L-BFGS is on.
  PairList<Scalar> pairs;

  // L(theta) on the first held_out_examples of each shard; NaN before the first iteration.
  double held_out_loss = std::numeric_limits<double>::quiet_NaN();
  int64_t held_out_examples = 0;
  std::map<std::string, double> held_out_metrics;  // of the model there: for reports, no step depends on them
  double gradient_norm = std::numeric_limits<double>::infinity();  // of the last gradient
  int64_t gradient_examples = 0;                                   // of the last gradient sample

  int64_t next_gradient_size = 0;  // examples of the next gradient sample
  int64_t gradient_cursor = 0;     // examples drawn so far: where the next samples begin
  int64_t curvature_cursor = 0;

  int consecutive_rejections = 0;
  int stalled_iterations = 0;  // in a row

  Cost cost;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_OPTIMIZER_STATE_H_
