// The Gauss-Newton product beside gradients: whether G is made of the Jacobian that the gradient is made of.
//
// With e the gradient of an example's loss with respect to the model's outputs, and H its Hessian, the example has the
// gradient J'e and G = J'HJ. Both are looked at in differences of windows a and b, per weight:
//
//   delta = g_a / w_a - g_b / w_b,  D = G_a / w_a - G_b / w_b,
//
// in which a regulariser, which is proportional to the weight, cancels.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/line.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

struct Pair {
  Window a, b;
};

// Single examples that are far apart: neighbours are often alike.
std::vector<Pair> PairsOfExamples(const Lab& lab) {
  constexpr int64_t kPairs = 4;
  const int64_t size = lab.ShardSize(false, lab.shard(), lab.shards()), pairs = std::min(kPairs, size / 2);
  std::vector<Pair> result;
  for (int64_t j = 0; j < pairs; ++j) {
    result.push_back({lab.Training(1, j * size / (2 * pairs)), lab.Training(1, (j + pairs) * size / (2 * pairs))});
  }
  return result;
}

// A difference, together with how large its parts are: rounding is relative to these.
struct Difference {
  Vector value;
  double scale = 0;
};

absl::StatusOr<Difference> GradientDifference(Dialogue& session, const Point& point, const Pair& pair) {
  HFOPT_ASSIGN_OR_RETURN(const GradientReply a, session.Gradient(point, pair.a));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply b, session.Gradient(point, pair.b));
  return Difference{a.gradient / a.weight - b.gradient / b.weight,
                    a.gradient.norm() / a.weight + b.gradient.norm() / b.weight};
}

absl::StatusOr<Difference> ProductDifference(Dialogue& session, const Vector& theta, const Vector& v,
                                             const Pair& pair) {
  const Vector rounded = session.Rounded(v);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply a, session.Product(theta, rounded, pair.a));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply b, session.Product(theta, rounded, pair.b));
  return Difference{a.product / a.weight - b.product / b.weight,
                    a.product.norm() / a.weight + b.product.norm() / b.weight};
}

// --- The range.
//
// Where e lies in the range of H, as it does for squared errors, softmax and logistic losses, delta lies in the range
// of D. That has two dimensions for each output at most; another J than the gradient's has another range. Where e is
// outside (a loss that is linear somewhere: Huber's, a hinge), delta is, too, although G is right. The two are told
// apart by parts of the parameters: within one layer, a J that is wrong elsewhere is right, and one that is scaled has
// the same range; but e stays outside the range of H.

// What of a product is rounding. Krylov spaces of networks end at 2e-14 (float64) and 1e-5 (float32) of the largest
// product, eigenvalues that count are 4e-3 of it or more.
double Rounding(const Lab& lab) { return lab.limit(1e-11, 1e-4); }
// Over many networks and losses, right ones have 4e-16 (float64) and 2e-7 (float32) at most, those with the mistakes of
// the tests 0.06 or more, and those with a derivative of an activation that is off by 1% have 1e-3 or more.
double RangeLimit(const Lab& lab) { return lab.limit(1e-4, 1e-2); }

struct PairInRange {
  Pair pair;
  Vector delta;
  RangeDistance whole;
};

// The distance with a block of the parameters alone.
absl::StatusOr<RangeDistance> DistanceInBlock(Dialogue& session, const Vector& theta, const PairInRange& one,
                                              const Block& block, int steps, double rounding) {
  const auto apply = [&](const Vector& part) -> absl::StatusOr<Vector> {
    Vector v = Vector::Zero(theta.size());
    v.segment(block.begin, block.size) = part;
    HFOPT_ASSIGN_OR_RETURN(const Difference D, ProductDifference(session, theta, v, one.pair));
    return Vector(D.value.segment(block.begin, block.size));
  };
  const Vector delta = one.delta.segment(block.begin, block.size);
  if (delta.norm() <= rounding * one.delta.norm()) return RangeDistance{};  // nothing to see there
  auto distance = DistanceFromRange(apply, delta, steps, rounding, one.whole.scale);
  session.ReleaseResidents();
  return distance;
}

// The largest block, at one of the ends, in which delta of every pair is in the range of D. It has more parameters than
// the rank of D, which is the dimension less one where delta is outside: D of fewer would be regular.
absl::StatusOr<std::optional<std::pair<Block, double>>> ConsistentBlock(Lab& lab, Dialogue& session,
                                                                        const Vector& theta,
                                                                        const std::vector<PairInRange>& pairs,
                                                                        int steps) {
  int dimension = 0;
  for (const PairInRange& one : pairs) dimension = std::max(dimension, one.whole.dimension);
  for (int64_t n = theta.size(), size = n / 2; size > dimension; size /= 2) {
    for (const Block& block : {Block{n - size, size}, Block{0, size}}) {
      double worst = 0;
      for (const PairInRange& one : pairs) {
        HFOPT_ASSIGN_OR_RETURN(const RangeDistance part,
                               DistanceInBlock(session, theta, one, block, steps, Rounding(lab)));
        worst = std::max(worst, part.is_exhausted ? part.distance : 1);
        if (worst > RangeLimit(lab)) break;
      }
      if (worst <= RangeLimit(lab)) return std::pair{block, worst};
    }
  }
  return std::nullopt;
}

