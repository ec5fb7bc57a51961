// The Gauss-Newton product G v = sum of J'HJ v: what can be known of it from outside.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/line.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

absl::StatusOr<Outcome> Symmetry(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const Window window = lab.Training();
  double worst = 0;
  for (int k = 0; k < 3; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    // The last pair lies in different parts: a block of G and its transpose.
    const int64_t n = theta.size(), half = n / 2;
    const Vector u = k < 2 ? lab.Direction(40 + k) : RandomSigns(n, {0, std::max<int64_t>(1, half)}, 40);
    const Vector v = k < 2 ? lab.Direction(50 + k) : RandomSigns(n, {half, n - half}, 50);
    HFOPT_ASSIGN_OR_RETURN(const ProductReply Gu, session->Product(theta, u, window));
    HFOPT_ASSIGN_OR_RETURN(const ProductReply Gv, session->Product(theta, v, window));
    if (!Gu.product.allFinite() || !Gv.product.allFinite()) return Failed("a product is not finite");
    // For independent directions u'Gv is about |Gv|; |u||Gv| is far larger.
    const double typical = std::max({Gu.product.norm(), Gv.product.norm(), std::numeric_limits<double>::min()});
    const double error = std::abs(u.dot(Gv.product) - v.dot(Gu.product)) / typical;
    worst = std::max(worst, error);
    if (!(error <= lab.limit(1e-8, 2e-3))) {
      return Failed("u'Gv is ", u.dot(Gv.product), " and v'Gu ", v.dot(Gu.product),
                    ": G is not J'HJ (a transposed layer, a missing "
                    "term, or an H that is not symmetric)");
    }
  }
  return Passed("u'Gv and v'Gu differ by ", worst, " of |Gv|");
}

absl::StatusOr<Outcome> Linearity(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector u = lab.Direction(60), v = lab.Direction(61);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply Gu, session->Product(theta, u, window));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply Gv, session->Product(theta, v, window));
  if (Gu.product.isZero(0)) return Failed("the product is 0");
  const double limit = lab.limit(1e-9, 1e-3);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply zero, session->Product(theta, Vector::Zero(theta.size()), window));
  if (!zero.product.isZero(0)) return Failed("G 0 has length ", zero.product.norm());
  double worst = 0;
  for (const auto& [a, b] : {std::pair{2., 1.}, {-1., 0.}, {0.5, -0.75}, {0x1p-20, 0.}, {0x1p20, 0.}}) {
    const Vector w = session->Rounded(a * u + b * v);
    HFOPT_ASSIGN_OR_RETURN(const ProductReply Gw, session->Product(theta, w, window));
    const double error = RelativeDifference(Gw.product, Vector(a * Gu.product + b * Gv.product));
    worst = std::max(worst, error);
    if (error > limit) {
      return Failed("G(", a, " u + ", b, " v) differs from ", a, " Gu + ", b, " Gv by ", error,
                    " of itself: a finite difference, an overflow, or a product that depends on earlier ones");
    }
  }
  return Passed("off by ", worst);
}

// G at a point and window, asked of the session that is in use.
auto OperatorAt(Dialogue& session, const Vector& theta, const Window& window) {
  return [&session, &theta, &window](const Vector& v) -> absl::StatusOr<Vector> {
    HFOPT_ASSIGN_OR_RETURN(ProductReply reply, session.Product(theta, session.Rounded(v), window));
    return std::move(reply.product);
  };
}

absl::StatusOr<Outcome> Semidefinite(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  constexpr int kSteps = 24;
  double lowest = std::numeric_limits<double>::infinity();
  for (int k = 0; k < 3; ++k) {
    HFOPT_ASSIGN_OR_RETURN(Vector theta, lab.Theta(k));
    // Far from a minimum, residuals are large, and so is what tells a Hessian from a Gauss-Newton matrix.
    if (k == 2) theta = session->Rounded(2 * theta);
    const Window window = lab.Training(k == 1 ? 3 : lab.options().examples);
    HFOPT_ASSIGN_OR_RETURN(const Extremes extremes,
                           LanczosExtremes(OperatorAt(*session, theta, window), lab.Direction(70 + k), kSteps));
    if (extremes.smallest == 0 && extremes.largest == 0) continue;  // a loss that is linear in all outputs here
    const double ratio = extremes.smallest / std::max(std::abs(extremes.largest), std::abs(extremes.smallest));
    lowest = std::min(lowest, ratio);
    if (!(ratio >= -lab.limit(1e-9, 1e-4))) {
      const bool is_negative = extremes.largest <= 1e-6 * std::abs(extremes.smallest);
      return Failed("a unit vector v has v'Gv = ", extremes.smallest, ", another one ", extremes.largest, " (Lanczos, ",
                    kSteps, " steps): ",
                    is_negative ? "the product has a wrong sign"
                                : "the product is the Hessian's instead of the Gauss-Newton matrix's");
    }
  }
  return Passed("smallest over largest Ritz value ", lowest, " or more at three points");
}

