#include "client/cli/time_left.h"

#include <algorithm>
#include <cmath>

namespace hfopt::cli {
namespace {

using Reports = std::vector<v1::IterationReport>;

// Iterations whose pace counts: enough to average over, few enough to follow growing samples.
constexpr size_t kRecent = 3;
// Iterations through which the course of the loss is drawn.
constexpr size_t kCourse = 8;

// Number of training examples, from the definition of the example-pass.
double TrainingExamples(const v1::Cost& cost) {
  const double examples = 3.0 * cost.gradient_examples() + cost.linearization_examples() +
                          4.0 * cost.product_examples() + cost.loss_examples();
  return examples / cost.example_passes();
}

// An end more than so many times as far away as the beginning cannot be told from one that never comes.
constexpr double kFarthest = 10;

// Iterations until the line through (1 / iteration, loss), by least squares over the last accepted iterations, meets
// the target.
std::optional<double> IterationsUntil(const Reports& reports, double target) {
  double count = 0, x_sum = 0, y_sum = 0, xx_sum = 0, xy_sum = 0;
  for (size_t i = reports.size() - std::min(kCourse, reports.size()); i < reports.size(); ++i) {
    if (!reports[i].accepted()) continue;
    const double x = 1.0 / static_cast<double>(reports[i].iteration()), y = reports[i].held_out_loss();
    count += 1, x_sum += x, y_sum += y, xx_sum += x * x, xy_sum += x * y;
  }
  if (count < 3) return std::nullopt;
  const double slope = (count * xy_sum - x_sum * y_sum) / (count * xx_sum - x_sum * x_sum);
  const double limit = (y_sum - slope * x_sum) / count;  // of the loss after infinitely many iterations
  if (!(slope > 0 && limit < target)) return std::nullopt;
  const double iteration = static_cast<double>(reports.back().iteration());
  const double iterations = std::max(0.0, slope / (target - limit) - iteration);
  if (iterations > kFarthest * iteration) return std::nullopt;
  return iterations;
}

// Seconds for so many more iterations, the next one taking `seconds` times the recent growth of the gradient sample in an iteration.
double SecondsOf(double iterations, double seconds, const Reports& reports) {
  const v1::IterationReport& last = reports.back();
  const size_t since = std::min(kRecent, reports.size()) - 1;
  const double before = reports[reports.size() - 1 - since].gradient_examples();
  const double growth = since > 0 && before > 0 ? std::max(1.0, std::pow(last.gradient_examples() / before, 1.0 / static_cast<double>(since))) : 1;
  const double most = std::max(1.0, TrainingExamples(last.cost()) / last.gradient_examples());
  double sum = 0, scale = 1;
  while (iterations > 0) {
    if (growth == 1 || !(scale < most)) return sum + iterations * seconds * scale;
    scale = std::min(scale * growth, most);
    sum += std::min(iterations, 1.0) * seconds * scale;
    iterations -= 1;
  }
  return sum;
}

// Seconds until `used`, which grew by `recently` in the last `seconds`, reaches `budget`.
std::optional<double> SecondsUntilSpent(double used, double budget, double recently, double seconds) {
  if (!(budget > 0) || !(recently > 0)) return std::nullopt;
  return std::max(0.0, budget - used) * seconds / recently;
}

}  // namespace

std::optional<double> EstimateSecondsLeft(const Reports& reports, const v1::RunOptions& options) {
  if (reports.empty()) return std::nullopt;
  const v1::StopOptions& stop = options.optimizer().stop();
  const v1::IterationReport& last = reports.back();
  double elapsed = 0, recently = 0;
  for (const v1::IterationReport& report : reports) elapsed += report.seconds().total();
  const size_t recent = std::min(kRecent, reports.size());
  for (size_t i = reports.size() - recent; i < reports.size(); ++i) recently += reports[i].seconds().total();
  const v1::Cost before = recent < reports.size() ? reports[reports.size() - recent - 1].cost() : v1::Cost();
  const v1::Cost& now = last.cost();

  std::optional<double> least;
  const auto consider = [&](std::optional<double> seconds) {
    if (seconds.has_value() && (!least.has_value() || *seconds < *least)) least = seconds;
  };
  const auto consider_iterations = [&](std::optional<double> iterations) {
    if (iterations.has_value()) consider(SecondsOf(*iterations, recently / recent, reports));
  };
  if (options.max_wall_seconds() > 0) consider(std::max(0.0, options.max_wall_seconds() - elapsed));
  if (stop.max_iterations() > 0) consider_iterations(static_cast<double>(stop.max_iterations()) - last.iteration());
  if (stop.has_target_loss() && std::isfinite(stop.target_loss())) {
    consider_iterations(IterationsUntil(reports, stop.target_loss()));
  }
  consider(SecondsUntilSpent(now.products(), stop.max_products(), now.products() - before.products(), recently));
  consider(SecondsUntilSpent(now.example_passes(), stop.max_example_passes(),
                             now.example_passes() - before.example_passes(), recently));
  return least;
}

}  // namespace hfopt::cli
