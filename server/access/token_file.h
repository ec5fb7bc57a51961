#ifndef HFOPT_SERVER_ACCESS_TOKEN_FILE_H_
#define HFOPT_SERVER_ACCESS_TOKEN_FILE_H_

#include <sys/stat.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "hfopt/v1/run_service.pb.h"

namespace hfopt::server {

// Who a caller has shown to be.
struct Caller {
  std::string name;
  v1::Role role = v1::ROLE_UNSPECIFIED;
};

// The tokens that a server accepts: a file with one line for each,
//
//     ROLE NAME sha256:HEX        # ROLE: reader, worker or operator; NAME: for messages and logs; HEX: of the token's bytes
//
// so whoever reads the file has no token (`hfopt token` makes tokens of 256 random bits; a guessable one would not be safe in it). The file is read
// again when it has changed: tokens are given and withdrawn without a restart. A change that cannot be read is logged, and what was in force stays so.
// Thread-safe.
class TokenFile {
 public:
  using Log = std::function<void(const std::string&)>;

  // NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT with the line. A file that others may write is refused.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(std::string path, Log log);

  // Whose token it is.
  std::optional<Caller> Find(absl::string_view token);

 private:
  using Tokens = std::map<std::string, Caller>;  // by digest

  TokenFile(std::string path, Log log) : path_(std::move(path)), log_(std::move(log)) {}
  absl::StatusOr<Tokens> Read(struct stat& read) const;

  const std::string path_;
  const Log log_;
  absl::Mutex mu_;
  struct stat read_ ABSL_GUARDED_BY(mu_) {};  // of the file when it was last read
  bool missing_ ABSL_GUARDED_BY(mu_) = false;           // it was not there when it was last looked for
  Tokens tokens_ ABSL_GUARDED_BY(mu_);
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_ACCESS_TOKEN_FILE_H_