absl::StatusOr<Outcome> Range(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  constexpr int kMaxSteps = 256;
  constexpr int64_t kMaxNumbers = int64_t{1} << 25;  // of the basis
  const int64_t n = theta.size();
  const int steps = static_cast<int>(std::clamp<int64_t>(kMaxNumbers / n, 1, kMaxSteps));
  const std::vector<Pair> pairs = PairsOfExamples(lab);
  std::vector<PairInRange> outside;
  double nearest = std::numeric_limits<double>::infinity();
  std::string why = pairs.empty() ? "there are fewer than two examples" : "the examples looked at do not differ in G";
  for (const Pair& pair : pairs) {
    HFOPT_ASSIGN_OR_RETURN(const Difference delta, GradientDifference(*session, theta, pair));
    if (!(delta.value.norm() > Rounding(lab) * delta.scale)) continue;
    HFOPT_ASSIGN_OR_RETURN(const Difference first,
                           ProductDifference(*session, theta, delta.value.normalized(), pair));
    if (!(first.value.norm() > Rounding(lab) * first.scale)) continue;
    const auto apply = [&](const Vector& v) -> absl::StatusOr<Vector> {
      HFOPT_ASSIGN_OR_RETURN(Difference D, ProductDifference(*session, theta, v, pair));
      return std::move(D.value);
    };
    HFOPT_ASSIGN_OR_RETURN(const RangeDistance whole,
                           DistanceFromRange(apply, delta.value, steps, Rounding(lab), first.scale));
    session->ReleaseResidents();
    if (!whole.is_exhausted) {
      why = absl::StrCat("the space of gradient and products has more than ", whole.dimension, " dimensions");
    } else if (whole.distance > RangeLimit(lab)) {
      nearest = std::min(nearest, whole.distance);
      outside.push_back({pair, delta.value, whole});
    } else if (whole.dimension >= n) {
      why = "two examples have as many outputs as the model has parameters";
    } else {
      return Passed("the gradient of single examples lies in the range of their G but for ", whole.distance, " (",
                    whole.dimension, " dimensions of ", n, ")");
    }
  }
  if (outside.empty()) return Passed("says nothing: ", why);
  const std::string numbers = absl::StrCat(
      "the gradient of single examples does not lie in the range of their G: distance ", nearest, " or more");
  HFOPT_ASSIGN_OR_RETURN(const auto consistent, ConsistentBlock(lab, *session, theta, outside, steps));
  // Where a loss is linear for some examples, a single pair may be consistent by chance.
  if (consistent && outside.size() >= std::min<size_t>(2, pairs.size())) {
    const auto& [block, distance] = *consistent;
    return Failed(numbers, ", for the ", block.begin == 0 ? "first " : "last ", block.size, " parameters alone ",
                  distance, ": J'HJ with another J than the gradient's (a wrong derivative of an activation, a layer ",
                  "that is scaled or left out)");
  }
  return Warned(numbers, ": J'HJ with another J than the gradient's, or a loss with parts where it is linear in the ",
                "outputs (Huber's, a hinge), for which G may be right");
}

// --- Blocks.
//
// A G without the blocks between layers has the gradients in its range. But its entries between the first and the last
// parameters are 0 where those of the loss's Hessian are not. That an output depends on both, with a J whose products
// cancel in the sum over examples, does not happen at a point that is nothing special.

