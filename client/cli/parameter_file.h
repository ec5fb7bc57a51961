#ifndef HFOPT_CLIENT_CLI_PARAMETER_FILE_H_
#define HFOPT_CLIENT_CLI_PARAMETER_FILE_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/run_client.h"

namespace hfopt::cli {

// Writes a safetensors file with the tensor "theta" and, as metadata, run, iteration, held-out loss and whatever `more`
// says. An older file is replaced only once the new one is complete.
template <typename Scalar>
absl::Status WriteParameters(const std::string& path, const std::string& run_id,
                             const client::Parameters<Scalar>& parameters,
                             std::map<std::string, std::string> more = {});

// The tensor "theta" of a safetensors file.
template <typename Scalar>
absl::StatusOr<client::Vector<Scalar>> ReadParameters(const std::string& path);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_PARAMETER_FILE_H_
