// What one server carries: very many workers of one run, many runs at a time, and very many watchers that do not read. A real server, and models so
// small that all of the time is the service's. Fails when a result is wrong.
//
//   hfopt_load_bench [--sessions 1000] [--runs 50] [--watchers 10000]        0 leaves a part out

#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/model_worker.h"
#include "client/cpp/run_client.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/client_callback.h"
#include "nlohmann/json.hpp"
#include "tests/bench/process_memory.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

constexpr int kParameters = 50, kExamples = 10'000;

// One connection for each channel; those of the libraries share one where they can.
std::shared_ptr<grpc::Channel> OwnChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// Example i has the residuals d_j (theta_j - t_ij), whose targets and scales are formulas.
class Residuals : public client::Model<double> {
 public:
  int64_t num_parameters() const override { return kParameters; }
  int64_t num_examples(client::DataSet data) const override { return data == client::DataSet::kTraining ? kExamples : kExamples / 10; }
  std::string signature() const override { return "residuals"; }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<double>& theta, const client::Examples& examples) override {
    double loss = 0;
    ForEach(examples, [&](int64_t i) {
      for (int j = 0; j < kParameters; ++j) loss += 0.5 * Scale(j) * Scale(j) * Square(theta[j] - Target(i, j));
    });
    return client::LossSum{loss, static_cast<double>(examples.size()), {}};
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<double>& theta, const client::Examples& examples,
                                           client::VectorRef<double> gradient) override {
    gradient.setZero();
    ForEach(examples, [&](int64_t i) {
      for (int j = 0; j < kParameters; ++j) gradient[j] += Scale(j) * Scale(j) * (theta[j] - Target(i, j));
    });
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<double>>> Linearize(const client::ConstVectorRef<double>&,
                                                                           const client::Examples& examples) override {
    struct Diagonal : client::Linearization<double> {
      explicit Diagonal(double count) : count(count) {}
      absl::Status GaussNewtonProduct(const client::ConstVectorRef<double>& v, client::VectorRef<double> product) override {
        for (int j = 0; j < kParameters; ++j) product[j] = count * Scale(j) * Scale(j) * v[j];
        return absl::OkStatus();
      }
      double weight() const override { return count; }
      const double count;
    };
    return std::make_unique<Diagonal>(static_cast<double>(examples.size()));
  }
  bool has_initial_parameters() const override { return true; }
  absl::StatusOr<client::Vector<double>> InitialParameters(uint64_t) override { return client::Vector<double>::Zero(kParameters); }

 private:
  static void ForEach(const client::Examples& examples, absl::FunctionRef<void(int64_t)> visit) {
    for (const client::IndexRange& range : examples.ranges) {
      for (int64_t i = range.begin; i < range.end; ++i) visit(i);
    }
  }
  static double Square(double x) { return x * x; }
  static double Scale(int j) { return 0.1 + 0.2 * (j % 17); }
  static double Target(int64_t i, int j) { return 1 + 0.01 * static_cast<double>((i * 31 + j * 7) % 101); }
};

