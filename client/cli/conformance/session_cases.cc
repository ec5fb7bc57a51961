// Leases, flow control, streams that break in the middle of something, and the end.

#include <algorithm>
#include <cmath>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

std::string Ms(absl::Duration d) { return absl::StrCat(absl::ToInt64Milliseconds(d), " ms"); }

// The session in use is ended, so that the next one can have another lease.
absl::StatusOr<std::unique_ptr<Dialogue>> WithLease(Lab& lab, absl::Duration lease) {
  HFOPT_RETURN_IF_ERROR(lab.Theta(0).status());
  HFOPT_RETURN_IF_ERROR(lab.Session().status());
  absl::StatusOr<std::unique_ptr<Dialogue>> next;
  if (lab.worker().can_start()) {
    next = lab.FreshHello();
  } else {
    lab.TakeSession()->wire().Close(absl::UnavailableError("conformance: dial again"));
    next = lab.NextHello();
  }
  if (next.ok()) lab.Welcome(**next, lease);
  return next;
}

Outcome JudgeSilence(const Dialogue& session, absl::Duration lease, const std::string& what) {
  const absl::Duration silence = session.LongestSilence();
  const std::string text = absl::StrCat("at most ", Ms(silence), " of silence in a lease of ", Ms(lease), ", ", what);
  if (silence > lease) return Failed(text, ": the worker would lose its shards");
  // A third of the lease is due; a busy machine may take as long again.
  return silence > 0.8 * lease ? Warned(text, ": a third of it is due") : Passed(text);
}

// Losses at one point, again and again, that take about so long; as many as go into a message of 64 KiB, at most.
absl::StatusOr<v1::EvaluationRequest> LongRequest(Lab& lab, Dialogue& session, absl::Duration duration) {
  constexpr double kMostPoints = 2500;
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  v1::EvaluationRequest request =
      session.LossesRequest({theta}, lab.Training(lab.ShardSize(false, lab.shard(), lab.shards())));
  const v1::Point point = request.losses().points(0);
  double points = 1;
  while (true) {
    while (request.losses().points_size() < points) *request.mutable_losses()->add_points() = point;
    const absl::Time begin = absl::Now();
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session.Ask(request));
    if (reply.answer.has_failure()) return absl::InternalError(reply.answer.failure().message());
    const absl::Duration taken = absl::Now() - begin;
    if (taken >= 0.8 * duration || points == kMostPoints) return request;
    // The first measurements are mostly overhead.
    points = std::clamp(std::ceil(points * absl::FDivDuration(duration, taken)), points + 1,
                        std::min(kMostPoints, 16 * points));
  }
}

// A machine that is busy with other things may be late: what fails in a short lease is tried in a longer one.
using InALease = absl::StatusOr<Outcome> (*)(Lab& lab, absl::Duration lease);
absl::StatusOr<Outcome> TryLeases(Lab& lab, InALease one) {
  HFOPT_ASSIGN_OR_RETURN(const Outcome outcome, one(lab, lab.options().lease));
  if (outcome.verdict != Verdict::kFailed) return outcome;
  HFOPT_ASSIGN_OR_RETURN(const Outcome again, one(lab, 3 * lab.options().lease));
  return again.verdict == Verdict::kSkipped ? outcome : again;
}

absl::StatusOr<Outcome> LeaseWhileIdle(Lab& lab, absl::Duration lease) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, WithLease(lab, lease));
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + 2 * lease));
  if (!session->wire().open()) return Failed("the worker left while nothing was asked");
  return JudgeSilence(*session, lease, "with nothing to do");
}

absl::StatusOr<Outcome> LeaseWhileComputing(Lab& lab, absl::Duration lease) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, WithLease(lab, lease));
  HFOPT_ASSIGN_OR_RETURN(const v1::EvaluationRequest request, LongRequest(lab, *session, 2 * lease));
  session->ForgetSilence();
  const absl::Time asked = absl::Now();
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  const absl::Duration taken = absl::Now() - asked;
  if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  const Outcome outcome = JudgeSilence(*session, lease, absl::StrCat("in an evaluation of ", Ms(taken)));
  if (taken < lease && outcome.verdict != Verdict::kFailed) {
    return Skipped("the model is too fast for this: ", request.losses().points_size(), " losses over a shard take ",
                   Ms(taken));
  }
  return outcome;
}

