// What moving vectors costs: the round trip of a vector through a real session, a direction to a worker and a product back, beside the
// same bytes through a bare TCP connection. Two processes on loopback, one after the other, in blocks that alternate, so that both see the
// same machine. CPU is that of both processes. At last, what 64 sessions cost the server when nothing is moved or added.
//
// "hfopt_transport_bench against COMMAND..." compares this worker with another, of the Python package for example, which is started as
// COMMAND... ADDRESS N shared|grpc and has the same model. CPU is that of the worker alone then.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "client/cpp/model_worker.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "nlohmann/json.hpp"
#include "proto/wire/allocator.h"
#include "server/evaluation/evaluation_service.h"
#include "server/evaluation/polling.h"
#include "tests/bench/process_memory.h"
#include "tests/support/process.h"

namespace hfopt::testing {
namespace {

constexpr int kBlocks = 5;
constexpr int kCrowd = 64;                           // sessions
constexpr size_t kCrowdBytes = 1'000'000 * sizeof(float);  // of a vector
constexpr char kRun[] = "transport";

// --- The worker's process: a model whose products cost nothing.

class FreeModel : public client::Model<float> {
 public:
  explicit FreeModel(int64_t n) : n_(n) {}
  int64_t num_parameters() const override { return n_; }
  int64_t num_examples(client::DataSet) const override { return kCrowd; }
  std::string signature() const override { return "free"; }
  absl::StatusOr<client::LossSum> Loss(const client::ConstVectorRef<float>&, const client::Examples&) override {
    return absl::UnimplementedError("not asked for");
  }
  absl::StatusOr<client::LossSum> Gradient(const client::ConstVectorRef<float>&, const client::Examples&,
                                           client::VectorRef<float>) override {
    return absl::UnimplementedError("not asked for");
  }
  absl::StatusOr<std::unique_ptr<client::Linearization<float>>> Linearize(const client::ConstVectorRef<float>&,
                                                                          const client::Examples&) override {
    struct Ends : client::Linearization<float> {
      // Proves that the direction has come, and its product.
      absl::Status GaussNewtonProduct(const client::ConstVectorRef<float>& v, client::VectorRef<float> product) override {
        product[0] = v[0];
        product[product.size() - 1] = v[v.size() - 1];
        return absl::OkStatus();
      }
      double weight() const override { return 1; }
    };
    return std::make_unique<Ends>();
  }

