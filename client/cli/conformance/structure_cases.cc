// That G is J'HJ with the Jacobian J that the gradient has, and not another symmetric positive semidefinite matrix.
//
// Of two windows of one example each, a and b, with the weights w, everything is known but for a regulariser:
//
//   D = G_a / w_a - G_b / w_b = J_a'H_aJ_a - J_b'H_bJ_b,    delta = g_a / w_a - g_b / w_b = J_a'e_a - J_b'e_b,
//
// e the derivatives of the loss by the outputs. In the differences it cancels, whatever it is, and only J is left.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

// Two examples of the shard.
struct Pair {
  Window a, b;
};

// Up to four, none in common; empty if the shard has a single example.
std::vector<Pair> Pairs(const Lab& lab) {
  constexpr int64_t kPairs = 4;
  std::vector<Pair> pairs(std::min(kPairs, lab.ShardSize(false, lab.shard(), lab.shards()) / 2));
  for (size_t i = 0; i < pairs.size(); ++i) pairs[i] = {lab.Training(1, 2 * i), lab.Training(1, 2 * i + 1)};
  return pairs;
}

absl::StatusOr<Vector> GradientDifference(Dialogue& session, const Vector& theta, const Pair& pair) {
  HFOPT_ASSIGN_OR_RETURN(const GradientReply a, session.Gradient(theta, pair.a));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply b, session.Gradient(theta, pair.b));
  return Vector(a.gradient / a.weight - b.gradient / b.weight);
}

// D v. The worker does not keep v.
absl::StatusOr<Vector> ProductDifference(Dialogue& session, const Vector& theta, const Pair& pair, const Vector& v) {
  const Vector direction = session.Rounded(v);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply a, session.Product(theta, direction, pair.a));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply b, session.Product(theta, direction, pair.b));
  session.Release({session.Resident(direction)});
  return Vector(a.product / a.weight - b.product / b.weight);
}

// --- delta lies in the range of D if e lies in the range of H, as for squared errors, softmax and logistic losses.

// How far the part of delta with the parameters [begin, begin + size) is from the range of that block of D.
absl::StatusOr<RangeDistance> BlockDistance(Lab& lab, Dialogue& session, const Vector& theta, const Pair& pair,
                                            const Vector& delta, int64_t begin, int64_t size) {
  // Enough for 128 outputs, in 256 MB at most.
  constexpr int64_t kMaxSteps = 256, kMaxNumbers = int64_t{1} << 25;
  const auto block = [&](const Vector& v) -> absl::StatusOr<Vector> {
    Vector whole = Vector::Zero(theta.size());
    whole.segment(begin, size) = v;
    HFOPT_ASSIGN_OR_RETURN(const Vector product, ProductDifference(session, theta, pair, whole));
    return Vector(product.segment(begin, size));
  };
  return DistanceFromRange(block, delta.segment(begin, size), std::clamp<int64_t>(kMaxNumbers / size, 2, kMaxSteps),
                           lab.limit(1e-11, 1e-5));
}

absl::StatusOr<Outcome> Range(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const int64_t n = theta.size();
  // Right models leave 1e-15, in float32 up to 5e-8; mistakes 0.1 and more.
  const double limit = lab.limit(1e-4, 1e-2);

  RangeDistance best;
  std::optional<Pair> best_pair;
  for (const Pair& pair : Pairs(lab)) {
    HFOPT_ASSIGN_OR_RETURN(const Vector delta, GradientDifference(*session, theta, pair));
    HFOPT_ASSIGN_OR_RETURN(const RangeDistance distance, BlockDistance(lab, *session, theta, pair, delta, 0, n));
    if (distance.residual <= limit) {
      if (distance.dimension == n) {
        return Passed("says nothing: an example has as many outputs as the model has parameters, or more");
      }
      return Passed("the gradient of single examples is in the range of G but for ", distance.residual, " of it (",
                    distance.dimension, " dimensions)");
    }
    if (!best_pair.has_value() || distance.residual < best.residual) {
      best = distance;
      best_pair = pair;
    }
  }
  if (!best_pair.has_value()) return Passed("says nothing: the shard has a single example");
  if (!best.exhausted) {
    return Passed("says nothing: an example has too many outputs, ", best.dimension, " products leave ", best.residual);
  }

  // H may be singular along e. Then it is so for the parameters of one layer as well; but if these agree with each
  // other, only J can be wrong. Blocks that are not larger than the rank agree in any case.
  HFOPT_ASSIGN_OR_RETURN(const Vector delta, GradientDifference(*session, theta, *best_pair));
  const int64_t least = 2 * best.dimension + 2;
  for (int64_t size = n / 2; size >= least; size = size > least ? std::max(size / 2, least) : 0) {
    for (const int64_t begin : {n - size, int64_t{0}}) {
      HFOPT_ASSIGN_OR_RETURN(const RangeDistance distance,
                             BlockDistance(lab, *session, theta, *best_pair, delta, begin, size));
      if (distance.residual <= limit && distance.dimension < size) {
        return Failed("the gradient of single examples is outside the range of their G, by ", best.residual,
                      " of itself; for the ", begin == 0 ? "first " : "last ", size, " of ", n,
                      " parameters alone it is inside (", distance.residual,
                      "): G is J'HJ with another J than the gradient's (a wrong derivative of an activation, a layer "
                      "scaled or left out)");
      }
    }
  }
  return Warned("the gradient of single examples is outside the range of their G, by ", best.residual,
                " of itself: right if the loss has no curvature along its own gradient (a Huber or hinge loss far from "
                "the data); else G is J'HJ with another J than the gradient's, or not of that form");
}

