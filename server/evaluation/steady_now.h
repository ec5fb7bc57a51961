#ifndef HFOPT_SERVER_EVALUATION_STEADY_NOW_H_
#define HFOPT_SERVER_EVALUATION_STEADY_NOW_H_

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace hfopt::server {

// The time of day when this was first asked for, and what has gone by since: leases, limits and what is booked do not jump when somebody sets the clock.
inline absl::Time SteadyNow() {
  using Clock = std::chrono::steady_clock;
  static const Clock::time_point begin = Clock::now();
  static const absl::Time begin_of_day = absl::Now();
  return begin_of_day + absl::FromChrono(Clock::now() - begin);
}

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_EVALUATION_STEADY_NOW_H_
