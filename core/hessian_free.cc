// Letters: theta parameters, g gradient, G Gauss-Newton matrix, lambda damping, q(d) = g'd + d'(G + lambda I)d / 2 the model of
// L(theta + d) - L(theta), d_1 .. d_N the kept CG iterates, L the held-out loss.

#include "core/hessian_free.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/cg_backtracking.h"
#include "core/conjugate_gradient.h"
#include "core/counting_objective.h"
#include "core/damping.h"
#include "core/line_search.h"
#include "core/sample_schedule.h"
#include "core/status_macros.h"

namespace hfopt {
namespace {

template <typename Scalar>
absl::Status CheckAnswer(const GradientAnswer<Scalar>& answer, int64_t n, const GradientExtras& extras) {
  if (answer.gradient.size() != n) {
    return absl::InternalError(
        absl::StrCat("the gradient has ", answer.gradient.size(), " elements, theta has ", n));
  }
  if (extras.second_moment && answer.second_moment.size() != n) {
    return absl::FailedPreconditionError(
        absl::StrCat("the second moment of the gradient has ", answer.second_moment.size(), " elements, theta has ", n,
                     "; the model has to supply it, or preconditioner.diagonal be none"));
  }
  if (!std::isfinite(answer.loss)) {
    return absl::FailedPreconditionError(absl::StrCat("the training loss at theta is ", answer.loss,
                                                      "; start from parameters at which the model is finite"));
  }
  for (const Vector<Scalar>* v : {&answer.gradient, &answer.second_moment}) {
    if (const int64_t i = FirstNonFinite<Scalar>(*v); i >= 0) {
      return absl::InternalError(absl::StrCat(v == &answer.gradient ? "gradient" : "second moment", " is ", (*v)[i],
                                              " at index ", i, " of ", v->size()));
    }
  }
  return absl::OkStatus();
}

// The gradient on `sample` with what the rules need besides. The second moment comes from few examples, others for each solve, in a request of
// their own: it decides how good the preconditioner is, not where the solve ends, and costs models as much as a gradient or far more.
template <typename Scalar>
absl::StatusOr<GradientAnswer<Scalar>> AskForGradient(Objective<Scalar>& objective, const OptimizerState<Scalar>& state, const Sample& sample,
                                                      const OptimizerOptions& options) {
  GradientExtras extras = ExtrasFor(options, objective.has_second_moment());
  const int64_t few = options.preconditioner.diagonal_examples;
  const bool apart = extras.second_moment && few > 0 && few < sample.size();
  if (apart) extras.second_moment = false;
  HFOPT_ASSIGN_OR_RETURN(GradientAnswer<Scalar> answer, objective.Gradient(state.theta, sample, extras));
  HFOPT_RETURN_IF_ERROR(CheckAnswer(answer, state.theta.size(), extras));
  if (apart) {
    constexpr GradientExtras kSecondMoment = {.second_moment = true};
    const Sample sample_of_few = DrawSample(objective.layout(), DataSet::kTraining, few, state.curvature_cursor);
    HFOPT_ASSIGN_OR_RETURN(GradientAnswer<Scalar> of_few, objective.Gradient(state.theta, sample_of_few, kSecondMoment));
    HFOPT_RETURN_IF_ERROR(CheckAnswer(of_few, state.theta.size(), kSecondMoment));
    answer.second_moment = std::move(of_few.second_moment);
  }
  return answer;
}

// g'Gg / |g|^2.
template <typename Scalar>
absl::StatusOr<double> CurvatureAlong(CurvatureProduct<Scalar>& G, const Vector<Scalar>& g) {
  Vector<Scalar> Gg;
  HFOPT_RETURN_IF_ERROR(G.Apply(g, Gg));
  return Dot(g, Gg) / Dot(g, g);
}

// -q(d_N), with or without its damping term. Never a product.
template <typename Scalar>
double Predicted(const CgIterate<Scalar>& last, double damping, PredictedReduction predicted) {
  if (predicted == PredictedReduction::kDamped) return -last.model_value;
  return -(last.model_value - damping * Dot(last.x, last.x) / 2);
}

// lambda |d_N|^2 / d_N'Bd_N with B = G + lambda I, where d'Bd = 2 (q(d) - g'd). Never a product.
template <typename Scalar>
double DampingShare(const CgIterate<Scalar>& last, const Vector<Scalar>& g, double damping) {
  return damping * Dot(last.x, last.x) / (2 * (last.model_value - Dot(g, last.x)));
}

template <typename Scalar>
absl::StatusOr<double> Actual(Objective<Scalar>& objective, const OptimizerState<Scalar>& state,
                              const CgIterate<Scalar>& last, const BacktrackingResult& backtracking,
                              double training_loss, const Sample& gradient_sample, ActualReduction actual) {
  switch (actual) {
    case ActualReduction::kHeldOutAtLast:
      return backtracking.start.loss - backtracking.last_loss;
    case ActualReduction::kHeldOutAtChosen:
      return backtracking.start.loss - backtracking.chosen.loss;
    case ActualReduction::kGradientSampleAtLast: {
      const Trial<Scalar> trial{&last.x};
      HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> answers,
                             (objective.Losses(state.theta, {&trial, 1}, gradient_sample)));
      return training_loss - answers[0].loss;
    }
  }
  return absl::InternalError("unknown ActualReduction");
}

// L(theta) cannot be had: of the first theta, or of one that was accepted on a smaller part of the held-out data.
template <typename Scalar>
absl::Status NonFiniteStart(double loss, const OptimizerState<Scalar>& state, const Sample& held_out,
                            const DataLayout& layout) {
  const std::string message = absl::StrCat("the held-out loss at theta is ", loss, " on ", held_out.size(), " of ",
                                           layout.held_out_examples, " held-out examples");
  if (state.held_out_examples == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(message, "; start from parameters at which the model is finite"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(message, "; it was ", state.held_out_loss, " on the ", state.held_out_examples,
                   " of the iteration before: mend the model where it overflows on the others, or judge steps on more "
                   "data with samples.min_held_out_examples"));
}

}  // namespace

GradientExtras ExtrasFor(const OptimizerOptions& options, bool has_second_moment) {
  const bool needs_noise =
      options.samples.growth == SampleGrowth::kVariance || options.conjugate_gradient.noise_factor > 0;
  return {.sub_batches = needs_noise ? options.samples.sub_batches : 0,
          .second_moment = UsesSecondMoment(options.preconditioner.diagonal, has_second_moment)};
}

template <typename Scalar>
OptimizerState<Scalar> InitialState(Vector<Scalar> theta, const DataLayout& layout, const OptimizerOptions& options) {
  OptimizerState<Scalar> state;
  state.theta = std::move(theta);
  state.damping = options.damping.initial;
  state.next_gradient_size = FirstGradientSize(layout, options.samples);
  return state;
}

template <typename Scalar>
absl::StatusOr<Iteration<Scalar>> Iterate(const OptimizerState<Scalar>& state, Objective<Scalar>& uncounted,
                                          const OptimizerOptions& options) {
  Cost cost = state.cost;
  CountingObjective<Scalar> objective(uncounted, cost);
  const DataLayout& layout = objective.layout();
  const Vector<Scalar>& theta = state.theta;
  ConjugateGradientOptions cg_options = options.conjugate_gradient;
  cg_options.max_iterations = state.cg_limit > 0 ? state.cg_limit : FirstCgLimit(options.conjugate_gradient);

  // The data of this iteration.
  const Sample gradient_sample =
      DrawSample(layout, DataSet::kTraining, state.next_gradient_size, state.gradient_cursor);
  const int64_t curvature_size = CurvatureSize(layout, options.samples, state.next_gradient_size);
  const Sample curvature_sample = DrawSample(layout, DataSet::kTraining, curvature_size, state.curvature_cursor);
  const Sample held_out =
      DrawSample(layout, DataSet::kHeldOut, HeldOutSize(layout, options.samples, state.next_gradient_size), 0);

  // g <- gradient of the training loss at theta.
  HFOPT_ASSIGN_OR_RETURN(const GradientAnswer<Scalar> gradient, AskForGradient<Scalar>(objective, state, gradient_sample, options));
  const Vector<Scalar>& g = gradient.gradient;

  // lambda_0 may be measured: one product.
  HFOPT_ASSIGN_OR_RETURN(auto G, objective.GaussNewtonAt(theta, curvature_sample));
  double lambda = state.damping;
  if (state.iteration == 0 && options.damping.initial == 0) {
    HFOPT_ASSIGN_OR_RETURN(const double curvature, CurvatureAlong<Scalar>(*G, g));
    lambda = FirstDamping(curvature, options.damping);
  }

  // {d_1 .. d_N} <- CG-Minimize(q, beta d_N of the iteration before). The curvature sample is fixed within the solve.
  const Vector<Scalar> d0 = state.warm_start * static_cast<Scalar>(options.conjugate_gradient.warm_start_decay);
  const Vector<Scalar> diagonal = DampedDiagonal(gradient.second_moment, lambda, options.preconditioner.diagonal_exponent);
  HFOPT_ASSIGN_OR_RETURN(CgResult<Scalar> cg,
                         (MinimizeQuadratic<Scalar>({.G = *G,
                                                     .damping = lambda,
                                                     .gradient = g,
                                                     .start = d0,
                                                     .gradient_noise = gradient.noise,
                                                     .diagonal = diagonal,
                                                     .pairs = state.pairs},
                                                    cg_options, options.preconditioner)));
  G.reset();  // the activations at theta are not needed any more

  // Backtrack from d_N towards d_1 while the held-out loss improves. L(theta) is known unless the held-out sample has changed.
  const bool start_is_known = state.held_out_examples == held_out.size();
  const LossAnswer known_start{.loss = state.held_out_loss, .metrics = state.held_out_metrics};
  HFOPT_ASSIGN_OR_RETURN(BacktrackingResult backtracking,
                         BacktrackOverIterates(objective, theta, cg.kept, held_out,
                                               start_is_known ? &known_start : nullptr));
  const double start_loss = backtracking.start.loss;
  if (!std::isfinite(start_loss)) return NonFiniteStart(start_loss, state, held_out, layout);

  // rho <- actual reduction / reduction predicted by q at d_N.
  HFOPT_ASSIGN_OR_RETURN(const double actual,
                         Actual<Scalar>(objective, state, cg.last(), backtracking, gradient.loss, gradient_sample,
                                        options.damping.actual_reduction));
  const double rho = ReductionRatio(actual, Predicted(cg.last(), lambda, options.damping.predicted_reduction));

  // alpha <- Armijo backtracking along d_i. A direction that does not improve at all is rejected, or shortened first if asked for.
  const Vector<Scalar>& d = cg.kept[backtracking.index].x;
  LineSearchProblem line{.start_loss = start_loss,
                         .slope = options.line_search.sufficient_decrease * std::min(Dot(g, d), 0.0),
                         .shrink = options.line_search.shrink,
                         .max_tries = options.line_search.max_tries,
                         .batch = options.line_search.batch};
  const bool improves = std::isfinite(backtracking.chosen.loss) && backtracking.chosen.loss < start_loss;
  if (!improves) {
    line.shrink = 0.5;
    line.max_tries = options.line_search.rescue_tries;
  }
  LineSearchResult step{.step = 1, .answer = backtracking.chosen};
  if (!improves || !IsSufficientDecrease(line, 1, backtracking.chosen.loss)) {
    HFOPT_ASSIGN_OR_RETURN(step, BacktrackAlongLine(objective, theta, d, held_out, line));
  }
  bool accepted = step.step > 0;

  // theta <- theta + alpha d_i; or theta as it is.
  Iteration<Scalar> next;
  OptimizerState<Scalar>& s = next.state;
  s.iteration = state.iteration + 1;
  s.theta = theta;
  if (accepted) Axpy(step.step, d, s.theta);
  LossAnswer at_new_theta = accepted ? step.answer : backtracking.start;
  s.held_out_examples = held_out.size();

  // A target reached on a part of the held-out data is checked on all of it. A step that overflows there is none. Where the target is missed there,
  // iterations go on being compared on the part.
  if (at_new_theta.loss <= options.stop.target_loss && held_out.size() < layout.held_out_examples) {
    const Trial<Scalar> trial{};
    const Sample all = DrawSample(layout, DataSet::kHeldOut, layout.held_out_examples, 0);
    HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> answers, (objective.Losses(s.theta, {&trial, 1}, all)));
    if (!std::isfinite(answers[0].loss)) {
      accepted = false;
      s.theta = theta;
      at_new_theta = backtracking.start;
    } else if (answers[0].loss <= options.stop.target_loss) {
      at_new_theta = answers[0];
      s.held_out_examples = all.size();
    }
  }