// --- G against second derivatives of the loss.
//
// The Hessian is G + R, R = sum of residuals times second derivatives of the model's outputs. Where the outputs are
// linear along v - the weights and biases of a network's last layer, one weight of a network of piecewise linear units,
// all of a linear model - v'Rv = 0, and v'Gv is the second derivative of the loss along v, exactly. From outside nobody
// knows which directions these are; but among single parameters there are some in most models, and they show
// themselves: the ratio of second derivative and v'Gv is the same number for all of them, 1. Another number that many
// have in common is a factor in G. A *difference* that many have in common, where the curvature itself is different, is
// a regulariser that the loss has and G has not (or the other way round).

struct Probe {
  int64_t parameter = 0;
  double product = 0;   // v'Gv
  Estimate derivative;  // second derivative of the loss
};

// Single parameters: from all over, and more of the ends, where layers begin and end.
std::set<int64_t> ProbedParameters(int64_t n, uint64_t seed) {
  constexpr int kSpread = 40, kEnds = 12;
  std::set<int64_t> parameters;
  std::mt19937_64 bits(seed);
  for (int i = 0; i < kSpread; ++i) parameters.insert((i * n + static_cast<int64_t>(bits() % n)) / kSpread % n);
  for (int i = 0; i < kEnds; ++i) {
    parameters.insert(std::min<int64_t>(n - 1, i));
    parameters.insert(std::max<int64_t>(0, n - 1 - i));
    parameters.insert(std::max<int64_t>(0, n - 1 - static_cast<int64_t>(bits() % std::max<int64_t>(1, n / 10))));
  }
  return parameters;
}

// How many of the cluster's members differ in v'Gv: equal units of a model agree in everything.
size_t DifferentProducts(const std::vector<Probe>& probes, const std::vector<int>& cluster) {
  std::vector<double> products;
  for (const int i : cluster) {
    if (std::none_of(products.begin(), products.end(),
                     [&](double p) { return RelativeDifference(p, probes[i].product) < 1e-3; })) {
      products.push_back(probes[i].product);
    }
  }
  return products.size();
}

