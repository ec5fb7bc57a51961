#ifndef HFOPT_PROTO_TLS_CERTIFICATE_FILES_H_
#define HFOPT_PROTO_TLS_CERTIFICATE_FILES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/security/tls_certificate_provider.h"

namespace hfopt::tls {

// The PEM files of one side of a connection; empty: none.
struct CertificateFiles {
  std::string ca;           // certificates that the other side's must come from
  std::string certificate;  // one's own, followed by its chain
  std::string key;          // of `certificate`, not encrypted
};

// What a certificate says.
struct Certificate {
  std::string subject;
  std::vector<std::string> names;  // "DNS:localhost", "IP:127.0.0.1", "URI:urn:hfopt:role:worker"
  absl::Time not_before, not_after;
};

// The first certificate of a PEM text; `source` is named in errors. INVALID_ARGUMENT.
absl::StatusOr<Certificate> ParseCertificate(const std::string& pem, const std::string& source);

// Whether the files can be used at `now`: present, readable, PEM, in force, the key that of the certificate. gRPC itself says of none of
// this which file it is or why. NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT or FAILED_PRECONDITION.
absl::Status Check(const CertificateFiles& files, absl::Time now);

// Gives gRPC the files, and again when they have changed, so that certificates are renewed without a restart. A connection keeps what it began with.
std::shared_ptr<grpc::experimental::CertificateProviderInterface> Watch(const CertificateFiles& files, absl::Duration interval);

}  // namespace hfopt::tls

#endif  // HFOPT_PROTO_TLS_CERTIFICATE_FILES_H_
