// Who dials, and what is said first.

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "client/cli/conformance/case.h"
#include "client/models/status_macros.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::conformance {
namespace {

absl::StatusOr<Outcome> Fields(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const v1::Hello& hello = session->hello();
  if (hello.protocol_version() != 1) {
    return Failed("protocol_version is ", hello.protocol_version(), "; 1 is all there is");
  }
  const std::string& id = hello.worker_id();
  if (id.empty() || id.size() > 63 ||
      id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") != std::string::npos) {
    return Failed("worker_id '", id, "' is not 1 to 63 of [a-z0-9-]");
  }
  if (hello.run_id() != lab.server().run_id()) {
    return Failed("run_id is '", hello.run_id(), "'; the worker was to join '", lab.server().run_id(), "'");
  }
  if (hello.incarnation() == 0) return Failed("incarnation is 0; it has to grow with every start, as the time does");
  if (hello.num_parameters() == 0) return Failed("num_parameters is 0");
  if (hello.training_examples() == 0) return Failed("training_examples is 0");
  std::set<int> types;
  std::string names;
  for (const int type : hello.element_types()) {
    const std::string name = wire::ElementTypeName(static_cast<v1::ElementType>(type));
    if (type != v1::ELEMENT_TYPE_FLOAT32 && type != v1::ELEMENT_TYPE_FLOAT64) return Failed("element_types has ", name);
    if (!types.insert(type).second) return Failed("element_types has ", name, " twice");
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  const std::string numbers = absl::StrCat(hello.num_parameters(), " parameters, ", hello.training_examples(), " + ",
                                           hello.held_out_examples(), " examples, ", names);
  if (!hello.held_vectors().empty() || !hello.pending_requests().empty()) {
    return Failed("the first Hello of a process states vectors or requests that it cannot have");
  }
  if (hello.held_out_examples() == 0) return Warned(numbers, ": without held-out examples no step can be judged");
  return Passed(numbers);
}

absl::StatusOr<Outcome> WaitsForWelcome(Lab& lab) {
  HFOPT_RETURN_IF_ERROR(lab.Session().status());
  std::unique_ptr<Dialogue> before = lab.TakeSession();
  before->wire().Close(absl::UnavailableError("conformance: dial again"));
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.NextHello());
  HFOPT_RETURN_IF_ERROR(session->ReadUntil(absl::Now() + lab.options().quiet));
  if (!session->wire().open()) return Failed("did not wait for Welcome, but ended the session");
  lab.Welcome(*session);
  lab.KeepSession(std::move(session));
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const welcomed, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_RETURN_IF_ERROR(welcomed->Loss(theta, lab.Training(1)).status());
  return Passed("silent for ", absl::FormatDuration(lab.options().quiet), ", then worked");
}

// What must not change while a process lives.
std::string Identity(const v1::Hello& hello) {
  v1::Hello identity = hello;
  identity.clear_held_vectors();
  identity.clear_pending_requests();
  return identity.SerializeAsString();
}

absl::StatusOr<Outcome> SameInRedial(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const v1::Hello first = session->hello();
  session->wire().Break();
  lab.HangUp();
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const again, lab.Session());
  if (again->hello().incarnation() != first.incarnation()) {
    return Failed("incarnation ", first.incarnation(), " became ", again->hello().incarnation(),
                  " when the stream broke; it names the process, not the session");
  }
  if (Identity(again->hello()) != Identity(first)) return Failed("Hello changed when the stream broke");
  return Passed("incarnation ", first.incarnation());
}

absl::StatusOr<Outcome> GrowsInRestart(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  v1::Hello first = session->hello();
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> fresh, lab.FreshHello());
  v1::Hello second = fresh->hello();
  lab.Welcome(*fresh);
  lab.KeepSession(std::move(fresh));
  if (second.incarnation() <= first.incarnation()) {
    return Failed("a restarted worker has incarnation ", second.incarnation(), ", before ", first.incarnation(),
                  "; the server would take it for an old process and refuse it");
  }
  if (!second.held_vectors().empty()) return Failed("a restarted worker states vectors that it cannot have");
  first.clear_incarnation();
  second.clear_incarnation();
  if (Identity(first) != Identity(second))
    return Failed("Hello of a restarted worker differs in more than incarnation");
  return Passed(first.worker_id(), " kept its name");
}