// What the probes say; empty where they say nothing.
std::optional<Outcome> Judge(const std::vector<Probe>& probes, double weight, bool float64) {
  constexpr size_t kFew = 4;
  constexpr double kShare = 0.08;
  // Numbers agree by chance when they are rough: 70 ratios between 0.8 and 1.2, known to 1e-4, have five equal ones
  // once in 10^4 models.
  const double sharp = float64 ? 1e-4 : 2e-2, factor_share = float64 ? kShare : 0.25, constant_sharp = 3e-3;
  std::vector<double> ratios, ratio_tolerances, differences, difference_tolerances;
  std::vector<bool> decided;
  double largest = 0;
  for (const Probe& p : probes) largest = std::max({largest, std::abs(p.product), std::abs(p.derivative.value)});
  size_t num_decided = 0, exact = 0;
  for (const Probe& p : probes) {
    const double size = std::max(std::abs(p.product), std::abs(p.derivative.value)), error = 3 * p.derivative.error;
    // Second differences of single parameters reach 1e-6 and better where curvature is not tiny against the loss.
    constexpr double kTooRough = 3e-2;
    const bool use = p.product != 0 && size > 1e-9 * largest && error <= kTooRough * size;
    decided.push_back(use);
    num_decided += use;
    ratios.push_back(use ? p.derivative.value / p.product : 0);
    ratio_tolerances.push_back(use ? std::max(1e-5 * std::abs(ratios.back()), error / std::abs(p.product)) : 0);
    differences.push_back(p.derivative.value - p.product);
    difference_tolerances.push_back(std::max(1e-3 * std::abs(differences.back()), error));
    exact += use && std::abs(ratios.back() - 1) <= ratio_tolerances.back();
  }
  const auto enough = [&](double share) { return std::max(kFew + 1, static_cast<size_t>(share * num_decided)); };

  // A difference counts where it is far more than its error.
  std::vector<bool> differs = decided;
  for (size_t i = 0; i < probes.size(); ++i) {
    differs[i] = differs[i] && difference_tolerances[i] < constant_sharp * std::abs(differences[i]) &&
                 std::abs(ratios[i] - 1) > 3 * ratio_tolerances[i];
  }
  const std::vector<int> constant = LargestCluster(differences, difference_tolerances, differs);
  std::vector<bool> scaled = decided;
  for (size_t i = 0; i < probes.size(); ++i) {
    scaled[i] = scaled[i] && ratio_tolerances[i] <= sharp * std::abs(ratios[i]) &&
                std::abs(ratios[i] - 1) > 10 * ratio_tolerances[i];
  }
  const std::vector<int> factor = LargestCluster(ratios, ratio_tolerances, scaled);
  const size_t different_constant = DifferentProducts(probes, constant),
               different_factor = DifferentProducts(probes, factor);
  if (different_factor >= enough(factor_share) && different_factor > exact && different_factor >= different_constant) {
    const double ratio = ratios[factor.front()];
    return Failed("the second derivative of the loss is ", ratio, " times v'Gv for ", factor.size(), " of ",
                  num_decided, " single parameters (", exact, " have 1), for example parameter ",
                  probes[factor.front()].parameter, ": G is off by a factor of ", 1 / ratio);
  }
  if (different_constant >= enough(kShare)) {
    const double difference = differences[constant.front()];
    return Failed("the second derivative of the loss is v'Gv + ", difference, " for ", constant.size(), " of ",
                  num_decided, " single parameters whose v'Gv differ, for example parameter ",
                  probes[constant.front()].parameter, ": G lacks a regulariser of ", difference / weight,
                  " times the weight (the curvature of weight r(theta))");
  }
  if (exact >= kFew) {
    return Passed("the second derivative of the loss is v'Gv for ", exact, " of ", num_decided,
                  " single parameters (where outputs are linear)");
  }
  return std::nullopt;
}

// Damped Gauss-Newton steps on the window, with G as it is answered: where residuals are small, so is R.
absl::StatusOr<Vector> Fit(Dialogue& session, Vector theta, const Window& window) {
  constexpr int kSteps = 15, kCgSteps = 25;
  HFOPT_ASSIGN_OR_RETURN(double loss, session.Loss(theta, window));
  double damping = 1e-2;
  for (int step = 0; step < kSteps; ++step) {
    HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session.Gradient(theta, window));
    const double scale = gradient.weight;
    Vector x = Vector::Zero(theta.size()), r = -gradient.gradient, p = r;
    double rr = r.squaredNorm();
    const double stop = 1e-4 * rr;
    for (int i = 0; i < kCgSteps && rr > stop; ++i) {
      const Vector direction = session.Rounded(p);
      HFOPT_ASSIGN_OR_RETURN(const ProductReply Gp, session.Product(theta, direction, window));
      const Vector Ap = Gp.product + damping * scale * p;
      const double curvature = p.dot(Ap);
      if (!(curvature > 0)) break;
      const double alpha = rr / curvature;
      x += alpha * p;
      r -= alpha * Ap;
      const double next = r.squaredNorm();
      p = r + next / rr * p;
      rr = next;
    }
    const Vector trial = session.Rounded(theta + x);
    HFOPT_ASSIGN_OR_RETURN(const double trial_loss, session.Loss(trial, window));
    if (trial_loss < loss) {
      const bool done = trial_loss > (1 - 1e-3) * loss;
      theta = trial;
      loss = trial_loss;
      damping /= 3;
      if (done) break;
    } else {
      damping *= 8;
    }
    session.ReleaseResidents();
  }
  return theta;
}

