#ifndef HFOPT_SERVER_CONVERT_OPTIONS_H_
#define HFOPT_SERVER_CONVERT_OPTIONS_H_

#include "absl/status/statusor.h"
#include "core/optimizer_options.h"
#include "hfopt/v1/run.pb.h"

namespace hfopt::server {

// The preset's options (PRESET_UNSPECIFIED means PRESET_ACCELERATED), overridden by the fields that are present, and
// valid. INVALID_ARGUMENT names the first bad field, its value and what is allowed.
absl::StatusOr<OptimizerOptions> OptionsFromProto(const v1::OptimizerOptions& options);

// Every field filled in. OptionsFromProto of the result is `options` again, whatever the preset, which is kept for
// people to read (PRESET_UNSPECIFIED becomes PRESET_ACCELERATED).
v1::OptimizerOptions OptionsToProto(const OptimizerOptions& options, v1::OptimizerOptions::Preset preset);

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_CONVERT_OPTIONS_H_
