// Which examples a window means; answers are sums over them, with a weight.

#include <algorithm>
#include <cmath>
#include <map>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

// All that is asked of a window at one point.
struct Sums {
  double loss = 0, weight = 0;
  std::map<std::string, double> metrics;
  Vector gradient, product, second_moment;

  void Add(const Sums& other) {
    loss += other.loss;
    weight += other.weight;
    for (const auto& [name, sum] : other.metrics) metrics[name] += sum;
    if (gradient.size() == 0) gradient = product = Vector::Zero(other.gradient.size());
    gradient += other.gradient;
    product += other.product;
    if (second_moment.size() == 0) second_moment = Vector::Zero(other.second_moment.size());
    second_moment += other.second_moment;
  }
};

absl::StatusOr<Sums> SumsOver(Dialogue& session, const Vector& theta, const Vector& v, const Window& window) {
  Sums sums;
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer losses, session.Losses({theta}, window));
  sums.loss = losses.loss_sums(0);
  sums.weight = losses.weight();
  for (const v1::MetricSums& m : losses.metrics()) sums.metrics[m.name()] = m.sums(0);
  HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient,
                         session.Gradient(theta, window, 0, session.hello().second_moment()));
  sums.gradient = gradient.gradient;
  sums.second_moment = gradient.second_moment;
  HFOPT_ASSIGN_OR_RETURN(const ProductReply product, session.Product(theta, v, window));
  sums.product = product.product;
  if (gradient.weight != sums.weight || product.weight != sums.weight) {
    return absl::FailedPreconditionError(absl::StrCat("the weight of one window is ", sums.weight, " in losses, ",
                                                      gradient.weight, " in the gradient, ", product.weight,
                                                      " in the product; it depends on the examples alone"));
  }
  return sums;
}

// Holds the sum of the parts against the whole. Empty where they agree.
std::string Difference(const Sums& whole, const Sums& parts, double limit) {
  const auto differ = [&](const char* what, double a, double b) {
    const double error = RelativeDifference(a, b);
    // A factor that is the number of parts, or of examples, tells of means.
    return error <= limit ? ""
                          : absl::StrCat("the ", what, " of the whole is ", a, ", the sum of its parts ", b, " (ratio ",
                                         b / a, ")");
  };
  std::string text = differ("weight", whole.weight, parts.weight);
  if (text.empty()) text = differ("loss", whole.loss, parts.loss);
  for (const auto& [name, sum] : whole.metrics) {
    const auto part = parts.metrics.find(name);
    if (text.empty())
      text = differ(absl::StrCat("metric ", name).c_str(), sum, part == parts.metrics.end() ? 0 : part->second);
  }
  const auto differ_in_vector = [&](const char* what, const Vector& a, const Vector& b) {
    const double error = RelativeDifference(a, b);
    return error <= limit ? ""
                          : absl::StrCat("the ", what, " of the whole and the sum over its parts differ by ", error,
                                         " of them (their lengths are ", a.norm(), " and ", b.norm(), ")");
  };
  if (text.empty()) text = differ_in_vector("gradient", whole.gradient, parts.gradient);
  if (text.empty()) text = differ_in_vector("product", whole.product, parts.product);
  if (text.empty()) text = differ_in_vector("second moment", whole.second_moment, parts.second_moment);
  return text;
}

double SumLimit(const Lab& lab) { return lab.limit(1e-9, 2e-3); }

absl::StatusOr<Outcome> PartsMakeTheWhole(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(20);
  const Window whole = lab.Training();
  if (whole.count < 2) return Skipped("the shard has one example");
  HFOPT_ASSIGN_OR_RETURN(const Sums expected, SumsOver(*session, theta, v, whole));
  // Parts of different sizes, one of them a single example.
  const uint64_t cuts[] = {0, 1, std::max<uint64_t>(1, whole.count / 4), std::max<uint64_t>(1, whole.count * 2 / 3),
                           whole.count};
  Sums sum;
  int parts = 0;
  for (int i = 0; i < 4; ++i) {
    if (cuts[i] == cuts[i + 1]) continue;
    Window part = whole;
    part.begin = whole.begin + cuts[i];
    part.count = cuts[i + 1] - cuts[i];
    HFOPT_ASSIGN_OR_RETURN(const Sums one, SumsOver(*session, theta, v, part));
    sum.Add(one);
    ++parts;
  }
  const std::string difference = Difference(expected, sum, SumLimit(lab));
  if (!difference.empty()) return Failed(difference, "; answers are sums over the window's examples, never means");
  return Passed(whole.count, " examples in ", parts, " parts, weight ", expected.weight);
}

