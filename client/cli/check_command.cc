// hfopt check: are a worker's derivatives right? Takes the place of a server for one worker and compares its answers
// with one another.

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <stop_token>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/parameter_file.h"
#include "client/cli/stop_on_signal.h"
#include "client/models/status_macros.h"
#include "core/derivative_check.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "hfopt/v1/run_service.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "server/evaluation/evaluation_service.h"
#include "server/evaluation/remote_objective.h"
#include "server/evaluation/worker_pool.h"

namespace hfopt::cli {
namespace {

struct CheckFlags {
  std::string listen = "127.0.0.1:7448";
  std::string run_id = "check";
  std::string element_type = "float64";
  std::string from;
  int64_t samples = 256;
  int probes = 3;
  int shards = 2;
  uint64_t seed = 1;

  v1::ElementType proto_type() const {
    return element_type == "float64" ? v1::ELEMENT_TYPE_FLOAT64 : v1::ELEMENT_TYPE_FLOAT32;
  }
};

// Workers ask for their run's options before they join it.
class RunDescription final : public v1::RunService::CallbackService {
 public:
  explicit RunDescription(const CheckFlags& flags) {
    run_.set_name(absl::StrCat("runs/", flags.run_id));
    run_.set_state(v1::RUN_STATE_RUNNING);
    run_.mutable_options()->set_element_type(flags.proto_type());
    run_.mutable_options()->set_shards(flags.shards);
  }

  grpc::ServerUnaryReactor* GetRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request,
                                   v1::GetRunResponse* response) override {
    *response->mutable_run() = run_;
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(request->name() == run_.name()
                        ? grpc::Status::OK
                        : grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("only ", run_.name(), " is here")));
    return reactor;
  }

 private:
  v1::Run run_;
};

template <typename Scalar>
absl::StatusOr<std::vector<DerivativeCheckResult>> CheckWorkers(server::WorkerPool& pool, const CheckFlags& flags) {
  pool.SetShards(flags.shards);
  HFOPT_ASSIGN_OR_RETURN(const server::ModelDescription model, pool.AwaitWorkers());
  pool.Expect(model);
  std::cerr << "checking " << model.signature << ": " << FormatCount(model.num_parameters) << " parameters, "
            << FormatCount(model.training_examples) << " training examples" << std::endl;
  server::RemoteObjective<Scalar> objective(absl::StrCat("runs/", flags.run_id), pool, model.num_parameters,
                                            {.shards = flags.shards,
                                             .training_examples = model.training_examples,
                                             .held_out_examples = model.held_out_examples},
                                            /*options=*/{});
  HFOPT_ASSIGN_OR_RETURN(const Vector<Scalar> theta, flags.from.empty() ? objective.InitialParameters(flags.seed)
                                                                        : ReadParameters<Scalar>(flags.from));
  if (theta.size() != model.num_parameters) {
    return absl::InvalidArgumentError(absl::StrCat("--from ", flags.from, " has ", theta.size(),
                                                   " parameters; the worker's model has ", model.num_parameters));
  }
  return CheckDerivatives<Scalar>(objective, theta,
                                  {.probes = flags.probes, .seed = flags.seed, .examples = flags.samples});
}

void PrintResults(const std::vector<DerivativeCheckResult>& results, OutputFormat format) {
  if (format == OutputFormat::kJson) {
    nlohmann::ordered_json checks = nlohmann::ordered_json::array();
    for (const DerivativeCheckResult& r : results) {
      checks.push_back(
          {{"name", r.name}, {"passed", r.passed}, {"error", r.error}, {"limit", r.limit}, {"meaning", r.meaning}});
    }
    std::cout << nlohmann::ordered_json{{"checks", std::move(checks)}}.dump(1) << "\n";
    return;
  }
  Table table({{"CHECK"},
               {"RESULT"},
               {"ERROR", Table::Align::kRight},
               {"LIMIT", Table::Align::kRight},
               {"WHAT IS COMPARED; WHAT A FAILURE MEANS"}});
  for (const DerivativeCheckResult& r : results) {
    table.AddRow({r.name, r.passed ? "passed" : "FAILED", absl::StrFormat("%.1e", r.error),
                  absl::StrFormat("%.0e", r.limit), r.meaning});
  }
  std::cout << table.ToString();
}

