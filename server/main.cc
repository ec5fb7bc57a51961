// hfopt-server: hosts the state of Hessian-free optimizers and asks workers for losses, gradients and Gauss-Newton products.

#include <signal.h>
#include <sys/resource.h>

#include <iostream>

#include "CLI/CLI.hpp"
#include "grpc/grpc.h"
#include "proto/log/log.h"
#include "proto/wire/allocator.h"
#include "server/evaluation/polling.h"
#include "server/run/arithmetic_threads.h"
#include "server/server.h"
#include "spdlog/spdlog.h"

namespace {

using hfopt::server::Server;
using hfopt::server::ServerOptions;

// Each session takes a descriptor, and 1,024, the usual soft limit, are soon used up. The hard limit is what the machine's owner allows.
void AllowManyDescriptors() {
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

// Options on the command line, in the environment as HFOPT_*, and in a file of "name = value" lines, in this order of precedence.
void AddOptions(CLI::App& app, ServerOptions& options) {
  app.add_option("--address", options.address, "HOST:PORT (port 0: chosen by the system) or unix:PATH to listen on")
      ->envname("HFOPT_ADDRESS")
      ->capture_default_str();
  app.add_option("--state-dir", options.state_directory, "Directory of runs and checkpoints; created if missing")
      ->envname("HFOPT_STATE_DIR")
      ->capture_default_str();
  app.add_option("--memory-limit", options.memory_limit_mib, "MiB that the vectors of a run may take; 0: 80 % of the machine")
      ->envname("HFOPT_MEMORY_LIMIT")
      ->capture_default_str();
  app.add_option("--lease", options.lease_seconds, "Seconds of silence after which a worker loses its shards, for runs that do not say")
      ->envname("HFOPT_LEASE")
      ->capture_default_str();
  app.add_option("--transfer-idle", options.transfer_idle_seconds,
                 "Seconds after which an upload of which nothing comes, or a download or watch that is not read, is ended")
      ->envname("HFOPT_TRANSFER_IDLE")
      ->capture_default_str();
  app.add_option("--keep-checkpoints", options.keep_checkpoints, "Checkpoints kept besides the best, for runs that do not say")
      ->envname("HFOPT_KEEP_CHECKPOINTS")
      ->capture_default_str();
  app.add_option("--tls-cert", options.tls_cert, "PEM file with the server's certificate and its chain: encrypts; read again when it changes")
      ->envname("HFOPT_TLS_CERT");
  app.add_option("--tls-key", options.tls_key, "PEM file with the certificate's key, not encrypted")->envname("HFOPT_TLS_KEY");
  app.add_option("--tls-client-ca", options.tls_client_ca,
                 "PEM file of the CA that callers' certificates come from; their URI name urn:hfopt:role:ROLE says what they may do")
      ->envname("HFOPT_TLS_CLIENT_CA");
  app.add_option("--tokens", options.tokens, "File of the tokens that callers may show (hfopt token writes it); read again when it changes")
      ->envname("HFOPT_TOKENS");
  app.add_option("--health-address", options.health_address, "HOST:PORT that answers health checks alone, in plaintext, for probes without a certificate")
      ->envname("HFOPT_HEALTH_ADDRESS");
  app.add_flag("--insecure", options.insecure, "Listen on a public address although traffic is not encrypted or callers are not asked who they are")
      ->envname("HFOPT_INSECURE");
  app.set_config("--config", "", "File with any of these options, one \"name = value\" a line")->envname("HFOPT_CONFIG");
}

}  // namespace

int main(int argc, char** argv) {
  hfopt::wire::KeepFreedPages();

  AllowManyDescriptors();

  // Blocked before any thread is started, so that only sigwait below takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);  // its terminal goes
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  CLI::App app("Hosts Hessian-free optimization runs for remote model workers.", "hfopt-server");
  app.set_version_flag("--version", "hfopt-server " HFOPT_PROGRAM_VERSION, "Print version and instruction set, and exit");
  ServerOptions options;
  AddOptions(app, options);
  CLI11_PARSE(app, argc, argv);

  if (options.is_local()) hfopt::server::PollEachQueue();
  // gRPC's last user to leave may wait some ten seconds for a thread of it; so there is none.
  grpc_init();

  hfopt::server::ShareOutArithmetic(hfopt::server::DefaultArithmeticThreads());

  hfopt::SetUpLog("hfopt-server");
  auto server = Server::Start(options, [](const std::string& line) { spdlog::info("{}", line); });
  if (!server.ok()) {
    std::cerr << "hfopt-server: " << server.status().message() << "\n";
    return server.status().code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  spdlog::info("hfopt-server " HFOPT_PROGRAM_VERSION ", effective configuration:\n{}", options.Describe());
  if (!(*server)->health_address().empty()) spdlog::info("health checks in plaintext on {}", (*server)->health_address());
  spdlog::info("listening on {}", (*server)->address());

  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("{}: draining; runs go on when the server starts again", signal == SIGTERM ? "SIGTERM" : signal == SIGHUP ? "SIGHUP" : "SIGINT");
  // A second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  ::signal(SIGTERM, SIG_DFL);
  ::signal(SIGINT, SIG_DFL);
  ::signal(SIGHUP, SIG_DFL);
  (*server)->Shutdown();
  spdlog::info("stopped");
  return 0;
}
