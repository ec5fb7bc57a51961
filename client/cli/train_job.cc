#include "client/cli/train_job.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "client/cli/format.h"
#include "client/cli/replace_file.h"
#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"

namespace hfopt::cli {
namespace {

using Json = nlohmann::ordered_json;

// Visits the fields of a spec, const or not, by their names in the file.
template <typename Spec, typename Visitor>
void VisitSpec(Spec& spec, Visitor visit) {
  visit("task", spec.task);
  visit("data", spec.data);
  visit("layers", spec.layers);
  visit("activation", spec.activation);
  visit("initialization", spec.initialization);
  visit("l2", spec.l2);
  visit("data_seed", spec.seed);
  visit("fraction", spec.fraction);
  visit("grid", spec.grid);
}

}  // namespace

std::string TrainJob::ToJson() const {
  Json json = {{"run", run_id}, {"workers", workers}, {"model", Json::object()}};
  VisitSpec(model, [&](const char* name, const auto& value) { json["model"][name] = value; });
  std::string options_json;
  (void)google::protobuf::util::MessageToJsonString(options, &options_json);  // what was not asked for is left out
  json["options"] = Json::parse(options_json);
  return json.dump(2);
}

absl::Status SaveTrainJob(const std::string& directory, const TrainJob& job) {
  return ReplaceFile(absl::StrCat(directory, "/", kTrainJobFile), job.ToJson() + "\n");
}

absl::StatusOr<TrainJob> LoadTrainJob(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kTrainJobFile);
  std::ifstream file(path);
  if (!file)
    return absl::NotFoundError(absl::StrCat(path, ": no such file; ", directory, " is no directory of hfopt train"));
  TrainJob job;
  try {
    const Json json = Json::parse(file);
    json.at("run").get_to(job.run_id);
    json.at("workers").get_to(job.workers);
    VisitSpec(job.model, [&](const char* name, auto& value) { json.at("model").at(name).get_to(value); });
    const auto status = google::protobuf::util::JsonStringToMessage(json.at("options").dump(), &job.options);
    if (!status.ok()) {
      return absl::DataLossError(
          absl::StrCat(path, ": options: ", std::string(status.message().data(), status.message().size())));
    }
  } catch (const Json::exception& error) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: ", error.what()));
  }
  return job;
}

}  // namespace hfopt::cli
