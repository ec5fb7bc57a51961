#ifndef HFOPT_CORE_VECTOR_H_
#define HFOPT_CORE_VECTOR_H_

#include <cstdint>
#include <functional>

#include "Eigen/Core"

namespace hfopt {

// A dense column of n numbers. Scalar is float or double, chosen once for a run; everything templated on it is instantiated for
// both. Numbers that are sums over a vector (dot products, norms, model values) are always double.
template <typename Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

// Calls part(k) once for each k = 0 .. parts - 1, in any order, at once if it can, and returns when all are done. part does not throw.
using PartRunner = std::function<void(int64_t parts, const std::function<void(int64_t k)>& part)>;

// Who computes with long vectors from now on: core has no threads of its own. Without a runner the caller does everything, one part after the
// other. Results have the same bits whoever does. To be called before anything is computed.
void SetPartRunner(PartRunner runner);

// Calls body(begin, end) for the parts of 0 .. n - 1, by the runner. The parts depend on n alone: 2^18 elements each, and the rest.
void ForParts(int64_t n, const std::function<void(int64_t begin, int64_t end)>& body);

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

// y = a x. y is resized; it may be x.
template <typename Scalar>
void Scale(double a, const Vector<Scalar>& x, Vector<Scalar>& y);

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
