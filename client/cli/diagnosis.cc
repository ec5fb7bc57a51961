#include "client/cli/diagnosis.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/cpp/run_client.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"
#include "proto/tls/certificate_files.h"

namespace hfopt::cli {
namespace {

using Step = DiagnosisStep;

Step Passed(std::string name, std::string finding) { return {std::move(name), Step::Result::kPassed, std::move(finding), ""}; }
Step Skipped(std::string name, std::string finding) { return {std::move(name), Step::Result::kSkipped, std::move(finding), ""}; }
Step Failed(std::string name, std::string finding, std::string remedy) {
  return {std::move(name), Step::Result::kFailed, std::move(finding), std::move(remedy)};
}

// What a gRPC target names.
struct Target {
  std::string unix_path;   // or
  std::string host, port;
};

std::optional<Target> Parse(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "unix:")) return Target{.unix_path = std::string(address)};
  for (const char* scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&address, scheme)) break;
  }
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || absl::EndsWith(address, "]")) return std::nullopt;
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  return Target{.host = std::string(host), .port = std::string(address.substr(colon + 1))};
}

// A connected socket, with time limits for reading and writing; or -errno.
int Dial(int family, const sockaddr* address, socklen_t size, absl::Duration timeout) {
  const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  // On Linux the limit for sending is one for connecting, too.
  const timeval limit = absl::ToTimeval(timeout);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (connect(fd, address, size) == 0) return fd;
  const int error = errno == EINPROGRESS ? ETIMEDOUT : errno;
  close(fd);
  return -error;
}

std::string OpenSslError() {
  const unsigned long code = ERR_peek_last_error();
  const char* const reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "the connection was closed" : reason;
}

// The names of a certificate that one may dial.
std::string DialledNames(const tls::Certificate& certificate) {
  std::vector<std::string> names;
  for (absl::string_view name : certificate.names) {
    if (absl::ConsumePrefix(&name, "DNS:") || absl::ConsumePrefix(&name, "IP:")) names.emplace_back(name);
  }
  return names.empty() ? "no name at all" : absl::StrJoin(names, ", ");
}

// Whether a call ended because its time was over.
bool IsSilence(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

Step Silent(const char* name, const std::string& server, absl::Duration timeout) {
  return Failed(name, absl::StrCat("what listens at ", server, " has accepted, and says nothing for ", absl::FormatDuration(timeout)),
                "if it is hfopt-server, it hangs or was stopped: look at its process and log; or is this the port of something else?");
}

Step CheckTls(int fd, const Target& target, const client::ChannelSecurity& security, absl::Duration timeout) {
  constexpr char kName[] = "TLS";
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, [](int, X509_STORE_CTX*) { return 1; });  // judged below
  if (security.ca_file.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  } else {
    SSL_CTX_load_verify_locations(context.get(), security.ca_file.c_str(), nullptr);
  }
  if (!security.cert_file.empty()) {
    SSL_CTX_use_certificate_chain_file(context.get(), security.cert_file.c_str());
    SSL_CTX_use_PrivateKey_file(context.get(), security.key_file.c_str(), SSL_FILETYPE_PEM);
  }
  const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), &SSL_free);
  SSL_set_fd(ssl.get(), fd);
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(ssl.get(), kHttp2, sizeof(kHttp2));
  const std::unique_ptr<ASN1_OCTET_STRING, decltype(&ASN1_OCTET_STRING_free)> ip(a2i_IPADDRESS(target.host.c_str()), &ASN1_OCTET_STRING_free);
  const bool is_address = ip != nullptr;
  if (!is_address) SSL_set_tlsext_host_name(ssl.get(), target.host.c_str());
  ERR_clear_error();
  errno = 0;
  if (SSL_connect(ssl.get()) != 1) {
    if (IsSilence(errno)) return Silent(kName, target.unix_path.empty() ? absl::StrCat(target.host, ":", target.port) : target.unix_path, timeout);
    const std::string error = OpenSslError();
    if (absl::StrContains(error, "wrong version number") || absl::StrContains(error, "packet length too long")) {
      return Failed(kName, absl::StrCat("what listens at ", target.host, ":", target.port, " does not speak TLS"),
                    "leave out --ca and --tls, or start the server with --tls-cert and --tls-key");
    }
    return Failed(kName, absl::StrCat("the TLS handshake failed: ", error), "look into the server's log; hfopt certs makes certificates that fit each other");
  }
  const std::unique_ptr<X509, decltype(&X509_free)> x509(SSL_get1_peer_certificate(ssl.get()), &X509_free);
  const std::unique_ptr<BIO, decltype(&BIO_free)> pem(BIO_new(BIO_s_mem()), &BIO_free);
  PEM_write_bio_X509(pem.get(), x509.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(pem.get(), &data);
  const absl::StatusOr<tls::Certificate> certificate = tls::ParseCertificate(std::string(data, static_cast<size_t>(size)), "the server");
  if (!certificate.ok()) return Failed(kName, std::string(certificate.status().message()), "give the server a certificate of hfopt certs");
  if (const long verdict = SSL_get_verify_result(ssl.get()); verdict != X509_V_OK) {
    return Failed(kName, absl::StrCat("the certificate of the server (", certificate->subject, ", in force until ",
                                      absl::FormatTime(certificate->not_after, absl::UTCTimeZone()), ") cannot be trusted: ",
                                      X509_verify_cert_error_string(verdict)),
                  security.ca_file.empty() ? "name the CA that it comes from with --ca" : absl::StrCat("is ", security.ca_file, " the CA of this server? Renew certificates with hfopt certs"));
  }
  const bool named = is_address ? X509_check_ip_asc(x509.get(), target.host.c_str(), 0) == 1
                                : X509_check_host(x509.get(), target.host.c_str(), target.host.size(), 0, nullptr) == 1;
  if (!named) {
    return Failed(kName, absl::StrCat("you dialled ", target.host, ", and the server's certificate is for ", DialledNames(*certificate)),
                  absl::StrCat("dial one of these, or make the server a certificate with hfopt certs --name ", target.host));
  }
  // With TLS 1.3 the server judges our certificate after the handshake: its first bytes, HTTP/2's SETTINGS or an alert, tell.
  char first;
  if (SSL_read(ssl.get(), &first, 1) <= 0) {
    return Failed(kName, absl::StrCat("the server refused ", security.cert_file.empty() ? "a client without certificate" : security.cert_file, ": ", OpenSslError()),
                  security.cert_file.empty() ? "show one with --cert and --key" : "use a certificate that comes from the CA of its --tls-client-ca");
  }
  return Passed(kName, absl::StrCat(SSL_get_version(ssl.get()), ", certificate of ", certificate->subject, " for ", DialledNames(*certificate), ", in force until ",
                                    absl::FormatTime("%Y-%m-%d", certificate->not_after, absl::UTCTimeZone())));
}

