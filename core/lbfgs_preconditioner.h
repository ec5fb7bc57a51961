#ifndef HFOPT_CORE_LBFGS_PRECONDITIONER_H_
#define HFOPT_CORE_LBFGS_PRECONDITIONER_H_

#include <memory>
#include <vector>

#include "core/curvature_pairs.h"
#include "core/vector.h"

namespace hfopt {

// D = (second moment + lambda)^exponent (Martens 2010, sec. 4.7); empty without a second moment.
template <typename Scalar>
Vector<Scalar> DampedDiagonal(const Vector<Scalar>& second_moment, double damping, double exponent);

// A symmetric positive definite approximation H of (G + lambda I)^-1: L-BFGS on curvature pairs over an initial matrix
//     H_0 = gamma D^-1,   gamma = s'y / y'D^-1y of the newest pair (1 without pairs),
// where D is the diagonal given, or I. Without pairs it is D^-1; without both it is the identity.
// Nocedal & Wright 2006, Algorithm 7.4.
template <typename Scalar>
class LbfgsPreconditioner {
 public:
  // `diagonal` has n positive elements, or is empty for the identity. A pair is skipped when y's <= min_curvature |s||y|.
  LbfgsPreconditioner(double damping, double min_curvature, const Vector<Scalar>& diagonal = {});

  // Replaces the pairs, with s = p and y = Gp + damping p. What was computed for pairs that stay is kept.
  void SetPairs(const PairList<Scalar>& pairs);

  // z = H r. z is resized and is not r. Not to be called from several threads at once.
  void Apply(const Vector<Scalar>& r, Vector<Scalar>& z);

  bool is_identity() const { return terms_.empty() && inverse_diagonal_.size() == 0; }
  int num_pairs() const { return static_cast<int>(terms_.size()); }
  int num_skipped() const { return num_skipped_; }  // of the last SetPairs

 private:
  struct Term {
    std::shared_ptr<const CurvaturePair<Scalar>> pair;
    Vector<Scalar> y;
    double inverse_sy = 0;  // 1 / s'y
    double gamma = 0;       // s'y / y'D^-1y
    double projection = 0;  // scratch of Apply
  };
  // Null when the pair lacks curvature.
  std::unique_ptr<Term> MakeTerm(std::shared_ptr<const CurvaturePair<Scalar>> pair) const;

  double damping_;
  double min_curvature_;
  Vector<Scalar> inverse_diagonal_;
  std::vector<std::unique_ptr<Term>> terms_;
  int num_skipped_ = 0;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_LBFGS_PRECONDITIONER_H_