absl::StatusOr<Outcome> SlowSending(Lab& lab, absl::Duration lease) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, WithLease(lab, lease));
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(1));
  const std::string bytes = session->Encode(theta), name = session->NewName();
  const uint64_t transfer = session->NewTransfer();
  constexpr size_t kPieces = 12;
  const size_t width = session->element_bytes(), n = session->num_parameters();
  session->Send(session->Header(transfer, name));
  for (size_t piece = 0; piece < kPieces; ++piece) {
    for (size_t at = piece * n / kPieces * width, end = (piece + 1) * n / kPieces * width; at < end;) {
      const size_t next = std::min(end, at + (1 << 20));
      session->Send(session->Chunk(transfer, bytes, at, next));
      at = next;
    }
    HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + 1.5 * lease / kPieces));
  }
  v1::EvaluationRequest request = session->LossesRequest({theta}, lab.Training());
  *request.mutable_losses()->add_points() = request.losses().points(0);
  request.mutable_losses()->mutable_points(1)->set_base(name);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  if (reply.answer.losses().loss_sums(0) != reply.answer.losses().loss_sums(1))
    return Failed("the vector came out wrong");
  return JudgeSilence(*session, lease, "while a vector came in slowly");
}

// So many that their vectors are more than gRPC and the system buffer, unless the model is tiny: 4 to 6 MiB were seen
// on one machine.
size_t RequestsToFillBuffers(const Dialogue& session) {
  constexpr size_t kBytes = 16 << 20, kMost = 850;
  return std::clamp<size_t>(kBytes / (session.num_parameters() * session.element_bytes()), 4, kMost);
}

// The server writes and does not read: a worker that does not read while it writes, and writes while it reads, waits
// for ever.
absl::StatusOr<Outcome> SlowReading(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(110);
  const Window few = lab.Training(2);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply expected, session->Product(theta, v, few));
  const size_t size = session->num_parameters() * session->element_bytes(), requests = RequestsToFillBuffers(*session);
  session->wire().PauseReading();
  std::vector<uint64_t> ids;
  std::vector<std::string> names;
  for (size_t i = 0; i < requests; ++i) {
    ids.push_back(session->Post(session->ProductRequest(theta, v, few)));
    names.push_back(session->Upload(v));
  }
  const bool sent = session->wire().AwaitSent(absl::Now() + session->timeout());
  session->wire().ResumeReading();
  if (!sent) return Failed("stopped reading while its own answers were not read: both sides would wait for ever");
  for (const uint64_t id : ids) {
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Await(id));
    if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
    if (reply.vectors.at(reply.answer.product().product_transfer()) != expected.product)
      return Failed("a product came out wrong");
  }
  session->Release(names);
  return Passed(requests, " products of ", size, " bytes, not read until as many vectors were sent");
}

// Answers that are computed and cannot be sent yet are cancelled: the one that is being sent, and the rest, must not
// suffer.
absl::StatusOr<Outcome> CancelUnsent(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Vector v = lab.Direction(112);
  const Window few = lab.Training(2);
  HFOPT_ASSIGN_OR_RETURN(const ProductReply expected, session->Product(theta, v, few));
  const size_t requests = RequestsToFillBuffers(*session);
  const v1::EvaluationRequest request = session->ProductRequest(theta, v, few);
  session->wire().PauseReading();
  std::vector<uint64_t> kept;
  v1::SessionResponse cancel;
  std::vector<v1::SessionResponse> cancels;
  for (size_t i = 0; i < requests; ++i) {
    const uint64_t id = session->Post(request);
    if (i % 2 == 0) {
      kept.push_back(id);
    } else {
      cancel.mutable_cancel()->set_request_id(id);
      cancels.push_back(cancel);
    }
  }
  // Time to compute them; how far it got changes nothing of what is right.
  session->wire().AwaitSent(absl::Now() + session->timeout());
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + lab.options().quiet));
  for (const v1::SessionResponse& message : cancels) session->Send(message);
  session->wire().AwaitSent(absl::Now() + session->timeout());
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + lab.options().quiet));
  session->wire().ResumeReading();
  for (const uint64_t id : kept) {
    HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Await(id));
    if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
    if (reply.vectors.at(reply.answer.product().product_transfer()) != expected.product)
      return Failed("a product came out wrong");
  }
  HFOPT_RETURN_IF_ERROR(session->Loss(theta, few).status());
  return Passed(cancels.size(), " of ", requests, " products cancelled, ",
                std::count_if(cancels.begin(), cancels.end(),
                              [&](const auto& c) { return session->pending().contains(c.cancel().request_id()); }),
                " of them before they were sent");
}

