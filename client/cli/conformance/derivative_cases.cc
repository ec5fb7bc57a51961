// The gradient and the second moment, held against the loss.

#include <algorithm>
#include <cmath>
#include <limits>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/line.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

absl::StatusOr<Outcome> LossOfGradient(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  double worst = 0;
  for (int k = 0; k < 3; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(theta, lab.Training()));
    HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session->Gradient(theta, lab.Training()));
    worst = std::max(worst, RelativeDifference(loss, gradient.loss));
    if (worst > lab.limit(1e-9, 1e-4)) {
      return Failed("the loss is ", loss, ", but ", gradient.loss,
                    " beside the gradient of the same window and point (off by ", worst,
                    "): they come from different data or formulas");
    }
  }
  return Passed("off by ", worst);
}

absl::StatusOr<Outcome> Differences(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const Window window = lab.Training();
  const double limit = lab.limit(1e-5, 3e-2);
  double worst = 0, roughest = 0;
  int undecided = 0, directions = 0;
  for (int k = 0; k < 2; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    HFOPT_ASSIGN_OR_RETURN(const GradientReply answer, session->Gradient(theta, window));
    const Vector& g = answer.gradient;
    if (!g.allFinite()) return Failed("the gradient is not finite");
    for (const Block& block : Blocks(g.size())) {
      const Vector d = RandomSigns(g.size(), block, lab.options().seed + k);
      const double size = g.segment(block.begin, block.size).norm();
      if (size == 0 && directions > 0)
        continue;  // of inputs that are 0, say; the directions over everything include them
      ++directions;
      HFOPT_ASSIGN_OR_RETURN(const LineDerivatives line, DerivativesAlong(lab, *session, theta, d, window));
      const double slope = g.dot(d), scale = std::max(std::abs(slope), size);
      roughest = std::max(roughest, line.slope.error / scale);
      double error = std::numeric_limits<double>::infinity();
      bool may_be = line.slopes.empty();  // the loss is not finite, or nearly flat
      for (const Estimate& e : line.slopes) {
        error = std::min(error, std::abs(e.value - slope) / scale);
        may_be = may_be || std::abs(e.value - slope) <= 5 * e.error;
      }
      if (error <= limit) {
        worst = std::max(worst, error);
      } else if (may_be) {
        ++undecided;
      } else {
        return Failed("along a direction in parameters ", block.begin, " to ", block.begin + block.size - 1,
                      " the slope of the loss is ", line.slope.value, " +- ", line.slope.error, ", but ", slope,
                      " by the gradient (ratio ", line.slope.value / slope,
                      "); look at the derivative with respect to these parameters");
      }
    }
  }
  const std::string numbers =
      absl::StrCat(directions, " directions over all and parts of the parameters, off by ", worst, " at most");
  if (undecided == 0) return Passed(numbers);
  // What float64 arithmetic leaves is far below; what float16 or randomness leaves is far above.
  constexpr double kRough = 1e-2;
  const std::string rough = absl::StrCat(
      "differences of the loss along ", undecided, " of ", directions, " directions do not settle better than to ",
      roughest, " of the slope: arithmetic of low precision, randomness, or a solver with a coarse tolerance");
  return lab.float64() && roughest > kRough ? Failed(rough) : Warned(rough, "; ", numbers);
}

// Numbers that float32 has are a sign of arithmetic in float32, or less.
absl::StatusOr<Outcome> Precision(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!lab.float64()) return Skipped("float32");
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session->Gradient(theta, lab.Training()));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply product, session->Product(theta, lab.Direction(30), lab.Training()));
  const auto share_of_single = [](const Vector& v) {
    int64_t single = 0, nonzero = 0;
    for (const double x : v) {
      nonzero += x != 0;
      single += x != 0 && static_cast<double>(static_cast<float>(x)) == x;
    }
    return nonzero == 0 ? 0 : static_cast<double>(single) / nonzero;
  };
  const double shares[] = {share_of_single(gradient.gradient), share_of_single(product.product)};
  constexpr double kMost = 0.9;
  for (int i = 0; i < 2; ++i) {
    if (shares[i] > kMost) {
      return Failed(100 * shares[i], " % of the numbers of the ", i == 0 ? "gradient" : "product",
                    " are float32 numbers, in a session of float64: it was computed in lower precision");
    }
  }
  return Passed("numbers of full length");
}

absl::StatusOr<Outcome> SecondMoment(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!session->hello().second_moment()) return Skipped("Hello.second_moment is not set");
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Window window = lab.Training(6, 1);
  HFOPT_ASSIGN_OR_RETURN(const GradientReply whole, session->Gradient(theta, window, 0, true));
  if (!(whole.second_moment.minCoeff() >= 0))
    return Failed("it has the element ", whole.second_moment.minCoeff(), ", below 0");
  Vector sum = Vector::Zero(theta.size());
  const uint64_t size = lab.ShardSize(false, lab.shard(), lab.shards());
  for (uint64_t i = 0; i < window.count; ++i) {
    Window one = window;
    one.begin = (window.begin + i) % size;
    one.count = 1;
    HFOPT_ASSIGN_OR_RETURN(const GradientReply example, session->Gradient(theta, one));
    sum += example.gradient.cwiseAbs2();
  }
  const double error = RelativeDifference(sum, whole.second_moment);
  if (error > lab.limit(1e-9, 2e-3)) {
    return Failed("it differs by ", error, " of itself from the sum of the squared gradients of its ", window.count,
                  " examples (lengths ", whole.second_moment.norm(), " and ", sum.norm(), ")");
  }
  return Passed(window.count, " examples one by one, off by ", error);
}

absl::StatusOr<Outcome> InitialParameters(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!session->hello().initial_parameters()) return Skipped("Hello.initial_parameters is not set");
  HFOPT_ASSIGN_OR_RETURN(const Vector first, session->InitialParameters(5));
  HFOPT_ASSIGN_OR_RETURN(const Vector other, session->InitialParameters(6));
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_RETURN_IF_ERROR(session->Gradient(theta, lab.Training()).status());
  HFOPT_ASSIGN_OR_RETURN(const Vector again, session->InitialParameters(5));
  if (first != again) return Failed("seed 5 gave two different vectors; they have to be a pure function of the seed");
  if (!first.allFinite()) return Failed("they are not finite");
  HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(session->Rounded(first), lab.Training()));
  if (!std::isfinite(loss)) return Failed("the loss there is ", loss);
  if (first == other) {
    // Both are right: zeros, or a seed that is not looked at.
    return first.isZero() ? Passed("zeros, whatever the seed") : Warned("seeds 5 and 6 give the same parameters");
  }
  return Passed("loss ", loss, " at those of seed 5");
}

}  // namespace

std::vector<Case> DerivativeCases() {
  return {{"gradient/loss", "the loss beside the gradient is the loss", LossOfGradient},
          {"gradient/differences",
           "u'g against extrapolated central differences of the loss, over all and over parts of the parameters",
           Differences},
          {"gradient/precision", "float64 means arithmetic in float64", Precision},
          {"gradient/second-moment", "element-wise sum of the squared gradients of single examples", SecondMoment},
          {"gradient/initial-parameters", "a pure function of the seed", InitialParameters}};
}

}  // namespace hfopt::conformance
