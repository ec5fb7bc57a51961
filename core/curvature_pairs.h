#ifndef HFOPT_CORE_CURVATURE_PAIRS_H_
#define HFOPT_CORE_CURVATURE_PAIRS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "core/vector.h"

namespace hfopt {

// A direction p of CG and G p, which CG computes anyway. Stored without damping: the pair for B = G + lambda I is
// (s, y) = (p, Gp + lambda p), so a change of lambda corrects every pair exactly and for free. L-BFGS does not depend on the
// length of s, so the step length is left out.
template <typename Scalar>
struct CurvaturePair {
  Vector<Scalar> p;
  Vector<Scalar> Gp;
};

// Oldest first. Pairs never change once made, and are shared between the states and preconditioners that use them.
template <typename Scalar>
using PairList = std::vector<std::shared_ptr<const CurvaturePair<Scalar>>>;

// Which iterations of a CG solve of unknown length to keep so that m of them are spread evenly over it (Morales & Nocedal 2000,
// "Automatic preconditioning by limited memory quasi-Newton updating", sec. 2): keep 0..m-1; then in cycle c = 1, 2, ...
// iteration k is kept iff l = k/2^c - m/2 + 1 is an integer in 1..m/2, in place of iteration (2l-1) 2^(c-1).
class EvenlySpacedIterations {
 public:
  // memory is even and at least 2.
  explicit EvenlySpacedIterations(int memory) : memory_(memory) {}

  struct Decision {
    bool keep = false;
    int64_t replaces = -1;  // iteration to drop; -1 while memory is free
  };
  // To be called once for every iteration k = 0, 1, 2, ... in this order.
  Decision Offer(int64_t k);

 private:
  int64_t memory_;
  int64_t stride_ = 2;  // 2^c
};

// The pairs of one solve, evenly spaced, in the order of their iterations.
template <typename Scalar>
class EvenlySpacedPairs {
 public:
  explicit EvenlySpacedPairs(int memory) : spacing_(memory) {}

  // Offers the pair of iteration k = 0, 1, 2, ...; copies it when it is kept. True when the set changed.
  bool Offer(int64_t k, const Vector<Scalar>& p, const Vector<Scalar>& Gp);

  const PairList<Scalar>& pairs() const { return pairs_; }

 private:
  EvenlySpacedIterations spacing_;
  std::vector<int64_t> iterations_;  // of pairs_
  PairList<Scalar> pairs_;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_CURVATURE_PAIRS_H_
