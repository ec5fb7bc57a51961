#ifndef HFOPT_CLIENT_CLI_CERTIFICATE_AUTHORITY_H_
#define HFOPT_CLIENT_CLI_CERTIFICATE_AUTHORITY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hfopt::cli {

// PEM texts.
struct KeyPair {
  std::string certificate;
  std::string key;
};

// A CA of one's own for the certificates of an hfopt service. ECDSA on P-256 with SHA-256, X.509 version 3 (RFC 5280).
class CertificateAuthority {
 public:
  // A new one, in force for `lifetime` from `now`.
  static absl::StatusOr<CertificateAuthority> Create(const std::string& name, absl::Time now, absl::Duration lifetime);
  // INVALID_ARGUMENT when these are not a CA and its key.
  static absl::StatusOr<CertificateAuthority> Load(const KeyPair& pem);

  const KeyPair& pem() const { return pem_; }

  // For a server that is dialled by `names`: DNS names and IP addresses.
  absl::StatusOr<KeyPair> IssueServer(const std::string& common_name, const std::vector<std::string>& names, absl::Time now,
                                      absl::Duration lifetime) const;
  // For a caller of this role: reader, worker or operator.
  absl::StatusOr<KeyPair> IssueClient(const std::string& common_name, const std::string& role, absl::Time now, absl::Duration lifetime) const;

 private:
  struct Parsed;  // OpenSSL's form

  KeyPair pem_;
  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace hfopt::cli

#endif  // HFOPT_CLIENT_CLI_CERTIFICATE_AUTHORITY_H_