absl::StatusOr<Outcome> DialsAgain(Lab& lab) {
  HFOPT_RETURN_IF_ERROR(lab.Session().status());
  std::unique_ptr<Dialogue> session = lab.TakeSession();
  const uint64_t incarnation = session->hello().incarnation();
  const struct {
    const char* how;
    std::function<void(WireSession&)> end;
  } ends[] = {
      {"UNAVAILABLE", [](WireSession& s) { s.Close(absl::UnavailableError("conformance: the server drains")); }},
      {"NOT_FOUND", [](WireSession& s) { s.Close(absl::NotFoundError("conformance: no such run yet")); }},
      {"a broken stream", [](WireSession& s) { s.Break(); }},
      {"an end without Finished", [](WireSession& s) { s.Close(absl::OkStatus()); }},
      {"UNAVAILABLE", [](WireSession& s) { s.Close(absl::UnavailableError("conformance: the server drains")); }}};
  std::vector<double> pauses;
  std::string text;
  for (const auto& end : ends) {
    const absl::Time begin = absl::Now();
    end.end(session->wire());
    absl::StatusOr<std::unique_ptr<Dialogue>> next = lab.NextHello();
    if (!next.ok()) return Failed("after ", end.how, ": ", next.status().message());
    pauses.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    session = *std::move(next);
    if (session->hello().incarnation() != incarnation) return Failed("another incarnation after ", end.how);
    absl::StrAppend(&text, text.empty() ? "pauses of " : ", ",
                    absl::FormatDuration(absl::Milliseconds(std::lround(1e3 * pauses.back()))));
  }
  lab.HangUp();
  lab.worker().Kill();  // it would pause long before the next session
  constexpr double kBusy = 0.005;
  if (*std::max_element(pauses.begin(), pauses.end()) < kBusy) return Failed("dials without a pause: ", text);
  return pauses.back() > pauses.front() ? Passed(text) : Warned(text, ": they do not grow");
}

// The codes after which a worker has to stop.
struct Refusal {
  absl::StatusCode code;
  const char* name;
  const char* message;
};
constexpr Refusal kRefusals[] = {
    {absl::StatusCode::kInvalidArgument, "invalid-argument",
     "Hello.protocol_version is 1; this server speaks 7: use a worker and a server of one release"},
    {absl::StatusCode::kFailedPrecondition, "failed-precondition", "a newer incarnation of this worker is here"},
    {absl::StatusCode::kResourceExhausted, "resource-exhausted", "the model does not fit into the server's memory"},
    {absl::StatusCode::kPermissionDenied, "permission-denied", "this worker may not join"},
    {absl::StatusCode::kUnauthenticated, "unauthenticated", "a token is missing"},
    {absl::StatusCode::kUnimplemented, "unimplemented", "this server has no workers"}};

absl::StatusOr<Outcome> StopsWhenRefused(Lab& lab, const Refusal& refusal) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.FreshHello());
  session->wire().Close(absl::Status(refusal.code, refusal.message));
  constexpr absl::Duration kPatience = absl::Seconds(15);
  const absl::Time deadline = absl::Now() + kPatience;
  while (absl::Now() < deadline) {
    if (lab.Dials(absl::InfinitePast())) return Failed("dialled again after a refusal, which no second try can mend");
    const auto exit = lab.worker().AwaitExit(absl::Milliseconds(20));
    if (!exit) continue;
    if (exit->signal != 0 || exit->code == 0) {
      return Failed("the worker ", Describe(*exit), "; it was to stop with a message and an exit code other than 0");
    }
    if (!absl::StrContains(exit->output, refusal.message)) {
      return Failed("the worker does not show the server's reason: it ", Describe(*exit));
    }
    return Passed("exit code ", exit->code, ", with the server's reason");
  }
  return Failed("still runs ", absl::FormatDuration(kPatience), " after a refusal");
}