// Whether what has accepted the connection completes a TLS handshake, with whatever certificate.
bool SpeaksTls(int fd) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), &SSL_free);
  SSL_set_fd(ssl.get(), fd);
  const bool done = SSL_connect(ssl.get()) == 1;
  ERR_clear_error();
  return done;
}

// What answers HTTP/2's preface without encryption. `dial` makes another connection.
Step CheckHttp2(int fd, const std::string& server, absl::FunctionRef<int()> dial, absl::Duration timeout) {
  constexpr char kName[] = "HTTP/2";
  constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";  // and an empty SETTINGS frame
  unsigned char frame[9] = {};
  size_t received = 0;
  errno = 0;
  if (send(fd, kPreface, sizeof(kPreface) - 1, MSG_NOSIGNAL) > 0) {
    for (ssize_t n; received < sizeof(frame) && (n = recv(fd, frame + received, sizeof(frame) - received, 0)) > 0;) received += n;
  }
  const bool silent = received == 0 && IsSilence(errno);
  constexpr unsigned char kSettings = 4;
  if (received == sizeof(frame) && frame[3] == kSettings) return Passed(kName, "answers, in plaintext");
  const int other = dial();
  const absl::Cleanup close_other = [other] {
    if (other >= 0) close(other);
  };
  if (other >= 0 && SpeaksTls(other)) {
    return Failed(kName, absl::StrCat("the server at ", server, " speaks TLS"), "name the CA of its certificate with --ca");
  }
  if (silent) return Silent(kName, server, timeout);
  return Failed(kName, absl::StrCat("what listens at ", server, " is no gRPC server"), "is this the port of hfopt-server (7447 by default)?");
}

// One blocking call of grpc.health.v1, whose messages are an empty request and one enum.
Step CheckHealth(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout) {
  constexpr char kName[] = "health";
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const grpc::Slice nothing;
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  std::mutex mu;
  std::condition_variable changed;
  std::optional<grpc::Status> status;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &request, &response, [&](grpc::Status s) {
    const std::lock_guard<std::mutex> lock(mu);
    status = std::move(s);
    changed.notify_all();
  });
  std::unique_lock<std::mutex> lock(mu);
  changed.wait(lock, [&] { return status.has_value(); });
  grpc::Slice answer;
  if (status->ok() && response.DumpToSingleSlice(&answer).ok() && answer.size() == 2 && answer.begin()[0] == 8) {
    return answer.begin()[1] == 1 ? Passed(kName, "SERVING") : Failed(kName, "the server says that it is not serving", "it drains: start it again, or wait until it is back");
  }
  return Failed(kName, absl::StrCat("no answer of grpc.health.v1: ", status->error_message()), "is this an hfopt-server?");
}

}  // namespace

