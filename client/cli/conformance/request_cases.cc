// Requests: their ids, their points, windows that are none, cancel and release.

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "client/cli/conformance/case.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

// A field that no version of the protocol has.
void AddUnknownField(google::protobuf::Message& message) {
  constexpr int kNumber = 1000;
  google::protobuf::UnknownFieldSet& unknown = *message.GetReflection()->MutableUnknownFields(&message);
  unknown.AddVarint(kNumber, 17);
  unknown.AddLengthDelimited(kNumber + 1, "of a later version");
}

absl::StatusOr<Outcome> LaterVersion(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const double expected, session->Loss(theta, lab.Training()));
  v1::SessionResponse message;  // of a kind that this version does not have
  AddUnknownField(message);
  session->Send(message);
  v1::EvaluationRequest request = session->LossesRequest({theta}, lab.Training());
  AddUnknownField(request);
  AddUnknownField(*request.mutable_slice());
  AddUnknownField(*request.mutable_losses());
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  if (reply.answer.losses().loss_sums(0) != expected) return Failed("the answer changed");
  return Passed("ignored");
}

absl::StatusOr<Outcome> UnknownKind(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  v1::EvaluationRequest request = session->LossesRequest({}, lab.Training());
  request.clear_kind();
  AddUnknownField(request);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  if (!reply.answer.has_failure()) return Failed("answered a kind of request that does not exist with a result");
  return Passed("Failure: ", reply.answer.failure().message());
}

absl::StatusOr<Outcome> BadWindows(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const uint64_t size = lab.ShardSize(false, lab.shard(), lab.shards());
  const uint32_t s = lab.shard(), S = lab.shards();
  const std::pair<const char*, Window> windows[] = {{"begin = the shard's size", {false, s, S, size, 1}},
                                                    {"count = the shard's size + 1", {false, s, S, 0, size + 1}},
                                                    {"shard = shards", {false, S, S, 0, 1}},
                                                    {"begin = 2^63", {false, s, S, uint64_t{1} << 63, 1}},
                                                    {"count = 2^63", {false, s, S, 0, uint64_t{1} << 63}},
                                                    {"shards = 0", {false, 0, 0, 0, 1}}};
  for (const auto& [what, window] : windows) {
    for (const auto& request : {session->LossesRequest({theta}, window), session->GradientRequest(theta, window),
                                session->ProductRequest(theta, theta, window)}) {
      const absl::StatusOr<Reply> reply = session->Ask(request);
      if (!reply.ok()) return Failed(what, ": ", reply.status().message());
      if (!reply->answer.has_failure()) return Failed(what, ": answered with a result; the window does not exist");
    }
  }
  return Passed(std::size(windows), " windows that do not exist, each a Failure");
}

absl::StatusOr<Outcome> UnspecifiedDataSet(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  v1::EvaluationRequest request = session->LossesRequest({theta}, lab.Training());
  request.mutable_slice()->set_data_set(v1::DATA_SET_UNSPECIFIED);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  return reply.answer.has_failure() ? Passed("Failure: ", reply.answer.failure().message())
                                    : Warned("DATA_SET_UNSPECIFIED was taken for a data set");
}

absl::StatusOr<Outcome> EmptyWindow(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Window none = lab.Training(0);
  int failures = 0;
  for (const auto& request : {session->LossesRequest({theta}, none), session->GradientRequest(theta, none),
                              session->ProductRequest(theta, theta, none)}) {
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
    if (reply.answer.has_failure()) {
      ++failures;
      continue;
    }
    const v1::Answer& a = reply.answer;
    double size = std::abs(a.losses().weight()) + std::abs(a.gradient().weight()) + std::abs(a.product().weight()) +
                  std::abs(a.gradient().loss_sum());
    for (const double loss : a.losses().loss_sums()) size += std::abs(loss);
    for (const auto& [transfer, vector] : reply.vectors) size += vector.norm();
    if (size != 0) return Failed("a sum over no examples is not 0");
  }
  return Passed(failures == 0 ? "zeros" : "Failure");
}

