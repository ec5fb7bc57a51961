#ifndef HFOPT_PROTO_WIRE_STATUS_H_
#define HFOPT_PROTO_WIRE_STATUS_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hfopt::wire {

// The text, or, if it has more bytes than `most`, its beginning and how many it has.
std::string Shortened(const std::string& text, size_t most);

// Code and message: the codes of both are google.rpc.Code. Payloads and details are left behind. A message of over 4,000 bytes is cut, because a
// status travels in HTTP/2 headers, of which a client takes 8 KiB by default.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_STATUS_H_