// --- Streams that break in the middle of something. What follows uses a session with a different Hello.

bool Holds(const v1::Hello& hello, const std::string& name) {
  return std::find(hello.held_vectors().begin(), hello.held_vectors().end(), name) != hello.held_vectors().end();
}
bool IsPending(const v1::Hello& hello, uint64_t id) {
  return std::find(hello.pending_requests().begin(), hello.pending_requests().end(), id) !=
         hello.pending_requests().end();
}

absl::StatusOr<std::unique_ptr<Dialogue>> Redial(Lab& lab, std::unique_ptr<Dialogue> broken) {
  broken->wire().Break();
  broken.reset();
  return lab.NextHello();
}

absl::StatusOr<Outcome> BreakInAnUpload(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const Vector other, lab.Theta(1));
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const first, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer expected, first->Losses({theta, other}, window));
  const std::string whole = first->Upload(theta), half = first->NewName(), bytes = first->Encode(other);
  const uint64_t transfer = first->NewTransfer();
  const size_t middle = first->num_parameters() / 2 * first->element_bytes();
  first->Send(first->Header(transfer, half));
  for (size_t begin = 0; begin < middle; begin += 1 << 20) {
    first->Send(first->Chunk(transfer, bytes, begin, std::min<size_t>(middle, begin + (1 << 20))));
  }
  // Once this is answered, all before it has arrived.
  HFOPT_RETURN_IF_ERROR(first->Loss(theta, lab.Training(1)).status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, Redial(lab, lab.TakeSession()));
  const v1::Hello hello = session->hello();
  if (Holds(hello, half)) return Failed("the worker states that it holds a vector of which it got the first half only");
  lab.Welcome(*session);
  const std::string base = Holds(hello, whole) ? whole : session->Upload(theta);
  // From its begin again, under the name it had, and the transfer's number.
  session->Send(session->Header(transfer, half));
  for (size_t begin = 0; begin < bytes.size(); begin += 1 << 20) {
    session->Send(session->Chunk(transfer, bytes, begin, std::min<size_t>(bytes.size(), begin + (1 << 20))));
  }
  v1::EvaluationRequest request = session->LossesRequest({}, window);
  request.mutable_losses()->add_points()->set_base(base);
  request.mutable_losses()->add_points()->set_base(half);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  for (int i = 0; i < 2; ++i) {
    if (reply.answer.losses().loss_sums(i) != expected.loss_sums(i)) {
      return Failed("the loss at the vector that was ", i == 0 ? "held" : "sent again", " is ",
                    reply.answer.losses().loss_sums(i), " instead of ", expected.loss_sums(i));
    }
  }
  session->Release({whole, base, half});
  lab.KeepSession(std::move(session));
  return Passed("the half vector was forgotten, the whole one ", Holds(hello, whole) ? "held" : "sent again");
}