absl::StatusOr<Outcome> BatchedLosses(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  std::vector<Point> points;
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const Vector other, lab.Theta(1));
  points.emplace_back(theta);
  for (const double c : {0.5, -0.25, 1e-3}) {
    points.emplace_back(theta, std::vector<std::pair<double, Vector>>{{c * lab.step(), lab.Direction(2)}});
  }
  points.emplace_back(other);
  points.emplace_back(theta);
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer together, session->Losses(points, lab.Training()));
  std::set<double> values;
  for (size_t i = 0; i < points.size(); ++i) {
    HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer alone, session->Losses({points[i]}, lab.Training()));
    if (alone.loss_sums(0) != together.loss_sums(i)) {
      return Failed("point ", i, " of ", points.size(), ": ", together.loss_sums(i), " in company, ",
                    alone.loss_sums(0), " alone");
    }
    if (alone.weight() != together.weight()) return Failed("weight ", together.weight(), ", alone ", alone.weight());
    std::map<std::string, double> metrics;
    for (const v1::MetricSums& m : alone.metrics()) metrics[m.name()] = m.sums(0);
    for (const v1::MetricSums& m : together.metrics()) {
      if (!metrics.contains(m.name()) || metrics[m.name()] != m.sums(i)) {
        return Failed("metric ", m.name(), " of point ", i, " is ", m.sums(i), " in company and another alone");
      }
    }
    values.insert(together.loss_sums(i));
  }
  if (values.size() == 1) return Failed("the loss is ", *values.begin(), " at five different points");
  return Passed(points.size(), " points");
}

absl::StatusOr<Outcome> PointsAreSums(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector u = lab.Direction(3), v = lab.Direction(4), w = lab.Direction(5);
  const double s = lab.step();
  // Coefficients that binary fractions do not have, so that each rounding shows.
  const std::vector<std::vector<std::pair<double, Vector>>> sums = {{{s / 3, u}},
                                                                    {{-s / 7, v}, {s / 11, w}},
                                                                    {{s / 3, u}, {s / 3, u}},
                                                                    {{s / 9, u}, {-s / 5, v}, {s * 1e-5, w}},
                                                                    {{0, u}},
                                                                    {{-0.3, theta}}};
  const Window window = lab.Training();
  double worst = 0;
  std::string where;
  for (const auto& terms : sums) {
    Vector x = theta;
    for (const auto& [coefficient, vector] : terms) {  // term by term, in the element type
      if (lab.float64()) {
        const Vector term = coefficient * vector;
        x += term;
      } else {
        const Eigen::VectorXf term = static_cast<float>(coefficient) * vector.cast<float>();
        const Eigen::VectorXf sum = x.cast<float>() + term;
        x = sum.cast<double>();
      }
    }
    const Point sum(theta, terms);
    const auto note = [&](double error, const char* what) {
      if (error <= worst) return;
      worst = error;
      where = absl::StrCat(what, " at a point of ", terms.size(), " terms");
    };
    HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(sum, window));
    HFOPT_ASSIGN_OR_RETURN(const double expected_loss, session->Loss(x, window));
    note(std::abs(loss - expected_loss) / std::abs(expected_loss), "loss");
    HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session->Gradient(sum, window));
    HFOPT_ASSIGN_OR_RETURN(const GradientReply expected_gradient, session->Gradient(x, window));
    note((gradient.gradient - expected_gradient.gradient).norm() / expected_gradient.gradient.norm(), "gradient");
    HFOPT_ASSIGN_OR_RETURN(const ProductReply product, session->Product(sum, v, window));
    HFOPT_ASSIGN_OR_RETURN(const ProductReply expected_product, session->Product(x, v, window));
    note((product.product - expected_product.product).norm() / expected_product.product.norm(), "product");
  }
  if (worst == 0) return Passed(sums.size(), " points, the same bits as uploaded sums");
  if (worst < lab.limit(1e-12, 1e-4)) {
    return Failed(where, " is off by ", worst,
                  " of it: the sum is rounded otherwise than term by term in the element type "
                  "(a fused multiply-add, or another order)");
  }
  return Failed(where, " is off by ", worst, " of it: the point is not base + sum of coefficient * vector");
}

