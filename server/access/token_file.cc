#include "server/access/token_file.h"

#include <openssl/sha.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "server/access/role.h"

namespace hfopt::server {
namespace {

std::string DigestOf(absl::string_view token) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec &&
         a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(std::string path, Log log) {
  std::unique_ptr<TokenFile> file(new TokenFile(std::move(path), std::move(log)));
  absl::MutexLock lock(&file->mu_);
  HFOPT_ASSIGN_OR_RETURN(file->tokens_, file->Read(file->read_));
  return file;
}

absl::StatusOr<TokenFile::Tokens> TokenFile::Read(struct stat& read) const {
  std::ifstream in(path_);
  if (!in.is_open() || stat(path_.c_str(), &read) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the tokens in ", path_));
  if ((read.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(path_, " can be written by others than its owner, who could give themselves a token; chmod 600 it"));
  }
  Tokens tokens;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::vector<std::string> words = absl::StrSplit(line.substr(0, line.find('#')), absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    const std::optional<v1::Role> role = RoleNamed(words[0]);
    // The line itself is not shown: it may hold a token that somebody forgot to hash.
    absl::string_view hex = words.size() == 3 ? absl::string_view(words[2]) : "";
    if (!role.has_value() || !absl::ConsumePrefix(&hex, "sha256:") || hex.size() != 2 * SHA256_DIGEST_LENGTH ||
        hex.find_first_not_of("0123456789abcdefABCDEF") != absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ", line ", number, ", is not \"ROLE NAME sha256:HEX\" with a role of reader, worker or operator and 64 "
                                                     "digits; hfopt token writes such lines"));
    }
    if (!tokens.emplace(absl::HexStringToBytes(hex), Caller{words[1], *role}).second) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ", line ", number, ", has the token of an earlier line"));
    }
  }
  if (in.bad()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the tokens in ", path_));
  return tokens;
}

std::optional<Caller> TokenFile::Find(absl::string_view token) {
  absl::MutexLock lock(&mu_);
  struct stat now {};
  if (stat(path_.c_str(), &now) != 0) {
    if (!missing_) log_(absl::StrCat("cannot look at ", path_, ": ", std::strerror(errno), "; the tokens of before stay in force"));
    missing_ = true;
  } else if (std::exchange(missing_, false) || !SameFile(now, read_)) {
    absl::StatusOr<Tokens> tokens = Read(read_);
    if (tokens.ok()) {
      tokens_ = *std::move(tokens);
      log_(absl::StrCat("read ", tokens_.size(), " tokens from ", path_));
    } else {
      log_(absl::StrCat(tokens.status().message(), "; the tokens of before stay in force"));
      read_ = now;
    }
  }
  // Looked up by digest: how long that takes tells a caller nothing about tokens.
  const auto found = tokens_.find(DigestOf(token));
  return found == tokens_.end() ? std::nullopt : std::optional<Caller>(found->second);
}

}  // namespace hfopt::server
