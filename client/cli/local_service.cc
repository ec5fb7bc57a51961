#include "client/cli/local_service.h"

#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/model_flags.h"

namespace hfopt::cli {
namespace {

// The server's last word of its start, before the address.
constexpr char kListening[] = "listening on ";

// What the server's process tells the thread that waits for it.
struct Startup {
  std::mutex mu;
  std::condition_variable_any changed;
  std::optional<absl::StatusOr<std::string>> address;

  void Set(absl::StatusOr<std::string> value) {
    const std::lock_guard<std::mutex> lock(mu);
    if (!address.has_value()) address = std::move(value);
    changed.notify_all();
  }
};

// Where the server is to listen: a socket in the directory, whose permissions then decide who reaches it; a free port where the path is
// longer than that of a socket may be.
std::string AddressIn(const std::string& directory) {
  const std::string socket = absl::StrCat(directory, "/server.sock");
  return socket.size() < sizeof(sockaddr_un::sun_path) ? absl::StrCat("unix:", socket) : "127.0.0.1:0";
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalService>> LocalService::Start(Options options, std::stop_token stop) {
  std::unique_ptr<LocalService> service(new LocalService(std::move(options)));
  const auto startup = std::make_shared<Startup>();
  const std::string log = service->LogOf("server");
  const auto on_failure = service->options_.on_failure;
  service->server_ = std::make_unique<SupervisedProcess>(SupervisedProcess::Options{
      .command = {service->options_.server_program, "--address", AddressIn(service->options_.directory), "--state-dir",
                  absl::StrCat(service->options_.directory, "/server")},
      .log_file = log,
      .on_line =
          [startup](const std::string& line) {
            const size_t found = line.find(kListening);
            if (found != std::string::npos) startup->Set(line.substr(found + strlen(kListening)));
          },
      .on_end =
          [startup, on_failure, log](bool, const std::string& how) {
            const absl::Status status =
                absl::UnavailableError(absl::StrCat("the server ", how, ": ", LastLine(log), "\nIts log: ", log));
            startup->Set(status);
            on_failure(status);
          }});

  std::unique_lock<std::mutex> lock(startup->mu);
  if (!startup->changed.wait(lock, stop, [&] { return startup->address.has_value(); })) {
    return absl::CancelledError("stopped before the server was there");
  }
  if (!startup->address->ok()) return startup->address->status();
  service->address_ = **startup->address;
  return service;
}

LocalService::~LocalService() { Stop(); }

std::string LocalService::LogOf(const std::string& process) const {
  return absl::StrCat(options_.directory, "/", process, ".log");
}

void LocalService::StartWorkers(int count, const std::string& run_id, const std::vector<std::string>& arguments) {
  for (int i = 1; i <= count; ++i) {
    const std::string id = absl::StrCat("worker-", i);
    const std::string log = LogOf(id);
    std::vector<std::string> command = {options_.worker_program, "--server", address_, "--run", run_id,
                                        "--worker-id",           id};
    command.insert(command.end(), arguments.begin(), arguments.end());
    workers_.push_back(std::make_unique<SupervisedProcess>(SupervisedProcess::Options{
        .command = std::move(command),
        .log_file = log,
        .max_restarts = options_.max_worker_restarts,
        .on_restart =
            [this, id](const std::string& how) {
              options_.on_event(absl::StrCat(id, " ", how, "; starting it again"));
            },
        .on_end =
            [this, id, log](bool ok, const std::string& how) {
              if (ok) return;  // the run is over
              options_.on_failure(absl::UnavailableError(absl::StrCat(id, " ", how, " and was started again ",
                                                                      options_.max_worker_restarts,
                                                                      " times: ", LastLine(log), "\nIts log: ", log)));
            }}));
  }
}

void LocalService::Stop() {
  for (const auto& worker : workers_) worker->RequestStop();
  workers_.clear();
  server_.reset();
}

absl::StatusOr<std::string> LocalService::FindProgram(const std::string& name) {
  const std::filesystem::path here = std::filesystem::path(ProgramPath()).parent_path();
  std::vector<std::filesystem::path> places = {here, here / "../../server"};
  if (const char* path = std::getenv("PATH"); path != nullptr) {
    for (absl::string_view place : absl::StrSplit(path, ':', absl::SkipEmpty()))
      places.emplace_back(std::string(place));
  }
  for (const std::filesystem::path& place : places) {
    const std::string found = (place / name).lexically_normal().string();
    std::error_code ignored;
    if (access(found.c_str(), X_OK) == 0 && std::filesystem::is_regular_file(found, ignored)) return found;
  }
  return absl::NotFoundError(
      absl::StrCat(name, " is neither beside this program nor on PATH; build it, or say where it is with --",
                   name.substr(name.find('-') + 1), "-binary"));
}

}  // namespace hfopt::cli
