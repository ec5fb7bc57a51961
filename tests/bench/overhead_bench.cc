// What the service costs: the same training in this process, and through a server and one worker, real processes on loopback. Both have
// one thread for the model and all cores for the optimizer's arithmetic. Wall time from the first iteration's start to the last one's end, checkpoints included. And what a journal adds to it.
// The argument is the number of iterations: samples grow with them, so that the first ones are those in which the service weighs most.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "client/models/model_factory.h"
#include "nlohmann/json.hpp"
#include "server/run/arithmetic_threads.h"
#include "tests/support/local_objective.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

constexpr char kLayers[] = "440-1024-512-102";  // 1,028,710 parameters
constexpr int kRounds = 3;
constexpr uint64_t kSeed = 1;
constexpr double kJournalSeconds = 10;

v1::OptimizerOptions Options(int iterations) {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  options.mutable_stop()->set_max_iterations(iterations);
  return options;
}

struct Measurement {
  double seconds = 0;
  Vector<float> theta;
  v1::PhaseSeconds phases;
};

Measurement TrainInProcess(int iterations) {
  auto model = models::MakeModel<float>({.task = "an4", .data = HFOPT_AN4_DATA, .layers = kLayers}).value();
  LocalObjective<float> objective(*model, 1);
  Vector<float> theta = model->InitialParameters(kSeed).value();
  const auto start = std::chrono::steady_clock::now();
  Measurement result;
  result.theta = RunLocally<float>(objective, std::move(theta), Options(iterations)).theta;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Measurement TrainThroughTheService(int iterations, double journal_seconds) {
  TemporaryDirectory state;
  Process server({HFOPT_SERVER_BINARY, "--address", "127.0.0.1:0", "--state-dir", state.path()});
  const std::string address = server.AwaitErrorLine("listening on ");
  Process worker({HFOPT_WORKER_BINARY, "--server", address, "--run", "r", "--worker-id", "w", "--task", "an4", "--data",
                  HFOPT_AN4_DATA, "--layers", kLayers});
  client::RunClient client(client::MakeChannel(address));
  v1::RunOptions options;
  options.set_shards(1);
  options.set_seed(kSeed);
  options.set_journal_seconds(journal_seconds);
  *options.mutable_optimizer() = Options(iterations);
  EXPECT_TRUE(client.Create("r", options).ok());
  EXPECT_TRUE(client.Start("r").ok());
  const auto run = client.Watch("r", 0, [](const v1::WatchRunResponse&) { return true; });
  EXPECT_TRUE(run.ok()) << run.status();
  Measurement result;
  result.phases = run->seconds();
  result.seconds = result.phases.total() - result.phases.waiting();
  result.theta = client.DownloadLast<float>("r")->theta;
  return result;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Main(int iterations) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // rounds as they come, also into a file
  std::vector<double> ratios, journal_ratios, in_process, service;
  v1::PhaseSeconds phases;
  for (int round = 0; round < kRounds; ++round) {
    // Who goes first alternates: a machine that gets slower or faster favours neither.
    Measurement local, remote, journalled;
    if (round % 2 == 0) local = TrainInProcess(iterations);
    if (round % 2 == 1) journalled = TrainThroughTheService(iterations, kJournalSeconds);
    remote = TrainThroughTheService(iterations, 0);
    if (round % 2 == 0) journalled = TrainThroughTheService(iterations, kJournalSeconds);
    if (round % 2 == 1) local = TrainInProcess(iterations);
    if (local.theta != remote.theta || local.theta != journalled.theta) {
      std::fprintf(stderr, "overhead: they did not compute the same bits\n");
      return 1;
    }
    in_process.push_back(local.seconds);
    service.push_back(remote.seconds);
    ratios.push_back(remote.seconds / local.seconds);
    journal_ratios.push_back(journalled.seconds / remote.seconds);
    phases = remote.phases;
    std::printf("round %d: in process %.2f s, through the service %.2f s, ratio %.3f; with a journal %.2f s, ratio to without %.3f\n",
                round + 1, local.seconds, remote.seconds, ratios.back(), journalled.seconds, journal_ratios.back());
  }
  const nlohmann::json result = {{"bench", "overhead"},
                                 {"parameters", 1028710},
                                 {"iterations", iterations},
                                 {"rounds", kRounds},
                                 {"in_process_seconds", Median(in_process)},
                                 {"service_seconds", Median(service)},
                                 {"client_compute_seconds", phases.client_compute()},
                                 {"transport_seconds", phases.transport()},
                                 {"reduction_seconds", phases.reduction()},
                                 {"server_arithmetic_seconds", phases.server_arithmetic()},
                                 {"ratio", Median(ratios)},
                                 {"journal_ratio", Median(journal_ratios)}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace hfopt::testing

int main(int argc, char** argv) {
  hfopt::server::ShareOutArithmetic(hfopt::server::DefaultArithmeticThreads());  // as hfopt-server does
  return hfopt::testing::Main(argc > 1 ? std::stoi(argv[1]) : 20);
}
