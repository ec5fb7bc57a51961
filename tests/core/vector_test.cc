#include "core/vector.h"

#include <limits>

#include "gtest/gtest.h"
#include "tests/support/dense_problem.h"

namespace hfopt {
namespace {

using support::Random;

template <typename Scalar>
class VectorTest : public ::testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Scalar>::epsilon();
  Vector<Scalar> Draw(int n) { return random_.Vector(n).cast<Scalar>(); }
  Random random_{1};
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(VectorTest, Scalars);

// Sizes around the number of lanes of the sums, where a remainder is easily forgotten.
constexpr int kSizes[] = {0, 1, 2, 15, 16, 17, 31, 32, 33, 1000};

TYPED_TEST(VectorTest, DotAndNormAreAccumulatedInDouble) {
  for (const int n : kSizes) {
    const Vector<TypeParam> a = this->Draw(n), b = this->Draw(n);
    const Eigen::VectorXd ad = a.template cast<double>(), bd = b.template cast<double>();
    const double rounding = 1e-15 * n;  // n additions of terms below 1, in double for either scalar
    EXPECT_NEAR(Dot(a, b), ad.dot(bd), rounding) << n;
    EXPECT_NEAR(Norm(a), ad.norm(), rounding) << n;
  }
}

TYPED_TEST(VectorTest, DotKeepsSmallTermsBesideLargeOnes) {
  const int n = 1 << 20;
  Vector<TypeParam> a = Vector<TypeParam>::Constant(n, TypeParam{1e-4}), ones = Vector<TypeParam>::Ones(n);
  a[0] = TypeParam{1e4};
  const double expected = 1e4 + (n - 1) * static_cast<double>(TypeParam{1e-4});
  EXPECT_NEAR(Dot(a, ones), expected, 1e-10 * expected);  // a float sum would be off by 1e-3
}

TYPED_TEST(VectorTest, AxpyAndXpay) {
  for (const int n : kSizes) {
    const Vector<TypeParam> x = this->Draw(n), y = this->Draw(n);
    Vector<TypeParam> axpy = y, xpay = y;
    Axpy(0.5, x, axpy);
    Xpay(x, 0.5, xpay);
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(axpy[i], y[i] + x[i] / 2);  // half is exact: one rounding, in the sum
      EXPECT_EQ(xpay[i], x[i] + y[i] / 2);
    }
  }
}

TYPED_TEST(VectorTest, AxpyDotIsOneAfterTheOther) {
  for (const int n : kSizes) {
    const Vector<TypeParam> x = this->Draw(n), y = this->Draw(n), w = this->Draw(n);
    Vector<TypeParam> separate = y, fused = y;
    Axpy(0.3, x, separate);
    EXPECT_NEAR(AxpyDot(0.3, x, fused, w), Dot(w, separate), 1e-15 * n) << n;
    EXPECT_EQ(fused, separate) << n;
  }
}

TYPED_TEST(VectorTest, FirstNonFiniteFindsNanAndInfinityAnywhere) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const int n : kSizes) {
    Vector<TypeParam> a = this->Draw(n);
    EXPECT_EQ(FirstNonFinite<TypeParam>(a), -1);
    for (int i = n - 1; i >= 0; i -= 7) {
      a[i] = i % 2 == 0 ? Limits::quiet_NaN() : -Limits::infinity();
      EXPECT_EQ(FirstNonFinite<TypeParam>(a), i) << n;
    }
  }
  const Vector<TypeParam> extremes = Vector<TypeParam>::Constant(40, Limits::max());  // whose sum is not finite
  EXPECT_EQ(FirstNonFinite<TypeParam>(extremes), -1);
}

TYPED_TEST(VectorTest, CgStepEqualsItsFormula) {
  const double a = 0.75, damping = 0.25;
  for (const int n : kSizes) {
    const Vector<TypeParam> p = this->Draw(n), Gp = this->Draw(n), g = this->Draw(n);
    Vector<TypeParam> x = this->Draw(n), r = this->Draw(n);
    const Eigen::VectorXd x_expected = x.template cast<double>() + a * p.template cast<double>();
    const Eigen::VectorXd r_expected =
        r.template cast<double>() - a * (Gp.template cast<double>() + damping * p.template cast<double>());

    const CgStepSums sums = CgStep(a, damping, p, Gp, g, x, r);

    const double tolerance = 4 * this->kEpsilon;  // a few roundings of numbers below 3
    EXPECT_LE((x.template cast<double>() - x_expected).template lpNorm<Eigen::Infinity>(), tolerance);
    EXPECT_LE((r.template cast<double>() - r_expected).template lpNorm<Eigen::Infinity>(), tolerance);
    // The sums are about the rounded vectors, so they agree in double precision even for float.
    EXPECT_NEAR(sums.rr, Dot(r, r), 1e-15 * n);
    EXPECT_NEAR(sums.xr, Dot(x, r) - Dot(x, g), 1e-14 * n);
  }
}

}  // namespace
}  // namespace hfopt