// For models without a direction in which outputs are linear: v'Gv against v'(G + R)v along the largest curvature,
// after R was made small.
absl::StatusOr<Outcome> JudgeByFit(Lab& lab, Dialogue& session) {
  constexpr int kSteps = 16;
  HFOPT_ASSIGN_OR_RETURN(Vector theta, lab.Theta(0));
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(const double before, session.Loss(theta, window));
  HFOPT_ASSIGN_OR_RETURN(theta, Fit(session, theta, window));
  HFOPT_ASSIGN_OR_RETURN(const double after, session.Loss(theta, window));
  HFOPT_ASSIGN_OR_RETURN(const Extremes extremes,
                         LanczosExtremes(OperatorAt(session, theta, window), lab.Direction(80), kSteps));
  const Vector v = session.Rounded(extremes.largest_vector);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply Gv, session.Product(theta, v, window));
  HFOPT_ASSIGN_OR_RETURN(const LineDerivatives line, DerivativesAlong(lab, session, theta, v, window));
  const double product = v.dot(Gv.product), ratio = line.curvature.value / product;
  const std::string numbers =
      absl::StrCat("no single parameter of those looked at has outputs that are linear in it; after ",
                   before > after ? "a fit" : "no gain by a fit", " (loss ", before, " to ", after,
                   ") the second derivative of the loss along the largest curvature is ", line.curvature.value, " +- ",
                   line.curvature.error, ", v'Gv is ", product, " (ratio ", ratio, ")");
  if (!(line.curvature.error < 0.1 * std::abs(line.curvature.value))) return Warned(numbers, ": too rough to tell");
  // R is a few percent of the largest curvature in models that fit their data; a wrong factor is usually 2.
  if (ratio > 0.95 && ratio < 1.05) return Passed(numbers);
  if (ratio > 0.6 && ratio < 1.67)
    return Warned(numbers, ": the rest may be the residuals' part of the Hessian, or a factor in G");
  return Failed(numbers,
                ": G is off by a factor, or lacks the Hessian of the loss with respect to the outputs (H in J'HJ)");
}

absl::StatusOr<Outcome> AgainstTheLoss(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  // There are many losses to ask for, and few examples show what there is to be seen.
  constexpr int64_t kExamples = 24;
  const Window window = lab.Training(std::min(kExamples, lab.options().examples));
  std::string passed;
  for (int k = 0; k < 2; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    std::vector<Probe> probes;
    double weight = 0;
    for (const int64_t parameter : ProbedParameters(theta.size(), lab.options().seed + k)) {
      Vector v = Vector::Zero(theta.size());
      v[parameter] = 1;
      HFOPT_ASSIGN_OR_RETURN(const ProductReply Gv, session->Product(theta, v, window));
      weight = Gv.weight;
      // A single parameter may go far: truncation is small, and rounding smaller for it.
      constexpr double kReach = 8;
      constexpr int kLevels = 10;
      HFOPT_ASSIGN_OR_RETURN(const LineDerivatives line,
                             DerivativesAlong(lab, *session, theta, v, window, kReach, kLevels));
      Estimate derivative = line.curvature;
      for (const Estimate& e : line.curvatures) {  // of those that are as good, the one that agrees
        if (std::abs(e.value - Gv.product[parameter]) < std::abs(derivative.value - Gv.product[parameter]))
          derivative = e;
      }
      probes.push_back({parameter, Gv.product[parameter], derivative});
    }
    session->ReleaseResidents();
    const std::optional<Outcome> outcome = Judge(probes, weight, lab.float64());
    if (!outcome) return JudgeByFit(lab, *session);
    if (outcome->verdict != Verdict::kPassed) return *outcome;
    passed = outcome->detail;
  }
  return Passed(passed);
}

absl::StatusOr<Outcome> OtherVectors(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(90);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply before, session->Product(theta, v, lab.Training()));
  Vector garbage = Vector::Constant(theta.size(), std::numeric_limits<double>::quiet_NaN());
  const std::string name = session->Upload(garbage);
  HFOPT_RETURN_IF_ERROR(session->Product(theta, session->Rounded(1e3 * lab.Direction(91)), lab.Training()).status());
  HFOPT_RETURN_IF_ERROR(session->Gradient(theta, lab.Training(3)).status());
  HFOPT_ASSIGN_OR_RETURN(const ProductReply after, session->Product(theta, v, lab.Training()));
  session->Release({name});
  if (before.product != after.product)
    return Failed("it changed by ", RelativeDifference(before.product, after.product), " of itself");
  return Passed("the same bits with a vector of NaN beside it, and after another product");
}

}  // namespace

std::vector<Case> CurvatureCases() {
  return {{"product/symmetric", "u'Gv = v'Gu", Symmetry},
          {"product/linear", "G(au + bv) = aGu + bGv, over twelve orders of magnitude", Linearity},
          {"product/semidefinite", "v'Gv >= 0, also for the v that Lanczos' iteration finds", Semidefinite},
          {"product/against-the-loss",
           "v'Gv is the second derivative of the loss where outputs are linear: scale, regulariser, output Hessian",
           AgainstTheLoss},
          {"product/other-vectors", "other vectors at the worker change nothing", OtherVectors}};
}

}  // namespace hfopt::conformance