absl::StatusOr<Outcome> HeldVectors(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(2));
  const Vector v = lab.Direction(111);
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const first, lab.Session());
  const std::string base = first->Upload(theta), direction = first->Upload(v), released = first->Upload(v);
  v1::EvaluationRequest request = first->LossesRequest({}, window);
  request.mutable_product()->mutable_point()->set_base(base);
  request.mutable_product()->set_direction(direction);
  HFOPT_ASSIGN_OR_RETURN(const Reply expected, first->Ask(request));
  if (expected.answer.has_failure()) return Failed("Failure: ", expected.answer.failure().message());
  first->Release({released});
  HFOPT_RETURN_IF_ERROR(first->Loss(theta, lab.Training(1)).status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, Redial(lab, lab.TakeSession()));
  const v1::Hello hello = session->hello();
  if (Holds(hello, released)) return Failed("the worker states that it holds a vector that was released");
  lab.Welcome(*session);
  int held = 0;
  for (auto* name :
       {request.mutable_product()->mutable_point()->mutable_base(), request.mutable_product()->mutable_direction()}) {
    const bool is_base = *name == base;
    if (Holds(hello, *name)) {
      ++held;
    } else {
      *name = session->Upload(is_base ? theta : v);
    }
  }
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session->Ask(request));
  if (reply.answer.has_failure()) return Failed("Failure: ", reply.answer.failure().message());
  const auto product = [](const Reply& r) { return r.vectors.at(r.answer.product().product_transfer()); };
  if (product(reply) != product(expected)) {
    return Failed("a product of vectors that the worker states to hold differs by ",
                  RelativeDifference(product(reply), product(expected)), " of itself");
  }
  session->Release({base, direction, request.product().point().base(), request.product().direction()});
  lab.KeepSession(std::move(session));
  return held == 2 ? Passed("both held over a broken stream")
                   : Passed(held, " of 2 vectors held over a broken stream; the others are sent again each time");
}

absl::StatusOr<Outcome> BreakInAnAnswer(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const first, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const GradientReply expected, first->Gradient(theta, window));
  const std::string name = first->Upload(theta);
  v1::EvaluationRequest request = first->LossesRequest({}, window);
  request.mutable_gradient()->mutable_point()->set_base(name);
  std::vector<v1::EvaluationRequest> requests;
  constexpr int kRequests = 3;
  for (int i = 0; i < kRequests; ++i) {
    requests.push_back(request);
    requests.back().set_id(first->Post(request));
  }
  // The first answer has begun when its vector has.
  const absl::Time deadline = absl::Now() + first->timeout();
  while (true) {
    HFOPT_ASSIGN_OR_RETURN(const v1::SessionRequest message, first->Read(deadline));
    if (message.has_vector_header()) break;
  }
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, Redial(lab, lab.TakeSession()));
  const v1::Hello hello = session->hello();
  lab.Welcome(*session);
  const std::string base = Holds(hello, name) ? name : session->Upload(theta);
  int pending = 0;
  for (v1::EvaluationRequest& r : requests) {
    r.mutable_gradient()->mutable_point()->set_base(base);
    if (IsPending(hello, r.id())) {
      ++pending;
      session->Expect(r);
    } else {
      session->PostAs(r);
    }
  }
  for (const v1::EvaluationRequest& r : requests) {
    const absl::StatusOr<Reply> reply = session->Await(r.id());
    if (!reply.ok()) {
      return Failed(IsPending(hello, r.id()) ? "Hello.pending_requests promised an answer: " : "asked again: ",
                    reply.status().message());
    }
    if (reply->answer.has_failure()) return Failed("Failure: ", reply->answer.failure().message());
    if (reply->vectors.at(reply->answer.gradient().gradient_transfer()) != expected.gradient)
      return Failed("the answer changed");
  }
  session->Release({name, base});
  lab.KeepSession(std::move(session));
  return Passed(kRequests, " answers, ", pending, " of them promised in Hello");
}

// --- The end.

absl::StatusOr<Outcome> AwaitGoodEnd(Lab& lab) {
  constexpr absl::Duration kPatience = absl::Seconds(15);
  const auto exit = lab.worker().AwaitExit(kPatience);
  if (!exit) {
    lab.worker().Kill();
    return Failed("still runs ", absl::FormatDuration(kPatience), " after its end");
  }
  if (exit->signal != 0 || exit->code != 0) return Failed("the worker ", Describe(*exit), "; 0 was due");
  return Passed("exit code 0");
}

void SendFinished(Dialogue& session) {
  v1::SessionResponse message;
  message.mutable_finished()->set_reason("CONVERGED");
  message.mutable_finished()->set_detail("conformance: the run has ended");
  session.Send(message);
}

