// Equal questions, equal bits: twice, in another order, in another session, of another process.

#include <string>
#include <vector>

#include "client/cli/conformance/case.h"
#include "client/cli/conformance/numbers.h"
#include "client/models/status_macros.h"

namespace hfopt::conformance {
namespace {

// Of all kinds.
struct Answers {
  std::vector<double> losses;
  GradientReply gradient, with_parts;
  ProductReply product, other_product;
};

absl::StatusOr<Answers> AskAll(Lab& lab, Dialogue& session, bool backwards) {
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(0));
  HFOPT_ASSIGN_OR_RETURN(const Vector other, lab.Theta(1));
  const Window window = lab.Training(lab.options().examples, 1);
  Answers answers;
  const bool second_moment = session.hello().second_moment();
  const uint32_t parts = session.hello().sub_batches() ? std::min<uint64_t>(2, window.count) : 0;
  for (int i = 0; i < 5; ++i) {
    switch (backwards ? 4 - i : i) {
      case 0: {
        HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer losses, session.Losses({theta, other}, window));
        answers.losses.assign(losses.loss_sums().begin(), losses.loss_sums().end());
        break;
      }
      case 1: {
        HFOPT_ASSIGN_OR_RETURN(answers.gradient, session.Gradient(theta, window));
        break;
      }
      case 2: {
        HFOPT_ASSIGN_OR_RETURN(answers.with_parts, session.Gradient(other, window, parts, second_moment));
        break;
      }
      case 3: {
        HFOPT_ASSIGN_OR_RETURN(answers.product, session.Product(theta, lab.Direction(100), window));
        break;
      }
      case 4: {
        HFOPT_ASSIGN_OR_RETURN(answers.other_product, session.Product(other, lab.Direction(101), window));
        break;
      }
    }
  }
  return answers;
}

// What differs; empty where nothing does.
std::string Difference(const Answers& a, const Answers& b) {
  const auto vector = [](const char* what, const Vector& x, const Vector& y) {
    return x == y ? "" : absl::StrCat("the ", what, " differs by ", RelativeDifference(x, y), " of itself");
  };
  if (a.losses != b.losses) return absl::StrCat("a loss is ", a.losses[0], " and then ", b.losses[0]);
  if (a.gradient.loss != b.gradient.loss) return "the loss beside the gradient differs";
  std::string text = vector("gradient", a.gradient.gradient, b.gradient.gradient);
  if (text.empty()) text = vector("gradient by parts", a.with_parts.gradient, b.with_parts.gradient);
  if (text.empty()) text = vector("second moment", a.with_parts.second_moment, b.with_parts.second_moment);
  if (text.empty() && a.with_parts.sub_batches != b.with_parts.sub_batches) text = "the sub-batches differ";
  if (text.empty()) text = vector("product", a.product.product, b.product.product);
  if (text.empty()) text = vector("product at another point", a.other_product.product, b.other_product.product);
  return text;
}

constexpr char kCauses[] = ": dropout, running averages, sums in changing order, or something kept from before";

absl::StatusOr<Outcome> Twice(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Answers first, AskAll(lab, *session, false));
  HFOPT_ASSIGN_OR_RETURN(const Answers second, AskAll(lab, *session, false));
  const std::string difference = Difference(first, second);
  return difference.empty() ? Passed("the same bits") : Failed(difference, kCauses);
}

absl::StatusOr<Outcome> InAnotherOrder(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Answers first, AskAll(lab, *session, false));
  session->ReleaseResidents();
  HFOPT_ASSIGN_OR_RETURN(const Answers second, AskAll(lab, *session, true));
  const std::string difference = Difference(first, second);
  return difference.empty() ? Passed("the same bits") : Failed(difference, kCauses);
}

absl::StatusOr<Outcome> InAnotherSession(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue * session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Answers first, AskAll(lab, *session, false));
  session->wire().Break();
  lab.HangUp();
  HFOPT_ASSIGN_OR_RETURN(session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Answers second, AskAll(lab, *session, true));
  const std::string difference = Difference(first, second);
  return difference.empty() ? Passed("the same bits") : Failed(difference, kCauses);
}

absl::StatusOr<Outcome> OfAnotherProcess(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Answers first, AskAll(lab, *session, false));
  HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> fresh, lab.FreshHello());
  lab.Welcome(*fresh);
  HFOPT_ASSIGN_OR_RETURN(const Answers second, AskAll(lab, *fresh, true));
  std::string difference = Difference(first, second);
  if (difference.empty() && fresh->hello().initial_parameters()) {
    HFOPT_ASSIGN_OR_RETURN(const Vector a, fresh->InitialParameters(lab.options().seed));
    lab.KeepSession(std::move(fresh));
    HFOPT_ASSIGN_OR_RETURN(std::unique_ptr<Dialogue> another, lab.FreshHello());
    lab.Welcome(*another);
    HFOPT_ASSIGN_OR_RETURN(const Vector b, another->InitialParameters(lab.options().seed));
    lab.KeepSession(std::move(another));
    if (a != b) difference = "the initial parameters of one seed differ";
  } else {
    lab.KeepSession(std::move(fresh));
  }
  return difference.empty() ? Passed("the same bits")
                            : Failed(difference, ": a request that moves to another worker changes the result");
}

}  // namespace

std::vector<Case> DeterminismCases() {
  return {
      {"determinism/twice", "asked twice: the same bits", Twice},
      {"determinism/another-order", "asked in another order, after everything was released: the same bits",
       InAnotherOrder},
      {"determinism/another-session", "asked after the stream broke: the same bits", InAnotherSession},
      {"determinism/another-process", "asked of another process of the worker: the same bits", OfAnotherProcess, true}};
}

}  // namespace hfopt::conformance
