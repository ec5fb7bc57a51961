#ifndef HFOPT_PROTO_WIRE_STATUS_H_
#define HFOPT_PROTO_WIRE_STATUS_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hfopt::wire {

// Code and message, unchanged: the codes of both are google.rpc.Code. Payloads and details are left behind.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_STATUS_H_