absl::StatusOr<Outcome> Finished(Lab& lab, bool at_once) {
  HFOPT_RETURN_IF_ERROR(lab.Theta(0).status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.FreshHello());
  lab.Welcome(*session);
  if (!at_once) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
    HFOPT_RETURN_IF_ERROR(session->Gradient(theta, lab.Training()).status());
  }
  SendFinished(*session);
  session->wire().Close(absl::OkStatus());
  HFOPT_ASSIGN_OR_RETURN(const Outcome outcome, AwaitGoodEnd(lab));
  if (lab.Dials(absl::InfinitePast())) return Failed("dialled again after Finished");
  return outcome;
}

absl::StatusOr<Outcome> DrainWhileIdle(Lab& lab) {
  HFOPT_RETURN_IF_ERROR(lab.Theta(0).status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.FreshHello());
  lab.Welcome(*session);
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_RETURN_IF_ERROR(session->Loss(theta, lab.Training()).status());
  lab.worker().RequestStop();
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + absl::Seconds(10)));
  if (session->wire().open()) return Failed("keeps its half of the stream open 10 s after SIGTERM");
  session->wire().Close(absl::OkStatus());
  HFOPT_ASSIGN_OR_RETURN(const Outcome outcome, AwaitGoodEnd(lab));
  if (outcome.verdict == Verdict::kPassed && !session->said_drain()) {
    return Failed("left without Drain: the server takes it for lost, and waits for the lease");
  }
  return outcome;
}

absl::StatusOr<Outcome> DrainWhileComputing(Lab& lab) {
  HFOPT_RETURN_IF_ERROR(lab.Theta(0).status());
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.FreshHello());
  lab.Welcome(*session);
  HFOPT_ASSIGN_OR_RETURN(const v1::EvaluationRequest request, LongRequest(lab, *session, absl::Milliseconds(600)));
  const uint64_t id = session->Post(request);
  // A worker reads in the order of what was sent, but tells nobody when it begins to compute.
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + absl::Milliseconds(150)));
  const bool in_time = session->pending().contains(id);
  lab.worker().RequestStop();
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + session->timeout()));
  if (session->wire().open()) return Failed("keeps its half of the stream open after SIGTERM and its last answer");
  session->wire().Close(absl::OkStatus());
  HFOPT_ASSIGN_OR_RETURN(const Outcome outcome, AwaitGoodEnd(lab));
  if (outcome.verdict != Verdict::kPassed) return outcome;
  if (!session->said_drain()) return Failed("left without Drain");
  if (session->pending().contains(id)) return Failed("left without the answer that it was computing");
  return in_time ? outcome : Skipped("the model is too fast for this");
}

}  // namespace

std::vector<Case> SessionCases() {
  return {
      {"flow/slow-reading", "reads on while its answers are not read", SlowReading},
      {"flow/cancel-unsent", "answers that wait to be sent can be cancelled; all others are whole", CancelUnsent},
      {"reconnect/in-an-upload", "half a vector is forgotten when the stream breaks, and can be sent again",
       BreakInAnUpload},
      {"reconnect/held-vectors", "vectors that Hello states to be held are held, those released are not", HeldVectors},
      {"reconnect/in-an-answer", "answers cut off are sent again if Hello promised them, and computed again if not",
       BreakInAnAnswer},
      {"lease/idle", "renews its lease while it has nothing to do",
       [](Lab& lab) { return TryLeases(lab, LeaseWhileIdle); }},
      {"lease/computing", "renews its lease during a long evaluation",
       [](Lab& lab) { return TryLeases(lab, LeaseWhileComputing); }},
      {"lease/slow-sending", "renews its lease while a vector comes in slowly",
       [](Lab& lab) { return TryLeases(lab, SlowSending); }},
      {"end/finished", "Finished ends it with exit code 0", [](Lab& lab) { return Finished(lab, false); }, true},
      {"end/finished-at-once", "the same right after Welcome", [](Lab& lab) { return Finished(lab, true); }, true},
      {"end/drain-idle", "leaves on SIGTERM: Drain, the end of its half of the stream, exit code 0", DrainWhileIdle,
       true},
      {"end/drain-computing", "on SIGTERM the answer under way is still given", DrainWhileComputing, true}};
}

}  // namespace hfopt::conformance