  // d_0 <- d_N; or 0.
  if (accepted && options.conjugate_gradient.warm_start_decay > 0) s.warm_start = cg.last().x;
  s.pairs = std::move(cg.pairs);
  const double damping_share = DampingShare(cg.last(), g, lambda);
  const Restraint restraint = NextRestraint({.damping = lambda, .cg_limit = cg_options.max_iterations},
                                            {.rho = rho,
                                             .accepted = accepted,
                                             .cut = cg.stop == CgStop::kMaxIterations,
                                             .damping_share = damping_share},
                                            options.damping, options.conjugate_gradient);
  s.damping = restraint.damping;
  s.cg_limit = restraint.cg_limit;
  s.held_out_loss = at_new_theta.loss;
  s.held_out_metrics = at_new_theta.metrics;
  s.gradient_norm = Norm(g);
  s.gradient_examples = gradient_sample.size();
  s.next_gradient_size = NextGradientSize(layout, options.samples,
                                          {.iteration = s.iteration,
                                           .size = state.next_gradient_size,
                                           .gradient_norm = s.gradient_norm,
                                           .gradient_noise = gradient.noise,
                                           .damping_share = damping_share,
                                           .accepted = accepted});
  s.gradient_cursor = state.gradient_cursor + state.next_gradient_size;
  s.curvature_cursor = state.curvature_cursor + curvature_size;
  s.consecutive_rejections = accepted ? 0 : state.consecutive_rejections + 1;
  const double loss_on_part = accepted ? step.answer.loss : start_loss;
  const bool stalled = !(start_loss - loss_on_part >= options.stop.min_improvement * std::abs(start_loss));
  s.stalled_iterations = stalled ? state.stalled_iterations + 1 : 0;
  s.cost = cost;