absl::StatusOr<Outcome> ElementType(Lab& lab, v1::ElementType type) {
  const std::string name = wire::ElementTypeName(type);
  if (type == lab.element_type()) return Passed("the type of all other cases");
  HFOPT_ASSIGN_OR_RETURN(Dialogue * session, lab.Session());
  // Numbers that both types have.
  HFOPT_ASSIGN_OR_RETURN(Vector theta, lab.Theta(0));
  theta = theta.cast<float>().cast<double>();
  const Vector v = lab.Direction(1).cast<float>().cast<double>();
  const Window window = lab.Training();
  HFOPT_ASSIGN_OR_RETURN(const double loss, session->Loss(theta, window));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply gradient, session->Gradient(theta, window));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply product, session->Product(theta, v, window));

  lab.server().Describe(type, lab.shards());
  absl::StatusOr<std::unique_ptr<Dialogue>> other = lab.FreshHello();
  lab.server().Describe(lab.element_type(), lab.shards());
  HFOPT_RETURN_IF_ERROR(other.status());
  Dialogue& dialogue = **other;
  const auto& types = dialogue.hello().element_types();
  const bool offered = std::find(types.begin(), types.end(), type) != types.end();
  if (!offered) {
    lab.worker().Kill();
    return Skipped("the worker does not offer ", name);
  }
  dialogue.Welcome(type, lab.shards(), absl::Hours(1));
  HFOPT_ASSIGN_OR_RETURN(const double other_loss, dialogue.Loss(theta, window));
  HFOPT_ASSIGN_OR_RETURN(const GradientReply other_gradient, dialogue.Gradient(theta, window));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply other_product, dialogue.Product(theta, v, window));
  lab.worker().Kill();
  const double errors[] = {std::abs(other_loss - loss) / std::abs(loss),
                           (other_gradient.gradient - gradient.gradient).norm() / gradient.gradient.norm(),
                           (other_product.product - product.product).norm() / product.product.norm()};
  const std::string text = absl::StrCat("against ", wire::ElementTypeName(lab.element_type()), ": loss differs by ",
                                        errors[0], ", gradient by ", errors[1], ", product by ", errors[2]);
  constexpr double kLimit = 0.02;
  return *std::max_element(std::begin(errors), std::end(errors)) <= kLimit ? Passed(text) : Failed(text);
}

absl::StatusOr<Outcome> UnofferedElementType(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> session, lab.FreshHello());
  const auto& types = session->hello().element_types();
  v1::ElementType type = static_cast<v1::ElementType>(17);
  for (const v1::ElementType known : {v1::ELEMENT_TYPE_FLOAT32, v1::ELEMENT_TYPE_FLOAT64}) {
    if (std::find(types.begin(), types.end(), known) == types.end()) type = known;
  }
  session->Welcome(type, lab.shards(), absl::Hours(1));
  HFOPT_ASSIGN_OR_RETURN(const std::string farewell, lab.AwaitFarewell(std::move(session)));
  return Passed(wire::ElementTypeName(type), ": ", farewell);
}

}  // namespace

std::vector<Case> HelloCases() {
  std::vector<Case> cases = {
      {"hello/fields", "Hello states a version, ids, sizes and element types that make sense", Fields},
      {"hello/waits-for-welcome", "says nothing after Hello, a lease renewal apart, until Welcome comes",
       WaitsForWelcome},
      {"hello/same-in-redial", "a broken stream changes nothing of Hello but what is held", SameInRedial},
      {"hello/grows-in-restart", "a restarted worker keeps its id and has a higher incarnation", GrowsInRestart, true},
      {"hello/float32", "computes in float32 where Hello offers it",
       [](Lab& lab) { return ElementType(lab, v1::ELEMENT_TYPE_FLOAT32); }, true},
      {"hello/float64", "computes in float64 where Hello offers it",
       [](Lab& lab) { return ElementType(lab, v1::ELEMENT_TYPE_FLOAT64); }, true},
      {"hello/unoffered-type", "leaves with a message when Welcome asks for an element type that it did not offer",
       UnofferedElementType, true},
      {"dial/again", "dials again, after pauses that grow, when the run is not there or the stream breaks",
       DialsAgain}};
  for (const Refusal& refusal : kRefusals) {
    cases.push_back({absl::StrCat("dial/", refusal.name),
                     "a refusal is shown and ends the worker: dialling again cannot help",
                     [&refusal](Lab& lab) { return StopsWhenRefused(lab, refusal); }, true});
  }
  return cases;
}

}  // namespace hfopt::conformance