v1::RunOptions Options(int shards, int iterations) {
  v1::RunOptions options;
  options.set_shards(shards);
  options.set_element_type(v1::ELEMENT_TYPE_FLOAT64);
  v1::OptimizerOptions& optimizer = *options.mutable_optimizer();
  optimizer.set_preset(v1::OptimizerOptions::PRESET_PUBLISHED);
  optimizer.mutable_conjugate_gradient()->set_max_iterations(5);
  optimizer.mutable_conjugate_gradient()->set_progress_tolerance(0);
  optimizer.mutable_samples()->set_initial_gradient_examples(0);
  optimizer.mutable_stop()->set_max_iterations(iterations);
  optimizer.mutable_stop()->set_gradient_tolerance(0);
  optimizer.mutable_stop()->set_max_rejections(1'000'000'000);
  return options;
}

// Workers of a run, in threads.
class Workers {
 public:
  Workers(const std::string& address, const std::string& run, int count) {
    for (int i = 0; i < count; ++i) {
      models_.push_back(std::make_unique<Residuals>());
      workers_.push_back(std::make_unique<client::ModelWorker<double>>(
          *models_.back(), client::ModelWorkerOptions{
                               .channel = OwnChannel(address), .run_id = run, .worker_id = absl::StrCat("w-", i), .shared_memory = false}));
      threads_.emplace_back([worker = workers_.back().get()] {
        if (const auto end = worker->Run(); !end.ok()) std::fprintf(stderr, "a worker: %s\n", end.status().ToString().c_str());
      });
    }
  }
  ~Workers() {
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::vector<std::unique_ptr<Residuals>> models_;
  std::vector<std::unique_ptr<client::ModelWorker<double>>> workers_;
  std::vector<std::thread> threads_;
};

// A stream of events that nobody takes.
class SilentWatcher : public grpc::ClientReadReactor<v1::WatchRunResponse> {
 public:
  SilentWatcher(v1::RunService::Stub& stub, const std::string& run) {
    request_.set_name(absl::StrCat("runs/", run));
    stub.async()->WatchRun(&context_, &request_, this);
    AddHold();
    StartCall();
  }
  ~SilentWatcher() override {
    context_.TryCancel();
    RemoveHold();
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&done_));
  }
  void OnReadInitialMetadataDone(bool) override {}
  void OnDone(const grpc::Status&) override {
    absl::MutexLock lock(&mu_);
    done_ = true;
  }

 private:
  grpc::ClientContext context_;
  v1::WatchRunRequest request_;
  absl::Mutex mu_;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
};

class Load {
 public:
  Load() : server_({HFOPT_SERVER_BINARY, "--address", "127.0.0.1:0", "--state-dir", state_.path(), "--lease", "60"}),
           address_(server_.AwaitErrorLine("listening on ")),
           log_([this] { server_.AwaitErrorLine("stopped"); }),
           client_(OwnChannel(address_)) {}
  ~Load() {
    server_.Signal(SIGTERM);
    log_.join();
  }

  nlohmann::json Sessions(int count) {
    const client::Vector<double> expected = Train("few", Options(count, 3), 4).theta;
    ForgetPeakOf(server_.pid());
    const Trained many = Train("many", Options(count, 3), count);
    if (many.theta != expected) Fail("1,000 workers trained something else than four did");
    return {{"sessions", count}, {"seconds", many.seconds}, {"evaluations_per_second", static_cast<double>(many.answers) / many.seconds},
            {"server_peak_mib", MemoryOf(server_.pid(), "VmHWM:") / (1 << 20)}, {"server_threads", many.threads}, {"server_descriptors", many.descriptors}};
  }

