#include "core/vector.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

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

TYPED_TEST(VectorTest, ScaleMultiplies) {
  for (const int n : kSizes) {
    Vector<TypeParam> x = this->Draw(n), y;
    Scale(0.5, x, y);
    EXPECT_EQ(y, x / 2);
    Scale(0.5, x, x);
    EXPECT_EQ(x, y);
  }
}

// Everything there is, of vectors of several parts.
template <typename Scalar>
std::vector<double> OfLongVectors() {
  constexpr int n = 3 * (1 << 18) + 17;
  Random random(7);
  const auto draw = [&] { return Vector<Scalar>(random.Vector(n).cast<Scalar>()); };
  const Vector<Scalar> p = draw(), Gp = draw(), g = draw();
  Vector<Scalar> x = draw(), r = draw(), scaled, broken = p;
  broken[n - 1] = std::numeric_limits<Scalar>::quiet_NaN();
  const CgStepSums sums = CgStep(0.75, 0.25, p, Gp, g, x, r);
  std::vector<double> answers = {sums.rr, sums.xr, Dot(p, g), AxpyDot(0.3, p, x, g), static_cast<double>(FirstNonFinite<Scalar>(p)),
                                 static_cast<double>(FirstNonFinite<Scalar>(broken))};
  Axpy(-0.7, g, r);
  Xpay(p, 0.9, r);
  Scale(1.1, r, scaled);
  for (const Vector<Scalar>* v : {&x, &r, &scaled}) answers.insert(answers.end(), v->begin(), v->end());
  EXPECT_NEAR(answers[2], p.template cast<double>().dot(g.template cast<double>()), 1e-9);
  EXPECT_EQ(answers[5], n - 1);
  return answers;
}

TYPED_TEST(VectorTest, LongVectorsHaveTheSameBitsWhoeverComputesTheirParts) {
  const std::vector<double> alone = OfLongVectors<TypeParam>();
  int calls = 0;
  SetPartRunner([&](int64_t parts, const std::function<void(int64_t)>& part) {
    ++calls;
    EXPECT_EQ(parts, 4);
    for (int64_t k = parts; k-- > 0;) part(k);  // the last first
  });
  const std::vector<double> elsewhere = OfLongVectors<TypeParam>();
  SetPartRunner(nullptr);
  EXPECT_EQ(alone, elsewhere);
  EXPECT_EQ(calls, 8);
}

TEST(ForParts, CoversEveryElementOnce) {
  for (const int64_t n : {0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 5 * (1 << 18)}) {
    std::vector<int> visits(n);
    ForParts(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    EXPECT_EQ(std::count(visits.begin(), visits.end(), 1), n);
  }
}

}  // namespace
}  // namespace hfopt