 private:
  const int64_t n_;
};

int Work(const std::string& address, int64_t n, bool shared_memory, int workers) {
  std::vector<std::thread> threads;
  for (int w = 0; w < workers; ++w) {
    threads.emplace_back([&address, n, shared_memory, w] {
      FreeModel model(n);
      client::ModelWorker<float> worker(model, {.channel = client::MakeChannel(address),
                                                .run_id = kRun,
                                                .worker_id = absl::StrCat("w-", w),
                                                .shards = {static_cast<uint32_t>(w)},
                                                .shared_memory = shared_memory});
      (void)worker.Run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// --- The same bytes through TCP.

void Check(bool ok, const char* what) {
  if (ok) return;
  perror(what);
  std::exit(1);
}

void SendAll(int socket, const std::vector<char>& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t some = write(socket, bytes.data() + sent, std::min<size_t>(bytes.size() - sent, 1 << 20));
    Check(some > 0, "write");
    sent += some;
  }
}

bool ReceiveAll(int socket, std::vector<char>& bytes) {
  for (size_t received = 0; received < bytes.size();) {
    const ssize_t some = read(socket, bytes.data() + received, std::min<size_t>(bytes.size() - received, 1 << 20));
    if (some <= 0) return false;
    received += some;
  }
  return true;
}

int Echo(int port, size_t bytes) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  Check(connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  std::vector<char> buffer(bytes);
  while (ReceiveAll(socket, buffer)) SendAll(socket, buffer);
  return 0;
}

// --- Measuring.

double Seconds(clockid_t clock) {
  timespec time;
  Check(clock_gettime(clock, &time) == 0, "clock_gettime");
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

double CpuOf(pid_t process) {
  clockid_t clock;
  Check(clock_getcpuclockid(process, &clock) == 0, "clock_getcpuclockid");
  return Seconds(clock);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Cost {
  double wall = 0, cpu = 0, worker_cpu = 0;  // seconds for one round trip; cpu is that of both processes
};

std::vector<std::string> OwnCommand(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "/proc/self/exe");
  return arguments;
}

// Another process and the way to it.
class Peer {
 public:
  explicit Peer(std::vector<std::string> command) : process_(std::move(command)) {}
  virtual ~Peer() = default;
  virtual void RoundTrip() = 0;

  Cost Measure(int rounds) {
    RoundTrip();
    const double wall = Seconds(CLOCK_MONOTONIC), own = Seconds(CLOCK_PROCESS_CPUTIME_ID), worker = CpuOf(process_.pid());
    for (int round = 0; round < rounds; ++round) RoundTrip();
    const double worker_cpu = (CpuOf(process_.pid()) - worker) / rounds;
    return {.wall = (Seconds(CLOCK_MONOTONIC) - wall) / rounds,
            .cpu = (Seconds(CLOCK_PROCESS_CPUTIME_ID) - own) / rounds + worker_cpu,
            .worker_cpu = worker_cpu};
  }
  pid_t pid() const { return process_.pid(); }

 private:
  Process process_;
};

class Listener {
 public:
  Listener() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    Check(bind(socket_, reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(socket_, 1) == 0, "listen");
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  ~Listener() { close(socket_); }
  int port() const { return port_; }
  int Accept() const { return accept(socket_, nullptr, nullptr); }

 private:
  int socket_, port_ = 0;
};

class TcpPeer : private Listener, public Peer {
 public:
  explicit TcpPeer(size_t bytes)
      : Peer(OwnCommand({"echo", std::to_string(port()), std::to_string(bytes)})), connection_(Accept()), buffer_(bytes, 1) {
    const int on = 1;
    setsockopt(connection_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  ~TcpPeer() override { close(connection_); }
  void RoundTrip() override {
    SendAll(connection_, buffer_);
    Check(ReceiveAll(connection_, buffer_), "read");
  }

 private:
  const int connection_;
  std::vector<char> buffer_;
};

// A server's end as `hfopt-server` has it, for one run.
class Service {
 public:
  explicit Service(int shards) {
    pool_->SetShards(shards);
    // They have threads of gRPC's wait for calls, which take part in receiving.
    static const bool plugins_once = [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    (void)plugins_once;
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    sessions_.AddTo(builder);
    server_ = builder.BuildAndStart();
    sessions_.Start();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~Service() {
    pool_->Finish({});
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
    sessions_.Stop();
  }
  const std::string& address() const { return address_; }
  server::WorkerPool& pool() { return *pool_; }

 private:
  std::shared_ptr<server::WorkerPool> pool_ = std::make_shared<server::WorkerPool>(
      server::WorkerPool::Options{.run_name = kRun, .lease = absl::Seconds(60)});
  server::TransferWatchdog watchdog_{absl::Minutes(1)};
  server::EvaluationService sessions_{[this](const v1::Hello&) { return pool_; }, watchdog_};
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

class SessionPeer : private Service, public Peer {
 public:
  SessionPeer(size_t bytes, bool shared_memory, int workers = 1, std::vector<std::string> command = OwnCommand({"work"}))
      : Service(workers),
        Peer([&] {
          const auto arguments = {address(), std::to_string(bytes / sizeof(float)), std::string(shared_memory ? "shared" : "grpc"),
                                  std::to_string(workers)};
          command.insert(command.end(), arguments);
          return command;
        }()),
        bytes_(bytes),
        workers_(workers) {
    Check(pool().AwaitWorkers().ok(), "no worker");
    // Whether it has attached shows once a first answer has come.
    before_ = MemoryOf(getpid(), "VmRSS:") + MemoryOf(pid(), "VmRSS:");
    ForgetPeakOf(getpid());
    ForgetPeakOf(pid());
    direction_ = pool().NewVector<float>(bytes / sizeof(float));
    direction_.map().setOnes();
    RoundTrip();
    const std::string way = pool().workers()[0].shared_memory() ? "shared" : "grpc";
    if (way != (shared_memory ? "shared" : "grpc")) Check(false, "vectors do not go the way they should");
  }

  void RoundTrip() override {
    const std::string name = absl::StrCat("direction ", ++round_);
    direction_.map()[0] = static_cast<float>(round_);
    const auto direction =
        std::make_shared<const server::NamedVector>(server::NamedVector{.name = name, .vector = direction_});
    std::vector<server::Unit> units(workers_);
    for (int w = 0; w < workers_; ++w) {
      server::Unit& unit = units[w];
      unit.shard = w;
      unit.request.mutable_slice()->set_data_set(v1::DATA_SET_TRAINING);
      unit.request.mutable_slice()->set_shard(w);
      unit.request.mutable_slice()->set_shards(workers_);
      unit.request.mutable_slice()->set_count(1);
      unit.request.mutable_product()->mutable_point()->set_base(name);
      unit.request.mutable_product()->set_direction(name);
      unit.vectors.push_back(direction);
    }
    float first = 0, last = 0;
    const absl::Status status = pool().Evaluate(std::move(units), [&](server::UnitAnswer answer) {
      const auto& product = std::get<wire::SharedVector<float>>(answer.vectors.begin()->second);
      first = product.map()[0];
      last = product.map()[product.size() - 1];
      return absl::OkStatus();
    });
    pool().Release({name});
    if (!status.ok() || first != static_cast<float>(round_) || last != 1) {
      std::fprintf(stderr, "transport: round %d: got %g and %g: %s\n", round_, first, last, status.ToString().c_str());
      std::exit(1);
    }
  }

  // What both processes hold at most, but for the direction and the product of each, in vectors.
  double ExtraMemory() const {
    const double peak = MemoryOf(getpid(), "VmHWM:") + MemoryOf(pid(), "VmHWM:");
    return (peak - before_) / static_cast<double>(bytes_) - 4;
  }

 private:
  const size_t bytes_;
  const int workers_;
  double before_ = 0;
  wire::SharedVector<float> direction_;
  int round_ = 0;
};

// CPU of the worker that `command` starts over that of this one, with vectors of 40 MiB.
int CompareWorkers(const std::vector<std::string>& command) {
  constexpr int kRounds = 8;
  constexpr size_t kBytes = size_t{40} << 20;
  nlohmann::json result = {{"bench", "worker"}, {"blocks", kBlocks}};
  for (const bool shared_memory : {false, true}) {
    SessionPeer ours(kBytes, shared_memory), other(kBytes, shared_memory, /*workers=*/1, command);
    std::vector<double> our_cpu, other_cpu, ratio, our_wall, other_wall;
    for (int block = 0; block < kBlocks; ++block) {
      const Cost a = ours.Measure(kRounds), b = other.Measure(kRounds);
      our_cpu.push_back(1e3 * a.worker_cpu);
      other_cpu.push_back(1e3 * b.worker_cpu);
      ratio.push_back(b.worker_cpu / a.worker_cpu);
      our_wall.push_back(1e3 * a.wall);
      other_wall.push_back(1e3 * b.wall);
      std::printf("40 MiB, %s, block %d: CPU of the C++ worker %.2f ms, of the other %.2f ms; round trip %.2f and %.2f ms\n",
                  shared_memory ? "shared memory" : "gRPC", block + 1, 1e3 * a.worker_cpu, 1e3 * b.worker_cpu, 1e3 * a.wall, 1e3 * b.wall);
    }
    const std::string prefix = shared_memory ? "shm_" : "";
    result[prefix + "cpu_ratio_40mib"] = Median(ratio);
    result[prefix + "cpp_cpu_ms"] = Median(our_cpu);
    result[prefix + "other_cpu_ms"] = Median(other_cpu);
    result[prefix + "cpp_wall_ms"] = Median(our_wall);
    result[prefix + "other_wall_ms"] = Median(other_wall);
  }
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

int Main() {
  nlohmann::json result = {{"bench", "transport"}, {"blocks", kBlocks}};
  double extra_memory = 0;
  for (const int mib : {40, 180}) {
    const size_t bytes = static_cast<size_t>(mib) << 20;
    const int rounds = 1600 / mib / kBlocks;
    // The session first: its memory is counted.
    SessionPeer session(bytes, /*shared_memory=*/false);
    session.Measure(rounds);
    extra_memory = std::max(extra_memory, session.ExtraMemory());
    SessionPeer shared(bytes, /*shared_memory=*/true);
    TcpPeer tcp(bytes);
    std::vector<double> wall, cpu, speedup, shared_wall, tcp_cpu;
    for (int block = 0; block < kBlocks; ++block) {
      const Cost a = tcp.Measure(rounds), b = session.Measure(rounds), c = shared.Measure(rounds);
      wall.push_back(b.wall / a.wall);
      cpu.push_back(b.cpu / a.cpu);
      speedup.push_back(b.wall / c.wall);
      shared_wall.push_back(c.wall);
      tcp_cpu.push_back(a.cpu / (2e-9 * static_cast<double>(bytes)));
      std::printf("%3d MiB, block %d: round trip through TCP %.1f ms, the session %.1f ms, shared memory %.3f ms; "
                  "CPU %.1f, %.1f, %.3f ms\n",
                  mib, block + 1, 1e3 * a.wall, 1e3 * b.wall, 1e3 * c.wall, 1e3 * a.cpu, 1e3 * b.cpu, 1e3 * c.cpu);
    }
    const std::string size = absl::StrCat("_", mib, "mib");
    result["wall_ratio" + size] = Median(wall);
    result["cpu_ratio" + size] = Median(cpu);
    result["tcp_cpu_seconds_per_gb" + size] = Median(tcp_cpu);
    result["shm_microseconds" + size] = 1e6 * Median(shared_wall);
    result["shm_speedup" + (mib == 40 ? std::string() : size)] = Median(speedup);
  }
  result["extra_memory_n"] = extra_memory;
  {
    SessionPeer crowd(kCrowdBytes, /*shared_memory=*/true, kCrowd);
    crowd.RoundTrip();
    const int rounds = 100;
    const double cpu = Seconds(CLOCK_PROCESS_CPUTIME_ID), wall = Seconds(CLOCK_MONOTONIC);
    for (int round = 0; round < rounds; ++round) crowd.RoundTrip();
    const double microseconds = 1e6 * (Seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / rounds / kCrowd;
    std::printf("%d sessions: %.0f us of the server's CPU for each and product, %.1f ms for all by the clock\n", kCrowd,
                microseconds, 1e3 * (Seconds(CLOCK_MONOTONIC) - wall) / rounds);
    result["session_microseconds"] = microseconds;
  }
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace hfopt::testing

int main(int argc, char** argv) {
  using namespace hfopt::testing;
  hfopt::wire::KeepFreedPages();  // as the programs of this repository do
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool serves = arguments.empty() || arguments[0] == "against";
  // As a server of this machine alone does. A worker's program leaves gRPC its choice, and must not inherit that of the server.
  if (serves) hfopt::server::PollEachQueue();
  if (!serves) unsetenv("GRPC_POLL_STRATEGY");
  if (arguments.empty()) return Main();
  if (arguments[0] == "against") return CompareWorkers({arguments.begin() + 1, arguments.end()});
  if (arguments[0] == "echo") return Echo(std::stoi(arguments[1]), std::stoul(arguments[2]));
  return Work(arguments[1], std::stol(arguments[2]), arguments[3] == "shared", std::stoi(arguments[4]));
}
