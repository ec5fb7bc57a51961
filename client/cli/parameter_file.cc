#include "client/cli/parameter_file.h"

#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/replace_file.h"
#include "client/models/status_macros.h"
#include "proto/wire/safetensors.h"

namespace hfopt::cli {

constexpr char kTensor[] = "theta";

template <typename Scalar>
absl::Status WriteParameters(const std::string& path, const std::string& run_id,
                             const client::Parameters<Scalar>& parameters, std::map<std::string, std::string> more) {
  more["hfopt.run"] = run_id;
  more["hfopt.iteration"] = absl::StrCat(parameters.iteration);
  more["hfopt.held_out_loss"] = absl::StrCat(parameters.held_out_loss);
  HFOPT_RETURN_IF_ERROR(CheckReplaceable(path));
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  const wire::TensorView view = wire::View(kTensor, parameters.theta);
  absl::Status status = wire::WriteSafetensors(temporary, {view}, more);
  std::error_code error;
  if (status.ok()) std::filesystem::rename(temporary, path, error);
  if (error) status = absl::UnknownError(absl::StrCat(path, ": cannot be replaced: ", error.message()));
  if (!status.ok()) std::filesystem::remove(temporary, error);
  return status;
}

template <typename Scalar>
absl::StatusOr<client::Vector<Scalar>> ReadParameters(const std::string& path) {
  HFOPT_ASSIGN_OR_RETURN(const wire::SafetensorsFile file, wire::ReadSafetensors(path));
  return file.Vector<Scalar>(kTensor);
}

template absl::Status WriteParameters(const std::string&, const std::string&, const client::Parameters<float>&,
                                      std::map<std::string, std::string>);
template absl::Status WriteParameters(const std::string&, const std::string&, const client::Parameters<double>&,
                                      std::map<std::string, std::string>);
template absl::StatusOr<client::Vector<float>> ReadParameters(const std::string&);
template absl::StatusOr<client::Vector<double>> ReadParameters(const std::string&);

}  // namespace hfopt::cli
