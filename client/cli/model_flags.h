#ifndef HFOPT_CLIENT_CLI_MODEL_FLAGS_H_
#define HFOPT_CLIENT_CLI_MODEL_FLAGS_H_

#include <string>
#include <vector>

#include "client/models/model_factory.h"

namespace CLI {
class App;
}

namespace hfopt::cli {

// Options that say which reference model: --task, --data, --layers and so on, and the environment variables HFOPT_TASK
// and so on.
void AddModelFlags(CLI::App& command, models::ModelSpec& spec);

// The same as arguments: AddModelFlags reads them back as `spec`.
std::vector<std::string> ModelArguments(const models::ModelSpec& spec);

// The absolute path of the running program.
std::string ProgramPath();

// The folder of the task's data that comes with this program: found beside or above `program`, in share/hfopt
// (installed) or client/models (a source tree). Empty when the task has none or it is not there.
std::string FindData(const std::string& task, const std::string& program);

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_MODEL_FLAGS_H_
