#ifndef HFOPT_TESTS_CLIENT_MODELS_TEST_FILES_H_
#define HFOPT_TESTS_CLIENT_MODELS_TEST_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace hfopt::models {

// A new, empty folder that vanishes with its contents.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file of the folder and answers its path; replaces what was there.
  std::string Write(const std::string& name, absl::string_view bytes) const;
  // A link in the folder to every file of `other`.
  void LinkAll(const std::string& other) const;
  void Remove(const std::string& name) const;

 private:
  std::string path_;
};

std::string ReadAll(const std::string& path);

// The bytes of a NumPy 1.0 file.
std::string NpyBytes(const std::string& descriptor, const std::string& shape, absl::string_view data,
                     const std::string& fortran_order = "False");

// `bytes` with a few of them changed, as a function of the seed: rubbish that looks almost right.
std::string Damaged(std::string bytes, uint64_t seed);

}  // namespace hfopt::models

#endif  // HFOPT_TESTS_CLIENT_MODELS_TEST_FILES_H_
