#ifndef HFOPT_CLIENT_CLI_OPTION_SETTER_H_
#define HFOPT_CLIENT_CLI_OPTION_SETTER_H_

#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace hfopt::cli {

// Sets one field of a message of options by its dotted name: "conjugate_gradient.max_iterations=20",
// "damping.rule=continuous". Enums are given by their short names, in any case. INVALID_ARGUMENT says what is wrong and
// lists what is allowed; `options` is unchanged then.
absl::Status SetOption(const std::string& assignment, google::protobuf::Message& options);

// All names and, for enums, values, one line for each: for --help.
std::string DescribeOptions(const google::protobuf::Descriptor& options, const std::string& prefix = "");

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_OPTION_SETTER_H_
