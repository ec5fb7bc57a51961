#include "client/cli/connection_flags.h"

#include <cstdlib>

#include "CLI/CLI.hpp"

namespace hfopt::cli {

client::ChannelSecurity ConnectionFlags::EffectiveSecurity() const {
  client::ChannelSecurity effective = security;
  if (const char* token = std::getenv("HFOPT_TOKEN"); token != nullptr && effective.token_file.empty()) effective.token = token;
  return effective;
}

void AddSecurityFlags(CLI::App& app, ConnectionFlags& flags) {
  client::ChannelSecurity& security = flags.security;
  constexpr char kGroup[] = "Security";
  const auto add = [&](const char* name, std::string& file, const char* variable, const char* help) {
    app.add_option(name, file, help)->envname(variable)->type_name("FILE")->group(kGroup);
  };
  add("--ca", security.ca_file, "HFOPT_CA", "TLS: PEM file of the CA that the server's certificate comes from");
  app.add_flag("--tls", security.tls, "TLS with the CAs that this system trusts")->envname("HFOPT_TLS")->group(kGroup);
  add("--cert", security.cert_file, "HFOPT_CERT", "PEM file of the certificate that shows the server who you are");
  add("--key", security.key_file, "HFOPT_KEY", "PEM file of its key");
  add("--token-file", security.token_file, "HFOPT_TOKEN_FILE",
      "File with the token that shows the server who you are; or the token itself as HFOPT_TOKEN in the environment");
  app.add_flag("--insecure", security.insecure, "Send the token to another machine without TLS")->envname("HFOPT_INSECURE")->group(kGroup);
}

void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags) {
  app.add_option("--server", flags.server, "Address of the hfopt-server, HOST:PORT or unix:PATH")
      ->envname("HFOPT_SERVER")
      ->type_name("ADDRESS")
      ->capture_default_str();
  AddSecurityFlags(app, flags);
}

}  // namespace hfopt::cli
