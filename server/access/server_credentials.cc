#include "server/access/server_credentials.h"

#include "core/status_macros.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "proto/tls/certificate_files.h"

namespace hfopt::server {

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const ServerOptions& options) {
  if (!options.is_encrypted()) return grpc::InsecureServerCredentials();
  const tls::CertificateFiles files{.ca = options.tls_client_ca, .certificate = options.tls_cert, .key = options.tls_key};
  HFOPT_RETURN_IF_ERROR(tls::Check(files, absl::Now()));
  grpc::experimental::TlsServerCredentialsOptions tls(tls::Watch(files, options.tls_reload_interval));
  tls.watch_identity_key_cert_pairs();
  if (!options.tls_client_ca.empty()) {
    tls.watch_root_certs();
    tls.set_cert_request_type(options.tokens.empty() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                                     : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(tls);
}

}  // namespace hfopt::server
