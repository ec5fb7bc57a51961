#include "client/cpp/channel.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "grpc/grpc.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/client_interceptor.h"
#include "proto/tls/certificate_files.h"

namespace hfopt::client {

bool IsLocalTarget(const std::string& address) {
  absl::string_view target = address;
  if (absl::StartsWith(target, "unix:") || absl::StartsWith(target, "unix-abstract:")) return true;
  for (const char* scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&target, scheme)) break;
  }
  const absl::string_view host = target.substr(0, target.rfind(':'));
  // 127.0.0.0/8 by number: "127.example.org" is anybody's name.
  return target == "::1" || host == "[::1]" || target == "[::1]" || host == "localhost" ||
         (absl::StartsWith(host, "127.") && host.find_first_not_of("0123456789.") == absl::string_view::npos);
}

namespace {

// How soon changed certificates are used.
constexpr absl::Duration kReloadInterval = absl::Seconds(10);

grpc::ChannelArguments Arguments(const std::string& address) {
  // Keeps gRPC until the process ends. When its last object goes, gRPC shuts down, and that waits for up to 10 s for a
  // poller that a large write may have left behind.
  static const bool kept = (grpc_init(), true);
  (void)kept;
  grpc::ChannelArguments arguments;
  // Pings also while nothing is sent, so that a dead link is noticed within 50 s.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // gRPC's own pause between connection attempts, 1 s to 2 min by default, would add to ours.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // Bandwidth probing costs 25 to 30 % of CPU on a local link; a link with latency needs it.
  if (IsLocalTarget(address)) arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return arguments;
}

// The token of a file: its first word.
absl::StatusOr<std::string> ReadToken(const std::string& file) {
  std::ifstream in(file);
  std::string token;
  if (in.is_open() && in >> token) return token;
  return in.is_open() && !in.bad() ? absl::InvalidArgumentError(absl::StrCat(file, " is empty; it should hold a token, as hfopt token prints it"))
                                   : absl::ErrnoToStatus(errno, absl::StrCat("cannot read the token in ", file));
}

// Shows the token with each call. An interceptor and not gRPC's call credentials, which refuse plaintext also where it is safe: on a Unix socket.
class TokenInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const ChannelSecurity& security) : security_(security) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      const absl::StatusOr<std::string> token = security_.token.empty() ? ReadToken(security_.token_file) : security_.token;
      // Without one the server says what it wants.
      if (token.ok()) methods->GetSendInitialMetadata()->emplace("authorization", absl::StrCat("Bearer ", *token));
    }
    methods->Proceed();
  }

 private:
  const ChannelSecurity& security_;
};

class TokenInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(ChannelSecurity security) : security_(std::move(security)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override { return new TokenInterceptor(security_); }

 private:
  const ChannelSecurity security_;
};

absl::Status Check(const std::string& address, const ChannelSecurity& security) {
  if (!security.is_encrypted() && !(security.cert_file.empty() && security.key_file.empty())) {
    return absl::InvalidArgumentError("a client certificate (--cert, --key) takes TLS: give --ca, the CA of the server's certificate, too");
  }
  if (security.has_token() && !security.is_encrypted() && !security.insecure && !IsLocalTarget(address)) {
    return absl::FailedPreconditionError(absl::StrCat("a token would go to ", address, " in plaintext, for everybody on the way to read; use TLS (--ca), or, "
                                                      "on a network that you trust, add --insecure"));
  }
  if (!security.token_file.empty() && security.token.empty()) {
    if (const auto token = ReadToken(security.token_file); !token.ok()) return token.status();
  }
  return security.is_encrypted() ? tls::Check({.ca = security.ca_file, .certificate = security.cert_file, .key = security.key_file}, absl::Now())
                                 : absl::OkStatus();
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const ChannelSecurity& security) {
  if (!security.is_encrypted()) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (!security.ca_file.empty() || !security.cert_file.empty()) {
    options.set_certificate_provider(
        tls::Watch({.ca = security.ca_file, .certificate = security.cert_file, .key = security.key_file}, kReloadInterval));
  }
  if (!security.ca_file.empty()) options.watch_root_certs();
  if (!security.cert_file.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, std::shared_ptr<grpc::ChannelCredentials> credentials) {
  if (!credentials) credentials = grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(address, credentials, Arguments(address));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& address, const ChannelSecurity& security) {
  if (absl::Status status = Check(address, security); !status.ok()) return status;
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (security.has_token()) interceptors.push_back(std::make_unique<TokenInterceptorFactory>(security));
  return grpc::experimental::CreateCustomChannelWithInterceptors(address, Credentials(security), Arguments(address), std::move(interceptors));
}

void PauseBeforeRetry(grpc::Channel& channel, absl::Duration pause, const std::function<bool()>& stopped) {
  const absl::Time end = absl::Now() + pause;
  const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
  // An in-process channel has no connection to wait for; it says SHUTDOWN.
  const bool may_connect = state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_SHUTDOWN;
  for (absl::Time now = absl::Now(); now < end && !stopped(); now = absl::Now()) {
    const absl::Time next = std::min(end, now + absl::Milliseconds(100));
    if (!may_connect) {
      std::this_thread::sleep_until(absl::ToChronoTime(next));
    } else if (channel.WaitForConnected(absl::ToChronoTime(next))) {
      return;
    }
  }
}

}  // namespace hfopt::client
