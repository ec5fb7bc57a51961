// hfopt certs: a CA and the certificates that a server and its callers need. hfopt token: a line for the server's file of tokens.

#include <openssl/rand.h>
#include <openssl/sha.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/certificate_authority.h"
#include "client/cli/command.h"
#include "client/cli/replace_file.h"
#include "client/models/status_macros.h"
#include "proto/tls/certificate_files.h"

namespace hfopt::cli {
namespace {

constexpr const char* kRoles[] = {"operator", "worker", "reader"};

struct CertsFlags {
  std::string directory = "hfopt-certs";
  std::vector<std::string> names;
  int days = 365;
};

// By these a server is dialled on one machine, in the compose file, from a container to its host, and in a cluster.
std::vector<std::string> UsualNames() {
  std::vector<std::string> names = {"localhost", "127.0.0.1", "::1", "server", "hfopt", "hfopt-server", "host.docker.internal",
                                    "hfopt-server.hfopt.svc", "hfopt-server.hfopt.svc.cluster.local"};
  char host[64] = "";
  if (gethostname(host, sizeof(host) - 1) == 0 && host[0] != '\0') names.insert(names.begin(), host);
  return names;
}

// Empty when there is no such file.
absl::StatusOr<std::string> ReadAll(const std::string& file) {
  HFOPT_RETURN_IF_ERROR(CheckReplaceable(file));
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  if (!in.is_open() && errno == ENOENT) return "";
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in.is_open() || in.bad()) return absl::ErrnoToStatus(errno == 0 ? EIO : errno, absl::StrCat("cannot read ", file));
  return text;
}

// Held while a file of this directory is read and replaced, against another program of ours that does. Leaves nothing behind.
class ReplacementLock {
 public:
  explicit ReplacementLock(const std::string& file) {
    const std::string directory = std::filesystem::path(file).parent_path();
    descriptor_ = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor_ >= 0) flock(descriptor_, LOCK_EX);
  }
  ~ReplacementLock() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  ReplacementLock(const ReplacementLock&) = delete;
  ReplacementLock& operator=(const ReplacementLock&) = delete;

 private:
  int descriptor_;
};

absl::Status Write(const std::string& directory, const std::string& name, const KeyPair& pair) {
  // The key first: whoever sees the new certificate finds its key.
  HFOPT_RETURN_IF_ERROR(ReplaceFile(absl::StrCat(directory, "/", name, ".key"), pair.key, 0600));
  return ReplaceFile(absl::StrCat(directory, "/", name, ".pem"), pair.certificate, 0644);
}

// The CA of the directory, made if there is none. Its own lifetime is ten of its certificates'.
absl::StatusOr<CertificateAuthority> AuthorityOf(const CertsFlags& flags, absl::Time now) {
  const std::string certificate = absl::StrCat(flags.directory, "/ca.pem"), key = absl::StrCat(flags.directory, "/ca.key");
  if (!std::filesystem::exists(certificate) && !std::filesystem::exists(key)) {
    HFOPT_ASSIGN_OR_RETURN(const CertificateAuthority ca, CertificateAuthority::Create("hfopt CA", now, absl::Hours(24) * 10 * flags.days));
    HFOPT_RETURN_IF_ERROR(Write(flags.directory, "ca", ca.pem()));
    return ca;
  }
  HFOPT_ASSIGN_OR_RETURN(const std::string certificate_pem, ReadAll(certificate));
  HFOPT_ASSIGN_OR_RETURN(const std::string key_pem, ReadAll(key));
  absl::StatusOr<CertificateAuthority> ca = CertificateAuthority::Load({.certificate = certificate_pem, .key = key_pem});
  if (!ca.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(certificate, " with ", key, " ", ca.status().message(),
                                                   "; bring both back, or name another directory with --dir for a new CA"));
  }
  HFOPT_RETURN_IF_ERROR(tls::Check({.ca = certificate}, now));
  return ca;
}