absl::StatusOr<Outcome> CrossBlocks(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const int64_t count = std::min(lab.options().examples, lab.ShardSize(false, lab.shard(), lab.shards()));
  if (count < 2) return Passed("says nothing: there are fewer than two examples");
  const Pair halves = {lab.Training(count / 2), lab.Training(count - count / 2, count / 2)};
  // Of a product's length: mistakes have zeros; right models of the tests 2e-5 (float64) and 2e-3 (float32) or more.
  const double nothing = lab.limit(1e-12, 1e-6), something = 1e3 * nothing;
  std::optional<double> smallest;
  for (int k = 0; k < 2; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    const int64_t n = theta.size();
    // A last layer may be small against the first.
    for (int64_t size = n / 4; size >= 1; size /= 4) {
      const Vector u = RandomSigns(n, {0, size}, 100 + k), v = RandomSigns(n, {n - size, size}, 110 + k);
      HFOPT_ASSIGN_OR_RETURN(const Difference Du, ProductDifference(*session, theta, u, halves));
      HFOPT_ASSIGN_OR_RETURN(const Difference Dv, ProductDifference(*session, theta, v, halves));
      // Both parts have a curvature of their own; where a loss is linear, they have none.
      if (!(Du.value.head(size).norm() > something * Du.scale && Dv.value.tail(size).norm() > something * Dv.scale)) {
        continue;
      }
      const double coupling = Du.value.tail(size).norm() / Du.scale;
      smallest = std::min(coupling, smallest.value_or(coupling));
      if (!(coupling <= nothing)) continue;
      // D u of the Hessian, by central differences with two steps, which tell their error.
      Vector differences[2];
      double h = 0.25 * lab.step();
      for (Vector& difference : differences) {
        HFOPT_ASSIGN_OR_RETURN(const Difference up, GradientDifference(*session, Point(theta, {{h, u}}), halves));
        HFOPT_ASSIGN_OR_RETURN(const Difference down, GradientDifference(*session, Point(theta, {{-h, u}}), halves));
        difference = (up.value - down.value) / (2 * h);
        h /= 2;
      }
      const double cross = differences[1].tail(size).norm();
      const double error = (differences[1] - differences[0]).tail(size).norm();
      // Well above the error, and what single precision leaves of exact zeros: 1e-5 of a gradient over a short step.
      if (cross > 10 * error && cross > lab.limit(1e-6, 1e-2) * differences[1].norm()) {
        return Failed("G has no entries between the first and the last ", size,
                      " parameters, where the second derivatives of the loss are ", cross / differences[1].norm(),
                      " of those of the first alone: it is block-diagonal, or diagonal");
      }
    }
    session->ReleaseResidents();
  }
  if (!smallest) return Passed("says nothing: the first or the last parameters have no curvature");
  return Passed("products along the first parameters have ", *smallest, " of their length or more at the last ones",
                *smallest > nothing ? "" : ", where the loss has nothing either");
}

// --- The empirical Fisher matrix.
//
// If G were the sum of g g' of single examples, up to a factor, D would be
//
//   g_a g_a' - g_b g_b' = (s delta' + delta s') / 2,  s = g_a + g_b.
//
// g itself is not known, because of the regulariser, but s is: delta'D delta = s'delta |delta|^2, and
// D delta = (s |delta|^2 + delta s'delta) / 2. Then D v is known for all v.

absl::StatusOr<Outcome> Fisher(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  // The Fisher matrix is off by 8e-16 (float64) and 3e-7 (float32) in the tests, right models by 8e-3 or more.
  const double limit = lab.limit(1e-6, 1e-3);
  std::optional<double> worst;
  const Vector v = lab.Direction(95);
  for (const Pair& pair : PairsOfExamples(lab)) {
    HFOPT_ASSIGN_OR_RETURN(const Difference gradients, GradientDifference(*session, theta, pair));
    const Vector delta = session->Rounded(gradients.value.normalized());
    HFOPT_ASSIGN_OR_RETURN(const Difference Ddelta, ProductDifference(*session, theta, delta, pair));
    HFOPT_ASSIGN_OR_RETURN(const Difference Dv, ProductDifference(*session, theta, v, pair));
    const double t = delta.dot(Ddelta.value);
    // Multiples of delta delta' are both: a single parameter, or an example without a gradient.
    constexpr double kParallel = 1e-2;
    if (!((Ddelta.value - t * delta).norm() > kParallel * Ddelta.scale)) continue;
    const Vector s = 2 * Ddelta.value - t * delta;
    const double difference = RelativeDifference(Dv.value, Vector((s * delta.dot(v) + delta * s.dot(v)) / 2));
    if (difference > limit) return Passed("a product is off from the empirical Fisher matrix's by ", difference);
    worst = std::max(difference, worst.value_or(0));
  }
  if (!worst) return Passed("says nothing: the examples looked at do not differ in G");
  return Failed("G is the empirical Fisher matrix, the sum of g g' of single examples (products agree to ", *worst,
                "), instead of J'HJ. If the loss is -log of the model's outputs, it is J'HJ, and of little use: take ",
                "the outputs before the softmax or sigmoid for the model's");
}

}  // namespace

std::vector<Case> RangeCases() {
  return {{"product/range", "single examples have gradients in the range of their G: one J in both", Range},
          {"product/blocks", "G couples the first and the last parameters where the loss does", CrossBlocks},
          {"product/fisher", "G is not the sum of g g' of single examples", Fisher}};
}

}  // namespace hfopt::conformance