absl::StatusOr<Outcome> ResidentPoints(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  constexpr int kPoints = 5;
  const Vector v = lab.Direction(6);
  const Window windows[] = {lab.Training(), lab.Training(lab.options().examples / 2 + 1, 1)};
  std::vector<Vector> thetas;
  std::vector<ProductReply> first;
  std::vector<GradientReply> gradients;
  for (int k = 0; k < kPoints; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    thetas.push_back(theta);
    // Nothing else is kept by the worker while the first answers are made.
    for (const Window& window : windows) {
      session->ReleaseResidents();
      HFOPT_ASSIGN_OR_RETURN(ProductReply product, session->Product(theta, v, window));
      HFOPT_ASSIGN_OR_RETURN(GradientReply gradient, session->Gradient(theta, window));
      first.push_back(std::move(product));
      gradients.push_back(std::move(gradient));
    }
  }
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 2 * kPoints; ++i) {
      const int j = round == 0 ? 2 * kPoints - 1 - i : i;
      HFOPT_ASSIGN_OR_RETURN(const ProductReply product, session->Product(thetas[j / 2], v, windows[j % 2]));
      if (product.product != first[j].product) {
        return Failed("the product at point ", j / 2, " on window ", j % 2, " changed by ",
                      (product.product - first[j].product).norm() / first[j].product.norm(),
                      " of itself with other points at the worker: what is kept belongs to point and slice, both");
      }
      HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session->Gradient(thetas[j / 2], windows[j % 2]));
      if (gradient.gradient != gradients[j].gradient) {
        return Failed("the gradient at point ", j / 2, " on window ", j % 2,
                      " changed with other points at the worker");
      }
    }
  }
  bool all_equal = true;
  for (int k = 1; k < kPoints; ++k) all_equal = all_equal && gradients[2 * k].gradient == gradients[0].gradient;
  if (all_equal) return Failed("the gradient is the same at ", kPoints, " different points");
  return Passed(kPoints, " points by 2 windows, in three orders");
}

absl::StatusOr<Outcome> DuplicateIds(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  v1::EvaluationRequest request = session->GradientRequest(theta, lab.Training());
  const uint64_t id = session->Post(request);
  request.set_id(id);
  session->PostAs(request);
  HFOPT_RETURN_IF_ERROR(session->Await(id).status());
  session->PostAs(request);  // late, as after a broken stream
  // Whatever comes of them comes before the answer to the next; a different one is refused as it is read.
  HFOPT_RETURN_IF_ERROR(session->Loss(theta, lab.Training()).status());
  return Passed("answered once, or with the same bits");
}

absl::StatusOr<Outcome> Queue(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  constexpr int kRequests = 16;
  const Vector v = lab.Direction(7);
  std::vector<uint64_t> ids;
  for (int i = 0; i < kRequests; ++i) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(i % 2));
    ids.push_back(session->Post(i % 3 == 0   ? session->LossesRequest({theta}, lab.Training())
                                : i % 3 == 1 ? session->GradientRequest(theta, lab.Training())
                                             : session->ProductRequest(theta, v, lab.Training())));
  }
  for (int i = kRequests - 1; i >= 0; --i) {
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Await(ids[i]));
    if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  }
  return Passed(kRequests, " requests at once");
}

absl::StatusOr<Outcome> Cancel(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  constexpr int kRequests = 8;
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply expected, session->Gradient(theta, lab.Training()));
  std::vector<uint64_t> kept, cancelled;
  for (int i = 0; i < kRequests; ++i) {
    (i % 2 == 0 ? kept : cancelled).push_back(session->Post(session->GradientRequest(theta, lab.Training())));
  }
  cancelled.push_back(kept.back() + 1'000'000);  // that was never asked
  for (const uint64_t id : cancelled) {
    v1::SessionResponse message;
    message.mutable_cancel()->set_request_id(id);
    session->Send(message);
  }
  for (const uint64_t id : kept) {
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Await(id));
    if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
    if (reply.vectors.at(reply.answer.gradient().gradient_transfer()) != expected.gradient) {
      return Failed("the answer to a request beside cancelled ones changed");
    }
  }
  HFOPT_RETURN_IF_ERROR(session->Loss(theta, lab.Training()).status());
  return Passed(kept.size(), " requests answered, and of ", kRequests - kept.size(), " cancelled ones ",
                std::count_if(cancelled.begin(), cancelled.end(), [&](uint64_t id) {
                  return !session->pending().contains(id);
                }) - 1);
}