absl::StatusOr<Outcome> WindowsWrap(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(21);
  const uint64_t size = lab.ShardSize(false, lab.shard(), lab.shards());
  if (size < 4) return Skipped("the shard has ", size, " examples");
  const uint64_t count = std::min<uint64_t>(size - 1, lab.options().examples),
                 before = std::max<uint64_t>(1, count / 3);
  Window wrapped = lab.Training(), end = wrapped, begin = wrapped;
  wrapped.begin = end.begin = size - before;
  wrapped.count = count;
  end.count = before;
  begin.begin = 0;
  begin.count = count - before;
  HFOPT_ASSIGN_OR_RETURN(const Sums expected, SumsOver(*session, theta, v, wrapped));
  Sums sum;
  for (const Window& part : {end, begin}) {
    HFOPT_ASSIGN_OR_RETURN(const Sums one, SumsOver(*session, theta, v, part));
    sum.Add(one);
  }
  const std::string difference = Difference(expected, sum, SumLimit(lab));
  if (!difference.empty()) {
    return Failed(difference, "; a window that passes the end of its shard goes on at the shard's begin");
  }
  return Passed(before, " examples at the end of the shard, ", count - before, " at its begin");
}

// The same examples as a window of one of several shards, and of all data in one.
absl::StatusOr<Outcome> ShardsAreRanges(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!lab.has_all_shards()) return Skipped("the worker has the data of some shards only");
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(22);
  for (uint32_t s = 0; s < lab.shards(); ++s) {
    const uint64_t size = lab.ShardSize(false, s, lab.shards()), begin = size / 3;
    const Window of_shard = {false, s, lab.shards(), begin, std::min<uint64_t>(size - begin, lab.options().examples)};
    const Window of_all = {false, 0, 1, lab.ShardBegin(false, s, lab.shards()) + begin, of_shard.count};
    HFOPT_ASSIGN_OR_RETURN(const Sums a, SumsOver(*session, theta, v, of_all));
    HFOPT_ASSIGN_OR_RETURN(const Sums b, SumsOver(*session, theta, v, of_shard));
    const std::string difference = Difference(a, b, SumLimit(lab));
    if (!difference.empty()) {
      return Failed(difference,
                    ", where the whole is a window of all data and its part the same examples as a window of shard ", s,
                    " of ", lab.shards());
    }
  }
  return Passed(lab.shards(), " shards");
}

// Single examples at the boundaries of shards, asked for as parts of different cuts of the same data.
absl::StatusOr<Outcome> ShardBoundaries(Lab& lab, bool held_out) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!lab.has_all_shards()) return Skipped("the worker has the data of some shards only");
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const int64_t examples = held_out ? session->hello().held_out_examples() : session->hello().training_examples();
  if (examples == 0) return Skipped("there are no such examples");
  std::map<int64_t, double> whole;  // example -> its loss, asked for as a window of all data in one shard
  int64_t looked_at = 0;
  for (const uint32_t shards : {2u, 3u, 5u, 7u, 8u}) {
    if (shards > examples) break;
    for (uint32_t s = 0; s < shards; ++s) {
      const int64_t size = lab.ShardSize(held_out, s, shards);
      for (const int64_t position : {int64_t{0}, size - 1}) {
        const int64_t example = lab.ShardBegin(held_out, s, shards) + position;
        if (!whole.contains(example)) {
          HFOPT_ASSIGN_OR_RETURN(whole[example], session->Loss(theta, {held_out, 0, 1, uint64_t(example), 1}));
        }
        HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(theta, {held_out, s, shards, uint64_t(position), 1}));
        ++looked_at;
        if (RelativeDifference(loss, whole[example]) > SumLimit(lab)) {
          return Failed("example ", position, " of shard ", s, " of ", shards, " is example ", example,
                        " of all, but its loss is ", loss, " instead of ", whole[example],
                        "; shard s of S is the index range [floor(s N / S), floor((s + 1) N / S)), N = ", examples);
        }
      }
    }
  }
  const auto [least, most] =
      std::minmax_element(whole.begin(), whole.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (whole.size() > 2 && least->second == most->second) {
    return Warned("all ", whole.size(), " examples have the loss ", least->second, ": which is which cannot be seen");
  }
  return Passed(looked_at, " examples at boundaries");
}

