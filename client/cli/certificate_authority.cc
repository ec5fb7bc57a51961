#include "client/cli/certificate_authority.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/models/status_macros.h"

namespace hfopt::cli {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using X509Ptr = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// Clocks differ: a certificate is in force somewhat before it is made.
constexpr absl::Duration kClockSkew = absl::Minutes(5);

absl::Status Error(const char* what) {
  const unsigned long code = ERR_peek_last_error();
  const char* const reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("cannot ", what, ": ", reason == nullptr ? "OpenSSL gives no reason" : reason));
}

std::string TextOf(const Bio& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<KeyPair> ToPem(X509& certificate, EVP_PKEY& key) {
  const Bio certificate_pem(BIO_new(BIO_s_mem()), &BIO_free), key_pem(BIO_new(BIO_s_mem()), &BIO_free);
  if (PEM_write_bio_X509(certificate_pem.get(), &certificate) != 1 ||
      PEM_write_bio_PKCS8PrivateKey(key_pem.get(), &key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return Error("write a certificate in PEM");
  }
  return KeyPair{.certificate = TextOf(certificate_pem), .key = TextOf(key_pem)};
}

// What makes a certificate one of a CA, a server or a client.
struct Extension {
  int nid;
  std::string value;  // as in OpenSSL's configuration files
};

// A certificate for a new key, signed by `issuer`, or by itself when that is null.
absl::StatusOr<std::pair<X509Ptr, Key>> Make(const std::string& common_name, const std::vector<Extension>& extensions, absl::Time now,
                                             absl::Duration lifetime, X509* issuer, EVP_PKEY* issuer_key) {
  Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  X509Ptr certificate(X509_new(), &X509_free);
  unsigned char serial[16];
  if (key == nullptr || certificate == nullptr || RAND_bytes(serial, sizeof(serial)) != 1) return Error("make a key");
  serial[0] &= 0x7f;  // positive
  X509* const x = certificate.get();
  X509_set_version(x, X509_VERSION_3);
  const std::unique_ptr<BIGNUM, decltype(&BN_free)> number(BN_bin2bn(serial, sizeof(serial), nullptr), &BN_free);
  BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(x));
  ASN1_TIME_set(X509_getm_notBefore(x), absl::ToTimeT(now - kClockSkew));
  ASN1_TIME_set(X509_getm_notAfter(x), absl::ToTimeT(now + lifetime));
  X509_set_pubkey(x, key.get());
  X509_NAME* const name = X509_get_subject_name(x);
  if (X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>("hfopt"), -1, -1, 0) != 1 ||
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0) != 1) {
    return Error("name a certificate (64 characters at most)");
  }
  X509* const signer = issuer == nullptr ? x : issuer;
  X509_set_issuer_name(x, X509_get_subject_name(signer));
  X509V3_CTX context;
  X509V3_set_ctx(&context, signer, x, nullptr, nullptr, 0);
  for (const Extension& e : extensions) {
    const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
        X509V3_EXT_conf_nid(nullptr, &context, e.nid, e.value.c_str()), &X509_EXTENSION_free);
    if (extension == nullptr || X509_add_ext(x, extension.get(), -1) != 1) return Error(absl::StrCat("put \"", e.value, "\" into a certificate").c_str());
  }
  if (X509_sign(x, issuer_key == nullptr ? key.get() : issuer_key, EVP_sha256()) == 0) return Error("sign a certificate");
  return std::pair(std::move(certificate), std::move(key));
}

}  // namespace

struct CertificateAuthority::Parsed {
  X509Ptr certificate;
  Key key;
};

absl::StatusOr<CertificateAuthority> CertificateAuthority::Create(const std::string& name, absl::Time now, absl::Duration lifetime) {
  HFOPT_ASSIGN_OR_RETURN(auto made, Make(name,
                                         {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                          {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                          {NID_subject_key_identifier, "hash"}},
                                         now, lifetime, nullptr, nullptr));
  CertificateAuthority ca;
  HFOPT_ASSIGN_OR_RETURN(ca.pem_, ToPem(*made.first, *made.second));
  ca.parsed_ = std::make_shared<const Parsed>(Parsed{std::move(made.first), std::move(made.second)});
  return ca;
}

absl::StatusOr<CertificateAuthority> CertificateAuthority::Load(const KeyPair& pem) {
  const auto bio = [](const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &BIO_free); };
  X509Ptr certificate(PEM_read_bio_X509(bio(pem.certificate).get(), nullptr, nullptr, nullptr), &X509_free);
  Key key(PEM_read_bio_PrivateKey(bio(pem.key).get(), nullptr, [](char*, int, int, void*) { return -1; }, nullptr), &EVP_PKEY_free);
  const bool fits = certificate != nullptr && key != nullptr && X509_check_ca(certificate.get()) > 0 &&
                    X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!fits) return absl::InvalidArgumentError("is not the certificate of a CA with its unencrypted key");
  CertificateAuthority ca;
  ca.pem_ = pem;
  ca.parsed_ = std::make_shared<const Parsed>(Parsed{std::move(certificate), std::move(key)});
  return ca;
}

absl::StatusOr<KeyPair> CertificateAuthority::IssueServer(const std::string& common_name, const std::vector<std::string>& names, absl::Time now,
                                                          absl::Duration lifetime) const {
  std::vector<std::string> alternatives;
  for (const std::string& name : names) {
    if (name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_*:") != std::string::npos || name.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is neither a DNS name nor an IP address"));
    }
    ASN1_OCTET_STRING* const address = a2i_IPADDRESS(name.c_str());
    alternatives.push_back(absl::StrCat(address == nullptr ? "DNS:" : "IP:", name));
    ASN1_OCTET_STRING_free(address);
    ERR_clear_error();
  }
  HFOPT_ASSIGN_OR_RETURN(const auto made, Make(common_name,
                                               {{NID_basic_constraints, "critical,CA:FALSE"},
                                                {NID_key_usage, "critical,digitalSignature"},
                                                {NID_ext_key_usage, "serverAuth"},
                                                {NID_subject_key_identifier, "hash"},
                                                {NID_authority_key_identifier, "keyid:always"},
                                                {NID_subject_alt_name, absl::StrJoin(alternatives, ",")}},
                                               now, lifetime, parsed_->certificate.get(), parsed_->key.get()));
  return ToPem(*made.first, *made.second);
}

absl::StatusOr<KeyPair> CertificateAuthority::IssueClient(const std::string& common_name, const std::string& role, absl::Time now,
                                                          absl::Duration lifetime) const {
  HFOPT_ASSIGN_OR_RETURN(const auto made, Make(common_name,
                                               {{NID_basic_constraints, "critical,CA:FALSE"},
                                                {NID_key_usage, "critical,digitalSignature"},
                                                {NID_ext_key_usage, "clientAuth"},
                                                {NID_subject_key_identifier, "hash"},
                                                {NID_authority_key_identifier, "keyid:always"},
                                                {NID_subject_alt_name, absl::StrCat("URI:urn:hfopt:role:", role)}},
                                               now, lifetime, parsed_->certificate.get(), parsed_->key.get()));
  return ToPem(*made.first, *made.second);
}

}  // namespace hfopt::cli
