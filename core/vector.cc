#include "core/vector.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace hfopt {
namespace {

// Of two vectors two parts fit into the cache of a core, and a part takes longer than to wake a thread.
constexpr int64_t kPart = 1 << 18;

PartRunner& Runner() {
  static PartRunner runner;
  return runner;
}

int64_t NumParts(int64_t n) { return (n + kPart - 1) / kPart; }

// Independent partial sums, so that the compiler may vectorise a sum without reordering it: its value does not depend on the
// instruction set.
constexpr int kLanes = 16;

// Calls term(i, lane) for i = begin .. end-1 and returns, for each of K sums, the total in a fixed order. Of the S streams, which the terms
// read at i, it asks memory for what lies 2 KiB ahead (which may be beyond their end: nothing is read there).
template <int K, typename Term, typename Scalar = float, size_t S = 0>
std::array<double, K> LaneSums(int64_t begin, int64_t end, Term&& term, const std::array<const Scalar*, S>& streams = {}) {
  constexpr int kLine = 64 / sizeof(Scalar), kAhead = 2048 / sizeof(Scalar);
  double lanes[K][kLanes] = {};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (const Scalar* const stream : streams) {
      for (int ahead = kAhead; ahead < kAhead + kLanes; ahead += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(stream) + (i + ahead) * sizeof(Scalar)));
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) term(i + lane, lane, lanes);
  }
  for (int lane = 0; i < end; ++i, ++lane) term(i, lane, lanes);
  std::array<double, K> sums{};
  for (int k = 0; k < K; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) sums[k] += lanes[k][lane];
  }
  return sums;
}

// The sums over 0 .. n-1: those of the parts, sums_of(begin, end), added in the order of the parts.
template <int K, typename SumsOf>
std::array<double, K> SumOverParts(int64_t n, SumsOf&& sums_of) {
  if (n <= kPart) return sums_of(int64_t{0}, n);
  std::vector<std::array<double, K>> parts(NumParts(n));
  ForParts(n, [&](int64_t begin, int64_t end) { parts[begin / kPart] = sums_of(begin, end); });
  std::array<double, K> sums{};
  for (const auto& part : parts) {
    for (int k = 0; k < K; ++k) sums[k] += part[k];
  }
  return sums;
}

}  // namespace

void SetPartRunner(PartRunner runner) { Runner() = std::move(runner); }

void ForParts(int64_t n, const std::function<void(int64_t begin, int64_t end)>& body) {
  const auto part = [&](int64_t k) { body(k * kPart, std::min(n, (k + 1) * kPart)); };
  const int64_t parts = NumParts(n);
  if (parts > 1 && Runner()) return Runner()(parts, part);
  for (int64_t k = 0; k < parts; ++k) part(k);
}

template <typename Scalar>
double Dot(const Vector<Scalar>& a, const Vector<Scalar>& b) {
  const Scalar* const pa = a.data();
  const Scalar* const pb = b.data();
  return SumOverParts<1>(a.size(), [=](int64_t begin, int64_t end) -> std::array<double, 1> {
    // Both halves at once, and ahead of their use: two streams that the processor follows by itself do not keep memory busy.
    const int64_t half = (end - begin) / 2;
    const auto [low, high] = LaneSums<2>(
        begin, begin + half,
        [=](int64_t i, int lane, double (*sums)[kLanes]) {
          sums[0][lane] += static_cast<double>(pa[i]) * static_cast<double>(pb[i]);
          sums[1][lane] += static_cast<double>(pa[half + i]) * static_cast<double>(pb[half + i]);
        },
        std::array{pa, pb, pa + half, pb + half});
    const double odd = (end - begin) % 2 == 0 ? 0 : static_cast<double>(pa[end - 1]) * static_cast<double>(pb[end - 1]);
    return {low + high + odd};
  })[0];
}

template <typename Scalar>
double Norm(const Vector<Scalar>& a) {
  return std::sqrt(Dot(a, a));
}

template <typename Scalar>
void Axpy(double a, const Vector<Scalar>& x, Vector<Scalar>& y) {
  ForParts(y.size(), [&](int64_t begin, int64_t end) {
    y.segment(begin, end - begin).noalias() += static_cast<Scalar>(a) * x.segment(begin, end - begin);
  });
}

