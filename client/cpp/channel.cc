#include "client/cpp/channel.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "grpc/grpc.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace hfopt::client {

bool IsLocalTarget(const std::string& address) {
  absl::string_view target = address;
  if (absl::StartsWith(target, "unix:") || absl::StartsWith(target, "unix-abstract:")) return true;
  for (const char* scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&target, scheme)) break;
  }
  return target == "localhost" || absl::StartsWith(target, "localhost:") || absl::StartsWith(target, "127.") ||
         target == "::1" || absl::StartsWith(target, "[::1]");
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           std::shared_ptr<grpc::ChannelCredentials> credentials) {
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
  if (!credentials) credentials = grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(address, credentials, arguments);
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