absl::StatusOr<Outcome> Stale(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(2));
  const Window window = lab.Training();
  HFOPT_RETURN_IF_ERROR(session->Product(theta, lab.Direction(8), window).status());
  const v1::EvaluationRequest request = session->ProductRequest(theta, lab.Direction(8), window);
  session->ReleaseResidents();
  session->Release({session->NewName()});  // that was never there
  const absl::StatusOr<Reply> reply = session->Ask(request);
  if (reply.ok()) {
    if (!reply->answer.has_failure())
      return Failed("answered a request for vectors that were released: they are kept for ever");
    return Passed("Failure: ", reply->answer.failure().message());
  }
  if (session->wire().open()) return reply.status();
  HFOPT_ASSIGN_OR_RETURN(const std::string farewell, lab.AwaitFarewell(lab.TakeSession()));
  if (lab.worker().can_start() && lab.worker().AwaitExit(absl::ZeroDuration())) {
    return Failed(farewell, ": a request that came late is no reason to die");
  }
  return Passed(farewell);
}

absl::StatusOr<Outcome> ReleaseAndResend(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(2));
  const Vector v = lab.Direction(9);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply before, session->Product(theta, v, lab.Training()));
  for (int k = 0; k < 20; ++k) {  // vectors come and go; in other memory, perhaps
    HFOPT_RETURN_IF_ERROR(
        session->Loss(Vector(session->Rounded(theta + 0.1 * k * lab.step() * v)), lab.Training(2)).status());
    session->ReleaseResidents();
  }
  HFOPT_ASSIGN_OR_RETURN(const ProductReply after, session->Product(theta, v, lab.Training()));
  if (before.product != after.product)
    return Failed("a product changed after its vectors were released and sent again");
  return Passed("20 vectors released");
}

absl::StatusOr<Outcome> NonFiniteLoss(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  std::string text;
  for (const double size : {1e4, 1e19, 1e37}) {
    const v1::EvaluationRequest request =
        session->LossesRequest({theta, Point(theta, {{size, lab.Direction(10)}})}, lab.Training());
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
    if (reply.answer.has_failure()) {
      return Warned("Failure at a distance of ", size, ": ", reply.answer.failure().message(),
                    "; an infinite loss would reject the step, this ends the run");
    }
    absl::StrAppend(&text, text.empty() ? "" : ", ", reply.answer.losses().loss_sums(1), " at a distance of ", size);
    HFOPT_ASSIGN_OR_RETURN(const double alone, session->Loss(theta, lab.Training()));
    if (reply.answer.losses().loss_sums(0) != alone) return Failed("the loss at a point beside it changed");
  }
  return Passed(text);
}

}  // namespace

std::vector<Case> RequestCases() {
  return {{"requests/later-version", "fields and messages of a later version are ignored", LaterVersion},
          {"requests/unknown-kind", "a kind of request that it does not know is a Failure", UnknownKind},
          {"requests/bad-windows", "windows that do not exist are a Failure", BadWindows},
          {"requests/unspecified-data-set", "a window of no data set is a Failure", UnspecifiedDataSet},
          {"requests/empty-window", "sums over no examples are 0, or a Failure", EmptyWindow},
          {"requests/batched-losses", "several points in one request: the answers of each alone", BatchedLosses},
          {"requests/points-are-sums", "base + sum of coefficient * vector, term by term in the element type",
           PointsAreSums},
          {"requests/resident-points", "several points at once, each with its own answers", ResidentPoints},
          {"requests/duplicate-ids", "a second copy of a request is ignored, or answered the same", DuplicateIds},
          {"requests/queue", "many requests at once, each answered once", Queue},
          {"requests/cancel", "cancelled requests may be dropped, all others are answered", Cancel},
          {"requests/stale", "a request for vectors that were released: Failure, or another session; never an answer",
           Stale},
          {"requests/release-and-resend", "released vectors are forgotten, and can be sent again", ReleaseAndResend},
          {"requests/non-finite-loss", "a loss far away is an answer, also when it is infinite", NonFiniteLoss}};
}

}  // namespace hfopt::conformance