  nlohmann::json Runs(int count) {
    ForgetPeakOf(server_.pid());
    const client::Vector<double> expected = Train("alone", Options(2, 20), 2).theta;
    const absl::Time begin = absl::Now();
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
      threads.emplace_back([&, i] {
        if (Train(absl::StrCat("run-", i), Options(2, 20), 2).theta != expected) Fail(absl::StrCat("run ", i, " trained something else than a run alone"));
      });
    }
    for (std::thread& thread : threads) thread.join();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    return {{"runs", count}, {"seconds", seconds}, {"iterations_per_second", 20 * count / seconds}, {"server_peak_mib", MemoryOf(server_.pid(), "VmHWM:") / (1 << 20)}};
  }

  nlohmann::json Watchers(int count) {
    constexpr int kIterations = 300, kOfAConnection = 1000;
    Must(client_.Create("watched", Options(1, kIterations)).status());
    const double before = MemoryOf(server_.pid(), "VmRSS:");
    std::vector<std::unique_ptr<v1::RunService::Stub>> stubs;
    std::vector<std::unique_ptr<SilentWatcher>> watchers;
    for (int i = 0; i < count; ++i) {
      if (i % kOfAConnection == 0) stubs.push_back(v1::RunService::NewStub(OwnChannel(address_)));
      watchers.push_back(std::make_unique<SilentWatcher>(*stubs.back(), "watched"));
    }
    // A call that is answered after theirs have been.
    for (const auto& stub : stubs) {
      grpc::ClientContext context;
      v1::GetRunRequest request;
      request.set_name("runs/watched");
      v1::GetRunResponse response;
      if (!stub->GetRun(&context, request, &response).ok()) Fail("GetRun among watchers");
    }
    const double open = MemoryOf(server_.pid(), "VmRSS:");
    const absl::Time begin = absl::Now();
    Must(client_.Start("watched").status());
    const Workers workers(address_, "watched", 1);
    int told = 0;
    Must(client_.Watch("watched", 0, [&](const v1::WatchRunResponse& event) {
      told += event.has_iteration() ? 1 : 0;
      return true;
    }).status());
    if (told != kIterations) Fail(absl::StrCat("who reads was told of ", told, " iterations"));
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    const double after = MemoryOf(server_.pid(), "VmRSS:");
    return {{"watchers", count}, {"iterations", kIterations}, {"seconds", seconds},
            {"kib_per_watcher_when_open", (open - before) / count / 1024}, {"kib_per_watcher_at_the_end", (after - before) / count / 1024}};
  }

  bool failed() const { return failed_; }

 private:
  struct Trained {
    client::Vector<double> theta;
    double seconds = 0;
    uint64_t answers = 0;
    int64_t threads = 0, descriptors = 0;
  };

  Trained Train(const std::string& run, const v1::RunOptions& options, int workers) {
    Trained trained;
    Must(client_.Create(run, options).status());
    const Workers at_work(address_, run, workers);
    while (client_.Get(run)->workers_size() < workers) std::this_thread::yield();
    const absl::Time begin = absl::Now();
    Must(client_.Start(run).status());
    const auto end = client_.Watch(run, 0, [&](const v1::WatchRunResponse& event) {
      if (event.has_iteration() && event.iteration().iteration() == 1) {
        trained.threads = Count("task");
        trained.descriptors = Count("fd");
      }
      return true;
    });
    Must(end.status());
    if (end.ok() && end->state() != v1::RUN_STATE_ENDED) Fail(absl::StrCat(run, ": ", end->state_detail()));
    trained.seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    if (const auto last = client_.Get(run); last.ok()) {
      for (const v1::WorkerStatus& worker : last->workers()) trained.answers += worker.answers();
    }
    if (auto parameters = client_.DownloadLast<double>(run); parameters.ok()) trained.theta = std::move(parameters->theta);
    return trained;
  }

  int64_t Count(const std::string& folder) const {
    return std::distance(std::filesystem::directory_iterator(absl::StrCat("/proc/", server_.pid(), "/", folder)), {});
  }
  void Must(const absl::Status& status) {
    if (!status.ok()) Fail(status.ToString());
  }
  void Fail(const std::string& what) {
    std::fprintf(stderr, "load: %s\n", what.c_str());
    failed_ = true;
  }

  TemporaryDirectory state_;
  Process server_;
  const std::string address_;
  std::thread log_;
  client::RunClient client_;
  std::atomic<bool> failed_ = false;
};

int Main(int argc, char** argv) {
  int sessions = 1000, runs = 50, watchers = 10'000;
  CLI::App app("What one server carries; the last line is JSON.");
  app.add_option("--sessions", sessions, "Workers of one run")->capture_default_str();
  app.add_option("--runs", runs, "Runs at a time, of two workers each")->capture_default_str();
  app.add_option("--watchers", watchers, "Watchers that do not read")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  Load load;
  nlohmann::json result = {{"bench", "load"}};
  const auto part = [&](const char* name, int count, nlohmann::json (Load::*measure)(int)) {
    if (count == 0) return;
    result[name] = (load.*measure)(count);
    std::printf("%s: %s\n", name, result[name].dump().c_str());
  };
  part("sessions", sessions, &Load::Sessions);
  part("runs", runs, &Load::Runs);
  part("watchers", watchers, &Load::Watchers);
  std::printf("%s\n", result.dump().c_str());
  return load.failed() ? 1 : 0;
}

}  // namespace
}  // namespace hfopt::testing

int main(int argc, char** argv) { return hfopt::testing::Main(argc, argv); }