  next.report = {.iteration = s.iteration,
                 .accepted = accepted,
                 .training_loss = gradient.loss,
                 .held_out_loss = s.held_out_loss,
                 .metrics = s.held_out_metrics,
                 .gradient_norm = s.gradient_norm,
                 .gradient_noise = gradient.noise,
                 .damping = lambda,
                 .next_damping = s.damping,
                 .reduction_ratio = rho,
                 .cg_iterations = cg.iterations,
                 .cg_stop = cg.stop,
                 .chosen_iterate = accepted ? cg.kept[backtracking.index].iteration : 0,
                 .step_length = accepted ? step.step : 0,
                 .losses_evaluated = static_cast<int>(cost.losses - state.cost.losses),
                 .gradient_examples = gradient_sample.size(),
                 .curvature_examples = curvature_sample.size(),
                 .held_out_examples = s.held_out_examples,
                 .pairs_kept = cg.pairs_used,
                 .pairs_skipped = cg.pairs_skipped,
                 .cost = cost};
  return next;
}

#define HFOPT_INSTANTIATE(Scalar)                                                                              \
  template OptimizerState<Scalar> InitialState<Scalar>(Vector<Scalar>, const DataLayout&, const OptimizerOptions&); \
  template absl::StatusOr<Iteration<Scalar>> Iterate<Scalar>(const OptimizerState<Scalar>&, Objective<Scalar>&,     \
                                                             const OptimizerOptions&);
HFOPT_INSTANTIATE(float)
HFOPT_INSTANTIATE(double)
#undef HFOPT_INSTANTIATE

}  // namespace hfopt
