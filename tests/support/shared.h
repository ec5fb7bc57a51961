#ifndef HFOPT_TESTS_SUPPORT_SHARED_H_
#define HFOPT_TESTS_SUPPORT_SHARED_H_

#include "Eigen/Core"
#include "proto/wire/shared_vector.h"

namespace hfopt::testing {

// A copy that can be handed on.
template <typename Scalar>
wire::SharedVector<Scalar> Share(const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>& vector) {
  wire::SharedVector<Scalar> shared = wire::NewSharedVector<Scalar>(vector.size());
  shared.map() = vector;
  return shared;
}

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_SHARED_H_