absl::Status Check(const CheckFlags& flags, const Context& context) {
  const StopOnSignal signals;
  const auto pool = std::make_shared<server::WorkerPool>(
      server::WorkerPool::Options{.run_name = absl::StrCat("runs/", flags.run_id), .element_type = flags.proto_type()});
  const std::stop_callback interrupt(signals.token(), [&pool] { pool->Interrupt(absl::CancelledError("")); });

  server::TransferWatchdog watchdog(absl::Minutes(1));
  server::EvaluationService sessions(
      [&](const v1::Hello& hello) -> absl::StatusOr<std::shared_ptr<server::WorkerPool>> {
        if (hello.run_id() == flags.run_id) return pool;
        return absl::NotFoundError(
            absl::StrCat("run ", hello.run_id(), " is not checked here; join run ", flags.run_id));
      },
      watchdog);
  RunDescription description(flags);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(flags.listen, grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  sessions.AddTo(builder);
  builder.RegisterService(&description);
  const std::unique_ptr<grpc::Server> grpc_server = builder.BuildAndStart();
  if (grpc_server == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", flags.listen,
                     ": the address is in use or not one of this machine's; choose another with --listen"));
  }
  sessions.Start();
  const std::string address =
      port == 0 ? flags.listen : absl::StrCat(flags.listen.substr(0, flags.listen.rfind(':') + 1), port);
  std::cerr << "waiting for a worker, for example: hfopt-worker --server " << address << " --run " << flags.run_id
            << std::endl;

  const auto results = flags.proto_type() == v1::ELEMENT_TYPE_FLOAT64 ? CheckWorkers<double>(*pool, flags)
                                                                      : CheckWorkers<float>(*pool, flags);
  v1::Finished finished;
  finished.set_reason("CHECKED");
  finished.set_detail(results.ok() ? "the derivative checks are done" : std::string(results.status().message()));
  pool->Finish(finished);
  constexpr std::chrono::seconds kGrace(5);
  grpc_server->Shutdown(std::chrono::system_clock::now() + kGrace);
  grpc_server->Wait();
  sessions.Stop();

  HFOPT_RETURN_IF_ERROR(results.status());
  PrintResults(*results, context.output);
  const auto failed = std::count_if(results->begin(), results->end(), [](const auto& r) { return !r.passed; });
  if (failed == 0) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat(failed, " of ", results->size(), " checks failed"));
}

}  // namespace

void AddCheckCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<CheckFlags>();
  CLI::App& command = AddCommand(
      app, context, "check",
      "Check a worker's derivatives: waits for it in the place of a server, and compares its answers with one another "
      "(hfopt conformance does this and more, and knows which mistakes a product can hide)",
      [&context, flags] { return Check(*flags, context); });
  command.add_option("--listen", flags->listen, "Address the worker is to dial; port 0: chosen by the system")
      ->type_name("ADDRESS")
      ->capture_default_str();
  command.add_option("--run", flags->run_id, "Run the worker is to join")->type_name("ID")->capture_default_str();
  command.add_option("--element-type", flags->element_type, "Number format; limits are tighter for float64")
      ->check(CLI::IsMember({"float32", "float64"}).description(""))
      ->type_name("float32|float64")
      ->capture_default_str();
  command.add_option("--samples", flags->samples, "Training examples of the sample that is looked at")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  command.add_option("--probes", flags->probes, "Random directions for each check")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  command.add_option("--shards", flags->shards, "Logical shards")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  command.add_option("--seed", flags->seed, "Seed of the parameters and directions")->capture_default_str();
  command
      .add_option("--from", flags->from,
                  "Check at the parameters of this safetensors file; by default at the model's initial ones")
      ->type_name("FILE");
  AddOutputOption(command, context);
}

}  // namespace hfopt::cli
