#ifndef HFOPT_CLIENT_MODELS_STATUS_MACROS_H_
#define HFOPT_CLIENT_MODELS_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// As in core/status_macros.h; models do not depend on the optimizer.
#ifndef HFOPT_RETURN_IF_ERROR

// Returns from the enclosing function when `expr` is not OK.
#define HFOPT_RETURN_IF_ERROR(expr)                                                  \
  do {                                                                               \
    if (absl::Status hfopt_status = (expr); !hfopt_status.ok()) return hfopt_status; \
  } while (false)

// HFOPT_ASSIGN_OR_RETURN(auto value, MakeValue());
#define HFOPT_ASSIGN_OR_RETURN(lhs, expr) \
  HFOPT_ASSIGN_OR_RETURN_IMPL_(HFOPT_CONCAT_(hfopt_statusor_, __LINE__), lhs, expr)
#define HFOPT_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr)  \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = *std::move(statusor)
#define HFOPT_CONCAT_(a, b) HFOPT_CONCAT_IMPL_(a, b)
#define HFOPT_CONCAT_IMPL_(a, b) a##b

#endif  // HFOPT_RETURN_IF_ERROR

#endif  // HFOPT_CLIENT_MODELS_STATUS_MACROS_H_
