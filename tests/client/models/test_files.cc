#include "tests/client/models/test_files.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "client/cpp/shuffle.h"
#include "gtest/gtest.h"

namespace hfopt::models {

namespace fs = std::filesystem;

TempFolder::TempFolder() : path_(fs::path(testing::TempDir()) / "hfopt-XXXXXX") {
  if (mkdtemp(path_.data()) == nullptr) std::abort();
}

TempFolder::~TempFolder() { fs::remove_all(path_); }

std::string TempFolder::Write(const std::string& name, absl::string_view bytes) const {
  const fs::path path = fs::path(path_) / name;
  fs::remove(path);  // it may be a link
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

void TempFolder::LinkAll(const std::string& other) const {
  for (const fs::directory_entry& file : fs::directory_iterator(other)) {
    fs::create_symlink(file.path(), fs::path(path_) / file.path().filename());
  }
}

void TempFolder::Remove(const std::string& name) const { fs::remove(fs::path(path_) / name); }

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string NpyBytes(const std::string& descriptor, const std::string& shape, absl::string_view data,
                     const std::string& fortran_order) {
  std::string header =
      "{'descr': '" + descriptor + "', 'fortran_order': " + fortran_order + ", 'shape': (" + shape + "), }";
  header.resize((10 + header.size() + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() % 256);
  bytes += static_cast<char>(header.size() / 256);
  return bytes + header + std::string(data);
}

std::string Damaged(std::string bytes, uint64_t seed) {
  client::SplitMix64 generator(seed);
  for (int i = 0; i < 3; ++i) bytes[generator.Below(bytes.size())] = static_cast<char>(generator.Next());
  return bytes;
}

}  // namespace hfopt::models