absl::Status MakeCertificates(const CertsFlags& flags) {
  std::error_code error;
  std::filesystem::create_directories(flags.directory, error);
  if (error) return absl::UnknownError(absl::StrCat("cannot create ", flags.directory, ": ", error.message()));
  const absl::Time now = absl::Now();
  const absl::Duration lifetime = absl::Hours(24) * flags.days;
  std::vector<std::string> names = UsualNames();
  names.insert(names.end(), flags.names.begin(), flags.names.end());

  HFOPT_ASSIGN_OR_RETURN(const CertificateAuthority ca, AuthorityOf(flags, now));
  HFOPT_ASSIGN_OR_RETURN(const KeyPair server, ca.IssueServer("hfopt-server", names, now, lifetime));
  HFOPT_RETURN_IF_ERROR(Write(flags.directory, "server", server));
  for (const char* role : kRoles) {
    HFOPT_ASSIGN_OR_RETURN(const KeyPair client, ca.IssueClient(role, role, now, lifetime));
    HFOPT_RETURN_IF_ERROR(Write(flags.directory, role, client));
  }

  const std::string& d = flags.directory;
  std::cout << d << ": ca, server, operator, worker and reader (.pem, .key), in force until " << absl::FormatTime("%Y-%m-%d", now + lifetime, absl::UTCTimeZone())
            << "\nthe server's certificate is for " << absl::StrJoin(names, ", ") << "\n\n"
            << "  server     hfopt-server --address 0.0.0.0:7447 --tls-cert " << d << "/server.pem --tls-key " << d << "/server.key --tls-client-ca " << d << "/ca.pem\n"
            << "  workers    hfopt-worker --server HOST:7447 --ca " << d << "/ca.pem --cert " << d << "/worker.pem --key " << d << "/worker.key ...\n"
            << "  you        hfopt run list --server HOST:7447 --ca " << d << "/ca.pem --cert " << d << "/operator.pem --key " << d << "/operator.key\n\n"
            << "Whoever has ca.key can make himself an operator: keep it away from servers and workers. The same command again makes new\n"
            << "certificates of the same CA; running servers and workers take them up within ten seconds.\n";
  return absl::OkStatus();
}

struct TokenFlags {
  std::string name;
  std::string role = "worker";
  std::string tokens = "hfopt-tokens";
};

absl::Status MakeToken(const TokenFlags& flags) {
  unsigned char random[32], digest[SHA256_DIGEST_LENGTH];
  if (RAND_bytes(random, sizeof(random)) != 1) return absl::InternalError("the system has no random bytes");
  const std::string token =
      absl::StrCat("hfopt_", absl::WebSafeBase64Escape(absl::string_view(reinterpret_cast<const char*>(random), sizeof(random))));
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest);
  const ReplacementLock lock(flags.tokens);
  HFOPT_ASSIGN_OR_RETURN(std::string lines, ReadAll(flags.tokens));
  if (!lines.empty() && lines.back() != '\n') lines += '\n';
  absl::StrAppend(&lines, flags.role, " ", flags.name, " sha256:", absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest))), "\n");
  HFOPT_RETURN_IF_ERROR(ReplaceFile(flags.tokens, lines, 0600));
  std::cout << token << "\n";
  if (isatty(STDOUT_FILENO)) {
    std::cerr << "\nThis is the only time it is shown; " << flags.tokens << " has its digest alone. Servers with --tokens " << flags.tokens
              << " take it at once,\nand no longer when its line is gone. Callers show it as HFOPT_TOKEN in the environment, or with --token-file.\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddCertsCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<CertsFlags>();
  CLI::App& command = AddCommand(app, context, "certs",
                                 "Make a CA and certificates for a server and its callers (operator, worker, reader); or renew the certificates",
                                 [flags] { return MakeCertificates(*flags); });
  command.add_option("--dir", flags->directory, "Directory of the files; a CA that is there is used")->type_name("DIR")->capture_default_str();
  command.add_option("--name", flags->names, "Another name or IP address by which the server is dialled; may be repeated")
      ->type_name("NAME")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_option("--days", flags->days, "How long the certificates are in force; the CA ten times as long")
      ->check(CLI::Range(1, 3650))
      ->capture_default_str();
}

void AddTokenCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<TokenFlags>();
  CLI::App& command = AddCommand(app, context, "token", "Print a new token, and add the line to the server's file that makes it valid",
                                 [flags] { return MakeToken(*flags); });
  command.add_option("NAME", flags->name, "Whose it is, for messages and logs")
      ->required()
      ->check([](const std::string& name) { return name.find_first_of(" \t\r\n#") == std::string::npos && !name.empty() ? "" : "a name has no spaces and no #"; });
  command.add_option("--role", flags->role, "reader: sees runs; worker: computes for them too; operator: does everything")
      ->check(CLI::IsMember({"reader", "worker", "operator"}).description(""))
      ->type_name("reader|worker|operator")
      ->capture_default_str();
  command.add_option("--tokens", flags->tokens, "The file, as the server's --tokens; made if missing")->type_name("FILE")->capture_default_str();
}

}  // namespace hfopt::cli
