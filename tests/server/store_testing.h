#ifndef HFOPT_TESTS_SERVER_STORE_TESTING_H_
#define HFOPT_TESTS_SERVER_STORE_TESTING_H_

#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/optimizer_state.h"
#include "gtest/gtest.h"
#include "tests/support/temporary_directory.h"

// For the tests of what is stored: states, and a place on the disk.
namespace hfopt::server {

using hfopt::testing::TemporaryDirectory;

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Names of a directory's entries, sorted.
inline std::vector<std::string> Names(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// A state in which no two fields are equal, with numbers that text easily spoils.
template <typename Scalar>
OptimizerState<Scalar> MakeState(int64_t iteration, int64_t n = 5, int pairs = 2) {
  using Limits = std::numeric_limits<Scalar>;
  OptimizerState<Scalar> state;
  state.iteration = iteration;
  state.theta = Vector<Scalar>::LinSpaced(n, -1, 1) * static_cast<Scalar>(iteration + 1) / 3;
  if (n > 3) {
    state.theta[0] = Limits::denorm_min();
    state.theta[1] = -Scalar{0};
    state.theta[2] = Limits::max();
  }
  state.damping = 0.1 / 3;
  state.cg_limit = 20;
  state.warm_start = state.theta * Scalar{2};
  for (int i = 0; i < pairs; ++i) {
    state.pairs.push_back(std::make_shared<const CurvaturePair<Scalar>>(CurvaturePair<Scalar>{
        Vector<Scalar>::Constant(n, static_cast<Scalar>(i)), Vector<Scalar>::Constant(n, static_cast<Scalar>(-i))}));
  }
  state.held_out_loss = 1 + 1e-15;
  state.held_out_examples = 1;
  state.held_out_metrics = {{"frame_errors", 0.1 / 7}, {"other", std::numeric_limits<double>::infinity()}};
  state.gradient_norm = 5e-324;
  state.gradient_examples = 2;
  state.next_gradient_size = 3;
  state.gradient_cursor = (int64_t{1} << 53) + 1;  // not a double
  state.curvature_cursor = 4;
  state.consecutive_rejections = 5;
  state.stalled_iterations = 6;
  state.cost = {7, 8, 9, 10, 11, 12, 13, 14};
  return state;
}

template <typename Scalar>
bool SameBits(const Vector<Scalar>& a, const Vector<Scalar>& b) {
  return a.size() == b.size() && (a.size() == 0 || std::memcmp(a.data(), b.data(), a.size() * sizeof(Scalar)) == 0);
}

inline bool SameBits(double a, double b) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); }

template <typename Scalar>
bool SameBits(const OptimizerState<Scalar>& a, const OptimizerState<Scalar>& b) {
  const bool same_pairs =
      std::equal(a.pairs.begin(), a.pairs.end(), b.pairs.begin(), b.pairs.end(),
                 [](const auto& x, const auto& y) { return SameBits(x->p, y->p) && SameBits(x->Gp, y->Gp); });
  return same_pairs && SameBits(a.theta, b.theta) && SameBits(a.warm_start, b.warm_start) &&
         a.iteration == b.iteration && SameBits(a.damping, b.damping) && a.cg_limit == b.cg_limit && SameBits(a.held_out_loss, b.held_out_loss) &&
         a.held_out_examples == b.held_out_examples && a.held_out_metrics == b.held_out_metrics &&
         SameBits(a.gradient_norm, b.gradient_norm) &&
         a.gradient_examples == b.gradient_examples && a.next_gradient_size == b.next_gradient_size &&
         a.gradient_cursor == b.gradient_cursor && a.curvature_cursor == b.curvature_cursor &&
         a.consecutive_rejections == b.consecutive_rejections && a.stalled_iterations == b.stalled_iterations &&
         a.cost == b.cost;
}

}  // namespace hfopt::server

#endif  // HFOPT_TESTS_SERVER_STORE_TESTING_H_