template <typename Scalar>
double AxpyDot(double a, const Vector<Scalar>& x, Vector<Scalar>& y, const Vector<Scalar>& w) {
  const Scalar step = static_cast<Scalar>(a);
  const Scalar* const px = x.data();
  const Scalar* const pw = w.data();
  Scalar* const py = y.data();
  return SumOverParts<1>(y.size(), [=](int64_t begin, int64_t end) {
    return LaneSums<1>(begin, end, [=](int64_t i, int lane, double (*sums)[kLanes]) {
      py[i] += step * px[i];
      sums[0][lane] += static_cast<double>(pw[i]) * static_cast<double>(py[i]);
    });
  })[0];
}

template <typename Scalar>
void Xpay(const Vector<Scalar>& x, double a, Vector<Scalar>& y) {
  ForParts(y.size(), [&](int64_t begin, int64_t end) {
    auto part = y.segment(begin, end - begin);
    part = x.segment(begin, end - begin) + static_cast<Scalar>(a) * part;
  });
}

template <typename Scalar>
void Scale(double a, const Vector<Scalar>& x, Vector<Scalar>& y) {
  y.resize(x.size());
  ForParts(y.size(), [&](int64_t begin, int64_t end) {
    y.segment(begin, end - begin) = static_cast<Scalar>(a) * x.segment(begin, end - begin);
  });
}

template <typename Scalar>
int64_t FirstNonFinite(const Eigen::Ref<const Vector<Scalar>>& a) {
  // A sum of products with zero is NaN exactly when some element is not finite: one vectorised pass for the usual answer.
  const double zero = SumOverParts<1>(a.size(), [&](int64_t begin, int64_t end) -> std::array<double, 1> {
    return {begin == end ? 0 : static_cast<double>((a.segment(begin, end - begin).array() * Scalar{0}).sum())};
  })[0];
  if (std::isfinite(zero)) return -1;
  for (int64_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return i;
  }
  return -1;
}

template <typename Scalar>
CgStepSums CgStep(double a, double damping, const Vector<Scalar>& p, const Vector<Scalar>& Gp, const Vector<Scalar>& g,
                  Vector<Scalar>& x, Vector<Scalar>& r) {
  const Scalar step = static_cast<Scalar>(a);
  const Scalar lambda = static_cast<Scalar>(damping);
  const Scalar* const pp = p.data();
  const Scalar* const pGp = Gp.data();
  const Scalar* const pg = g.data();
  Scalar* const px = x.data();
  Scalar* const pr = r.data();
  const auto [rr, xr] = SumOverParts<2>(p.size(), [=](int64_t begin, int64_t end) {
    return LaneSums<2>(begin, end, [=](int64_t i, int lane, double (*sums)[kLanes]) {
      px[i] += step * pp[i];
      pr[i] -= step * (pGp[i] + lambda * pp[i]);
      const double ri = pr[i];
      sums[0][lane] += ri * ri;
      sums[1][lane] += static_cast<double>(px[i]) * (ri - static_cast<double>(pg[i]));
    });
  });
  return {rr, xr};
}

#define HFOPT_INSTANTIATE(Scalar)                                                                                    \
  template double Dot<Scalar>(const Vector<Scalar>&, const Vector<Scalar>&);                                         \
  template double Norm<Scalar>(const Vector<Scalar>&);                                                               \
  template void Axpy<Scalar>(double, const Vector<Scalar>&, Vector<Scalar>&);                                        \
  template double AxpyDot<Scalar>(double, const Vector<Scalar>&, Vector<Scalar>&, const Vector<Scalar>&);            \
  template void Xpay<Scalar>(const Vector<Scalar>&, double, Vector<Scalar>&);                                        \
  template void Scale<Scalar>(double, const Vector<Scalar>&, Vector<Scalar>&);                                       \
  template int64_t FirstNonFinite<Scalar>(const Eigen::Ref<const Vector<Scalar>>&);                                  \
  template CgStepSums CgStep<Scalar>(double, double, const Vector<Scalar>&, const Vector<Scalar>&,                   \
                                     const Vector<Scalar>&, Vector<Scalar>&, Vector<Scalar>&);
HFOPT_INSTANTIATE(float)
HFOPT_INSTANTIATE(double)
#undef HFOPT_INSTANTIATE

}  // namespace hfopt