// --- The empirical Fisher matrix, sum of g g'.

// If G is that, D = (s delta' + delta s') / 2 with s = g_a / w_a + g_b / w_b, which a regulariser hides, but which
// D delta gives away: delta'D delta = s'delta |delta|^2.
absl::StatusOr<Outcome> Fisher(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(100);
  double most = 0;
  const std::vector<Pair> pairs = Pairs(lab);
  for (const Pair& pair : pairs) {
    HFOPT_ASSIGN_OR_RETURN(const Vector delta, GradientDifference(*session, theta, pair));
    const Vector direction = session->Rounded(delta);
    HFOPT_ASSIGN_OR_RETURN(const Vector Dd, ProductDifference(*session, theta, pair, direction));
    HFOPT_ASSIGN_OR_RETURN(const Vector Dv, ProductDifference(*session, theta, pair, v));
    const double dd = direction.squaredNorm(), sd = direction.dot(Dd) / dd;
    const Vector s = (2 * Dd - sd * direction) / dd;
    const Vector fisher = (s * direction.dot(v) + direction * s.dot(v)) / 2;
    // No curvature at either example (a Huber loss far from the data), where the gradients have some length.
    most = std::max(most, Dv.isZero(0) ? 1 : RelativeDifference(Dv, fisher));
  }
  if (pairs.empty() || theta.size() == 1) return Passed("says nothing: there is one example, or one parameter");
  if (most <= lab.limit(1e-6, 1e-3)) {
    return Failed("G is the empirical Fisher matrix, the sum of g g' over the examples, but for ", most,
                  "; the Gauss-Newton matrix is J'HJ");
  }
  return Passed("products differ from those of the empirical Fisher matrix by ", most, " of themselves");
}

// --- Blocks.

// With u in the first parameters and what comes of it in the last ones: there G u is 0 if layers are kept apart, and the
// change of the gradient is not. In a right G it is 0 where no output depends on both, and then both are.
absl::StatusOr<Outcome> Blocks(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Window window = lab.Training();
  const int64_t n = theta.size();
  if (n < 2) return Passed("says nothing: there is one parameter");
  double least = 1;
  for (const int64_t part : {16, 4}) {
    const int64_t size = std::max<int64_t>(1, n / part);
    Vector u = lab.Direction(110);
    u.tail(n - size).setZero();
    HFOPT_ASSIGN_OR_RETURN(const ProductReply Gu, session->Product(theta, u, window));
    const double product = Gu.product.tail(size).norm() / std::max(Gu.product.norm(), 1e-300);
    least = std::min(least, product);
    if (product > lab.limit(1e-12, 1e-6)) continue;

    const auto change = [&](double h) -> absl::StatusOr<Vector> {
      HFOPT_ASSIGN_OR_RETURN(const GradientReply up, session->Gradient(Point(theta, {{h, u}}), window));
      HFOPT_ASSIGN_OR_RETURN(const GradientReply down, session->Gradient(Point(theta, {{-h, u}}), window));
      return Vector((up.gradient - down.gradient).tail(size) / (2 * h));
    };
    HFOPT_ASSIGN_OR_RETURN(const Vector coarse, change(0.1 * lab.step()));
    HFOPT_ASSIGN_OR_RETURN(const Vector fine, change(0.05 * lab.step()));
    if (fine.norm() > 0 && RelativeDifference(coarse, fine) < 0.2) {  // rounding would not agree
      return Failed("G has no entries between the first ", size, " of ", n, " parameters and the last ", size,
                    ", where the gradient changes by ", fine.norm(), " along a vector of length ", u.norm(),
                    ": layers, or single parameters, are kept apart (a block-diagonal or diagonal G)");
    }
  }
  return Passed("between the first and the last parameters there is ", least, " of G u or more");
}

}  // namespace

std::vector<Case> StructureCases() {
  return {{"product/range", "the gradient of an example is in the range of its G: one J for both", Range},
          {"product/fisher", "G is not the empirical Fisher matrix", Fisher},
          {"product/blocks", "G has entries between the first and the last parameters where the loss has", Blocks}};
}

}  // namespace hfopt::conformance
