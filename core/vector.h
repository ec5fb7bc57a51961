#ifndef HFOPT_CORE_VECTOR_H_
#define HFOPT_CORE_VECTOR_H_

#include <cstdint>

#include "Eigen/Core"

namespace hfopt {

// A dense column of n numbers. Scalar is float or double, chosen once for a run; everything templated on it is instantiated for
// both. Numbers that are sums over a vector (dot products, norms, model values) are always double.
template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

// a'b, accumulated in double. a.size() == b.size().
template <typename Scalar>
double Dot(const Vector<Scalar>& a, const Vector<Scalar>& b);

// |a|, accumulated in double.
template <typename Scalar>
double Norm(const Vector<Scalar>& a);

// y += a x.
template <typename Scalar>
void Axpy(double a, const Vector<Scalar>& x, Vector<Scalar>& y);

// y += a x; returns w'y after it. One pass over memory, w.size() == y.size().
template <typename Scalar>
double AxpyDot(double a, const Vector<Scalar>& x, Vector<Scalar>& y, const Vector<Scalar>& w);

// y = x + a y.
template <typename Scalar>
void Xpay(const Vector<Scalar>& x, double a, Vector<Scalar>& y);

// Index of the first NaN or infinity in a; -1 when there is none.
template <typename Scalar>
int64_t FirstNonFinite(const Eigen::Ref<const Vector<Scalar>>& a);

// One step of CG in one pass over memory: x += a p, r -= a (Gp + damping p).
struct CgStepSums {
  double rr = 0;  // r'r after the step
  double xr = 0;  // x'(r - g) after the step: -2 q(x)
};
template <typename Scalar>
CgStepSums CgStep(double a, double damping, const Vector<Scalar>& p, const Vector<Scalar>& Gp, const Vector<Scalar>& g,
                  Vector<Scalar>& x, Vector<Scalar>& r);

}  // namespace hfopt

#endif  // HFOPT_CORE_VECTOR_H_
