#include "proto/tls/certificate_files.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace hfopt::tls {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using X509Ptr = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// The text of a file.
absl::StatusOr<std::string> Read(const std::string& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) return absl::ErrnoToStatus(EISDIR, absl::StrCat("cannot read ", file));
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in.is_open() || in.bad() || (text.empty() && errno != 0)) {
    return absl::ErrnoToStatus(errno == 0 ? EIO : errno, absl::StrCat("cannot read ", file));
  }
  return text;
}

// A reader of PEM from `text`, which must outlive it.
Bio BioOf(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &BIO_free); }

absl::StatusOr<X509Ptr> CertificateOf(const std::string& pem, const std::string& source) {
  const Bio bio = BioOf(pem);
  X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr), &X509_free);
  ERR_clear_error();
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(source, " has no certificate in PEM (\"-----BEGIN CERTIFICATE-----\")"));
  }
  return certificate;
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm fields{};
  if (ASN1_TIME_to_tm(time, &fields) != 1) return absl::InfinitePast();
  return absl::FromTM(fields, absl::UTCTimeZone());
}

std::string TextOf(const GENERAL_NAME& name) {
  const auto text = [](const ASN1_STRING* s) {
    return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(s)), static_cast<size_t>(ASN1_STRING_length(s)));
  };
  switch (name.type) {
    case GEN_DNS:
      return absl::StrCat("DNS:", text(name.d.dNSName));
    case GEN_URI:
      return absl::StrCat("URI:", text(name.d.uniformResourceIdentifier));
    case GEN_IPADD: {
      const bool is_v4 = ASN1_STRING_length(name.d.iPAddress) == 4;
      char number[INET6_ADDRSTRLEN] = "";
      inet_ntop(is_v4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(name.d.iPAddress), number, sizeof(number));
      return absl::StrCat("IP:", number);
    }
    default:
      return "";
  }
}

Certificate Describe(X509& x509) {
  Certificate result;
  const Bio subject(BIO_new(BIO_s_mem()), &BIO_free);
  X509_NAME_print_ex(subject.get(), X509_get_subject_name(&x509), 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long size = BIO_get_mem_data(subject.get(), &data);
  result.subject.assign(data, static_cast<size_t>(size));
  result.not_before = TimeOf(X509_get0_notBefore(&x509));
  result.not_after = TimeOf(X509_get0_notAfter(&x509));
  auto* const names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&x509, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    if (std::string name = TextOf(*sk_GENERAL_NAME_value(names, i)); !name.empty()) result.names.push_back(std::move(name));
  }
  GENERAL_NAMES_free(names);
  return result;
}

absl::Status CheckInForce(const Certificate& certificate, const std::string& file, absl::Time now) {
  if (now >= certificate.not_before && now <= certificate.not_after) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the certificate in ", file, " is in force from ", absl::FormatTime(certificate.not_before, absl::UTCTimeZone()), " to ",
      absl::FormatTime(certificate.not_after, absl::UTCTimeZone()), ", and now is ", absl::FormatTime(now, absl::UTCTimeZone()),
      "; renew it (hfopt certs), or set the clock right"));
}

}  // namespace

absl::StatusOr<Certificate> ParseCertificate(const std::string& pem, const std::string& source) {
  const absl::StatusOr<X509Ptr> certificate = CertificateOf(pem, source);
  if (!certificate.ok()) return certificate.status();
  return Describe(**certificate);
}

absl::Status Check(const CertificateFiles& files, absl::Time now) {
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("a certificate and its key go together, but only ",
                                                   files.key.empty() ? files.certificate : files.key, " is given"));
  }
  for (const std::string* file : {&files.ca, &files.certificate}) {
    if (file->empty()) continue;
    const absl::StatusOr<std::string> pem = Read(*file);
    if (!pem.ok()) return pem.status();
    const absl::StatusOr<X509Ptr> certificate = CertificateOf(*pem, *file);
    if (!certificate.ok()) return certificate.status();
    if (absl::Status status = CheckInForce(Describe(**certificate), *file, now); !status.ok()) return status;
    if (file == &files.ca) continue;
    const absl::StatusOr<std::string> key_pem = Read(files.key);
    if (!key_pem.ok()) return key_pem.status();
    const Bio bio = BioOf(*key_pem);
    // An encrypted key would have OpenSSL ask at the terminal.
    const auto no_password = [](char*, int, int, void*) { return -1; };
    const Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr), &EVP_PKEY_free);
    const bool fits = key != nullptr && X509_check_private_key(certificate->get(), key.get()) == 1;
    ERR_clear_error();
    if (key == nullptr) return absl::InvalidArgumentError(absl::StrCat(files.key, " has no unencrypted private key in PEM"));
    if (!fits) return absl::InvalidArgumentError(absl::StrCat("the key in ", files.key, " is not that of the certificate in ", *file));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::experimental::CertificateProviderInterface> Watch(const CertificateFiles& files, absl::Duration interval) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      files.key, files.certificate, files.ca, static_cast<unsigned>(std::max<int64_t>(1, absl::ToInt64Seconds(interval))));
}

}  // namespace hfopt::tls