absl::StatusOr<Outcome> HeldOut(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const v1::Hello& hello = session->hello();
  if (hello.held_out_examples() == 0) return Skipped("there are none");
  Window whole = lab.Training();
  whole.held_out = true;
  whole.count = std::min<uint64_t>(whole.count, lab.ShardSize(true, lab.shard(), lab.shards()));
  if (whole.count == 0) return Skipped("the shard has none");
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer held_out, session->Losses({theta}, whole));
  Window half = whole, rest = whole;
  half.count = whole.count / 2;
  rest.begin = half.count;
  rest.count = whole.count - half.count;
  double sum = 0;
  for (const Window& part : {half, rest}) {
    if (part.count == 0) continue;
    HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(theta, part));
    sum += loss;
  }
  if (RelativeDifference(sum, held_out.loss_sums(0)) > SumLimit(lab)) {
    return Failed("the loss of the whole is ", held_out.loss_sums(0), ", the sum of its halves ", sum);
  }
  // Training examples in their place: at the same position of the shard, or of the data.
  int at_position = 0, at_index = 0, compared = 0;
  for (uint64_t i = 0; i < std::min<uint64_t>(8, whole.count); ++i) {
    HFOPT_ASSIGN_OR_RETURN(const double a, session->Loss(theta, {true, whole.shard, whole.shards, i, 1}));
    HFOPT_ASSIGN_OR_RETURN(const double b, session->Loss(theta, {false, whole.shard, whole.shards, i, 1}));
    const uint64_t index = lab.ShardBegin(true, whole.shard, whole.shards) + i;
    if (lab.has_all_shards() && index < hello.training_examples()) {
      HFOPT_ASSIGN_OR_RETURN(const double c, session->Loss(theta, {false, 0, 1, index, 1}));
      at_index += a == c;
    }
    at_position += a == b;
    ++compared;
  }
  const int equal = std::max(at_position, at_index);
  const std::string numbers = absl::StrCat("the losses of ", equal, " of ", compared,
                                           " held-out examples are those of the training "
                                           "examples at the same place");
  if (equal < compared || compared < 2) return Passed(whole.count, " examples, loss ", held_out.loss_sums(0));
  if (hello.held_out_examples() == hello.training_examples()) {
    return Warned(numbers, "; right only if the model judges steps by its training data");
  }
  return Failed(numbers, ", although there are ", hello.held_out_examples(), " of the one and ",
                hello.training_examples(), " of the other: slice.data_set is not looked at");
}

absl::StatusOr<Outcome> Weights(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const Window window = lab.Training();
  double weight = 0;
  for (int k = 0; k < 3; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer losses, session->Losses({theta}, window));
    if (k > 0 && losses.weight() != weight) {
      return Failed("the weight of one window is ", weight, " at one point and ", losses.weight(), " at another");
    }
    weight = losses.weight();
  }
  if (window.count > 1 && weight < 1) return Failed("the weight of ", window.count, " examples is ", weight);
  return Passed(weight, " for ", window.count, " examples");
}

absl::StatusOr<Outcome> SubBatches(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  if (!session->hello().sub_batches()) return Skipped("Hello.sub_batches is not set");
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(const GradientReply whole, session->Gradient(theta, window));
  for (const uint64_t parts : {uint64_t{1}, uint64_t{3}, uint64_t{7}}) {
    if (parts > window.count) break;
    HFOPT_ASSIGN_OR_RETURN(const GradientReply cut, session->Gradient(theta, window, parts));
    if (const double error = RelativeDifference(cut.gradient, whole.gradient); error > SumLimit(lab)) {
      return Failed("with ", parts, " sub-batches the gradient differs by ", error, " of itself");
    }
    double weight = 0;
    for (uint64_t p = 0; p < parts; ++p) {
      Window part = window;
      const uint64_t begin = p * window.count / parts, end = (p + 1) * window.count / parts;
      part.begin = window.begin + begin;
      part.count = end - begin;
      HFOPT_ASSIGN_OR_RETURN(const GradientReply alone, session->Gradient(theta, part));
      const auto& [squared_norm, part_weight] = cut.sub_batches[p];
      if (part_weight != alone.weight) {
        return Failed("sub-batch ", p, " of ", parts, " has weight ", part_weight, "; its ", part.count,
                      " examples have ", alone.weight);
      }
      if (RelativeDifference(squared_norm, alone.gradient.squaredNorm()) > 2 * SumLimit(lab)) {
        return Failed("sub-batch ", p, " of ", parts, " has squared norm ", squared_norm,
                      "; the gradient over its examples [", begin, ", ", end, ") has ", alone.gradient.squaredNorm());
      }
      weight += part_weight;
    }
    if (RelativeDifference(weight, cut.weight) > 1e-12)
      return Failed("the weights of the sub-batches sum to ", weight, ", not to ", cut.weight);
  }
  return Passed("1, 3 and 7 parts of ", window.count, " examples");
}

}  // namespace

std::vector<Case> WindowCases() {
  return {{"windows/parts-make-the-whole",
           "losses, metrics, weights, gradients and products of parts sum to those of the whole", PartsMakeTheWhole},
          {"windows/wrap", "a window wraps round inside its shard", WindowsWrap},
          {"windows/shards",
           "losses, gradients and products of a shard's window are those of the same examples in one shard",
           ShardsAreRanges},
          {"windows/shard-boundaries", "shard s of S is [floor(s N / S), floor((s + 1) N / S))",
           [](Lab& lab) { return ShardBoundaries(lab, false); }},
          {"windows/held-out-boundaries", "the same of the held-out data",
           [](Lab& lab) { return ShardBoundaries(lab, true); }},
          {"windows/held-out", "held-out data are data of their own", HeldOut},
          {"windows/weights", "the weight depends on the examples alone", Weights},
          {"windows/sub-batches", "squared gradient norms and weights of the parts of a window", SubBatches}};
}

}  // namespace hfopt::conformance