std::vector<Step> Diagnose(const ConnectionFlags& flags, absl::Duration timeout) {
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to servers that have gone
  std::vector<Step> steps;
  const client::ChannelSecurity security = flags.EffectiveSecurity();
  const std::string& server = flags.server;

  const auto channel = client::MakeChannel(server, security);
  if (!channel.ok()) {
    steps.push_back(Failed("credentials", std::string(channel.status().message()), "give other files, or leave them out"));
    return steps;
  }
  steps.push_back(Passed("credentials", absl::StrCat(security.is_encrypted() ? "TLS" : "plaintext", security.cert_file.empty() ? "" : ", with a certificate",
                                                     security.has_token() ? ", with a token" : "")));

  const std::optional<Target> target = Parse(server);
  if (!target.has_value()) {
    steps.push_back(Failed("name", absl::StrCat("\"", server, "\" is no address"), "give HOST:PORT or unix:PATH"));
    return steps;
  }
  int port = 0;
  if (target->unix_path.empty() && (!absl::SimpleAtoi(target->port, &port) || port < 1 || port > 65535)) {
    steps.push_back(Failed("name", absl::StrCat("the port of \"", server, "\" is \"", target->port, "\""), "give a port from 1 to 65535; hfopt-server listens on 7447 by default"));
    return steps;
  }
  std::function<int()> dial;
  if (!target->unix_path.empty()) {
    steps.push_back(Skipped("name", "a Unix socket"));
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    if (target->unix_path.size() >= sizeof(address.sun_path)) {
      steps.back() = Failed("name", absl::StrCat("the path of the socket has ", target->unix_path.size(), " bytes; the system allows ", sizeof(address.sun_path) - 1),
                            "put the socket into a directory with a shorter name");
      return steps;
    }
    std::strncpy(address.sun_path, target->unix_path.c_str(), sizeof(address.sun_path) - 1);
    dial = [address, timeout] { return Dial(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof(address), timeout); };
  } else {
    const addrinfo hints{.ai_flags = 0, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    addrinfo* found = nullptr;
    if (const int error = getaddrinfo(target->host.c_str(), target->port.c_str(), &hints, &found); error != 0) {
      steps.push_back(Failed("name", absl::StrCat("\"", target->host, "\" cannot be resolved: ", gai_strerror(error)),
                             "is it spelt right, and known to this machine's DNS? In a container, use the service's name"));
      return steps;
    }
    const std::shared_ptr<addrinfo> addresses(found, &freeaddrinfo);
    std::vector<std::string> numbers;
    for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
      char number[NI_MAXHOST] = "";
      getnameinfo(a->ai_addr, a->ai_addrlen, number, sizeof(number), nullptr, 0, NI_NUMERICHOST);
      numbers.emplace_back(number);
    }
    steps.push_back(Passed("name", absl::StrCat(target->host, " is ", absl::StrJoin(numbers, ", "))));
    dial = [addresses, timeout] {
      int fd = -EADDRNOTAVAIL;
      for (const addrinfo* a = addresses.get(); a != nullptr && fd < 0; a = a->ai_next) fd = Dial(a->ai_family, a->ai_addr, a->ai_addrlen, timeout);
      return fd;
    };
  }
  const int fd = dial();
  const absl::Cleanup close_fd = [fd] {
    if (fd >= 0) close(fd);
  };
  if (fd < 0) {
    const int error = -fd;
    steps.push_back(error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH
                        ? Failed("connection", absl::StrCat(server, " cannot be reached: ", std::strerror(error)),
                                 "does a firewall or a missing port mapping stand between? Does the server listen on 127.0.0.1 alone? See its --address")
                        : Failed("connection", absl::StrCat("no server answers at ", server, " (", std::strerror(error), ")"),
                                 "start one with hfopt-server, or say where it is with --server"));
    return steps;
  }
  steps.push_back(Passed("connection", "accepted"));

  steps.push_back(security.is_encrypted() ? CheckTls(fd, *target, security, timeout) : CheckHttp2(fd, server, dial, timeout));
  if (steps.back().result == Step::Result::kFailed) return steps;

  client::RunClient runs(*channel, {.timeout = timeout});
  const absl::StatusOr<v1::GetServerResponse> info = runs.GetServer();
  if (absl::IsUnimplemented(info.status())) {
    steps.push_back(Skipped("identity", "the server is older than this program and cannot say"));
  } else if (!info.ok()) {
    const bool refused = absl::IsUnauthenticated(info.status());
    steps.push_back(Failed("identity", std::string(info.status().message()),
                           refused ? "show credentials that the server knows" : "look into the server's log"));
    return steps;
  } else {
    steps.push_back(Passed("identity", absl::StrCat(info->caller().empty() ? "everybody" : info->caller(), " is ",
                                                    absl::AsciiStrToLower(absl::StripPrefix(v1::Role_Name(info->role()), "ROLE_")))));
    steps.push_back(Passed("version", absl::StrCat("hfopt ", info->version(), ", protocol ", info->protocol_version())));
  }
  steps.push_back(CheckHealth(*channel, timeout));
  return steps;
}

}  // namespace hfopt::cli
