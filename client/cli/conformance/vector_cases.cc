// How vectors travel to the worker: in any chunks, in any order, several at a time. And broken ones.

#include <algorithm>
#include <cmath>

#include "client/cli/conformance/case.h"
#include "client/models/status_macros.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::conformance {
namespace {

// More chunks than this only take time.
constexpr size_t kMostChunks = 3000;

// The loss at a vector that lies at the worker under this name.
v1::EvaluationRequest LossAt(Lab& lab, Dialogue& session, const std::string& name) {
  v1::EvaluationRequest request = session.LossesRequest({}, lab.Training());
  request.mutable_losses()->add_points()->set_base(name);
  return request;
}

// Whether a vector that went in a special way arrived whole: its loss has the bits of one that did not.
absl::StatusOr<Outcome> Compare(Lab& lab, Dialogue& session, const Vector& vector, const std::string& name,
                                const std::string& how) {
  HFOPT_ASSIGN_OR_RETURN(const double expected, session.Loss(vector, lab.Training()));
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, session.Ask(LossAt(lab, session, name)));
  session.Release({name});
  if (reply.answer.has_failure()) return Failed(how, ": ", reply.answer.failure().message());
  const double loss = reply.answer.losses().loss_sums(0);
  if (loss != expected) return Failed(how, ": the loss at it is ", loss, " instead of ", expected);
  return Passed(how);
}

absl::StatusOr<Outcome> InChunksOf(Lab& lab, size_t elements, bool backwards) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(1));
  const size_t n = session->num_parameters(), width = session->element_bytes();
  elements = std::max(elements, n / kMostChunks | 1);
  const std::string name = session->Upload(theta, {.chunk_bytes = elements * width, .backwards = backwards});
  return Compare(lab, *session, theta, name,
                 absl::StrCat((n + elements - 1) / elements, " chunks of ", elements * width, " bytes",
                              backwards ? ", the last first" : ""));
}

absl::StatusOr<Outcome> Interleaved(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  constexpr int kVectors = 3;
  const size_t n = session->num_parameters(), width = session->element_bytes();
  const size_t chunk = width * std::max<size_t>(1, n / 7);
  std::vector<Vector> vectors;
  std::vector<std::string> bytes, names;
  std::vector<uint64_t> transfers;
  for (int k = 0; k < kVectors; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    vectors.push_back(theta);
    bytes.push_back(session->Encode(theta));
    names.push_back(session->NewName());
    transfers.push_back(session->NewTransfer());
    session->Send(session->Header(transfers[k], names[k]));
  }
  for (size_t begin = 0; begin < n * width; begin += chunk) {
    for (int k = 0; k < kVectors; ++k) {
      session->Send(session->Chunk(transfers[k], bytes[k], begin, std::min(n * width, begin + chunk)));
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Outcome outcome,
                           Compare(lab, *session, vectors[k], names[k], absl::StrCat("vector ", k)));
    if (outcome.verdict != Verdict::kPassed) return outcome;
  }
  return Passed(kVectors, " vectors, chunk by chunk in turn");
}

absl::StatusOr<Outcome> NumberUsedAgain(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Dialogue* const session, lab.Session());
  const uint64_t transfer = session->NewTransfer();
  for (int k = 0; k < 2; ++k) {
    HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(k));
    const std::string bytes = session->Encode(theta), name = session->NewName();
    session->Send(session->Header(transfer, name));
    session->Send(session->Chunk(transfer, bytes, 0, std::min<size_t>(bytes.size(), 1 << 20)));
    for (size_t begin = 1 << 20; begin < bytes.size(); begin += 1 << 20) {
      session->Send(session->Chunk(transfer, bytes, begin, std::min<size_t>(bytes.size(), begin + (1 << 20))));
    }
    HFOPT_ASSIGN_OR_RETURN(const Outcome outcome, Compare(lab, *session, theta, name, absl::StrCat("vector ", k)));
    if (outcome.verdict != Verdict::kPassed) return outcome;
  }
  return Passed("a transfer's number, free again, for a second vector");
}

Vector RoundedToBfloat16(const Vector& vector) { return vector.cast<float>().cast<wire::Bfloat16>().cast<float>().cast<double>(); }

// A direction that comes, and a product that goes, in half the bytes: the rounded numbers of the product of the same direction sent whole.
absl::StatusOr<Outcome> Bfloat16(Lab& lab) {
  HFOPT_ASSIGN_OR_RETURN(Vector theta, lab.Theta(1));
  theta = theta.cast<float>().cast<double>();
  const Vector v = RoundedToBfloat16(lab.Direction(1));
  const Window window = lab.Training();

  lab.server().Describe(v1::ELEMENT_TYPE_FLOAT32, lab.shards());
  absl::StatusOr<std::unique_ptr<Dialogue>> session = lab.FreshHello();
  lab.server().Describe(lab.element_type(), lab.shards());
  HFOPT_RETURN_IF_ERROR(session.status());
  Dialogue& dialogue = **session;
  const auto& types = dialogue.hello().element_types();
  const bool float32 = std::find(types.begin(), types.end(), v1::ELEMENT_TYPE_FLOAT32) != types.end();
  if (!dialogue.hello().bfloat16() || !float32) {
    const bool promised = dialogue.hello().bfloat16();
    lab.worker().Kill();
    if (promised) return Failed("Hello has bfloat16, which is for runs of float32, but not float32 among its element types");
    return Skipped("the worker's Hello does not have bfloat16");
  }
  dialogue.Welcome(v1::ELEMENT_TYPE_FLOAT32, lab.shards(), absl::Hours(1));
  HFOPT_ASSIGN_OR_RETURN(const ProductReply whole, dialogue.Product(theta, v, window));
  v1::EvaluationRequest request = dialogue.ProductRequest(theta, v, window);
  request.mutable_product()->set_direction(dialogue.Upload(v, {.bfloat16 = true}));
  request.mutable_product()->set_bfloat16(true);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, dialogue.Ask(request));
  lab.worker().Kill();
  if (reply.answer.has_failure()) return Failed("answers a product in bfloat16 with Failure: ", reply.answer.failure().message());
  const uint64_t transfer = reply.answer.product().product_transfer();
  if (reply.types.at(transfer) != v1::ELEMENT_TYPE_BFLOAT16) return Failed("asked for a product in bfloat16, sends ", wire::ElementTypeName(reply.types.at(transfer)));
  const Vector& product = reply.vectors.at(transfer);
  const Vector expected = RoundedToBfloat16(whole.product);
  for (int64_t i = 0; i < product.size(); ++i) {
    if (product[i] == expected[i] || (std::isnan(product[i]) && std::isnan(expected[i]))) continue;
    return Failed("element ", i, " of the product is ", whole.product[i], ", which rounds to ", expected[i], " (to nearest, ties to even), not to ", product[i]);
  }
  return Passed(product.size(), " numbers, rounded as expected; they differ from the whole ones by ", (product - whole.product).norm() / whole.product.norm());
}

// Sends something that breaks the protocol; a request that uses the vector follows.
using Offence = std::function<void(Dialogue& session, const std::string& name, const std::string& bytes)>;

absl::StatusOr<Outcome> Offend(Lab& lab, const Offence& offence) {
  HFOPT_ASSIGN_OR_RETURN(const Vector theta, lab.Theta(1));
  HFOPT_RETURN_IF_ERROR(lab.Session().status());
  std::unique_ptr<Dialogue> session = lab.TakeSession();
  const std::string name = session->NewName();
  offence(*session, name, session->Encode(theta));
  const uint64_t id = session->Post(LossAt(lab, *session, name));
  HFOPT_ASSIGN_OR_RETURN(const std::string farewell, lab.AwaitFarewell(std::move(session), id));
  return Passed(farewell);
}

void BeyondTheEnd(Dialogue& session, const std::string& name, const std::string& bytes) {
  const uint64_t transfer = session.NewTransfer();
  session.Send(session.Header(transfer, name));
  v1::SessionResponse message = session.Chunk(transfer, bytes, 0, std::min<size_t>(bytes.size(), 1 << 16));
  message.mutable_vector_chunk()->set_offset(bytes.size() - message.vector_chunk().data().size() +
                                             session.element_bytes());
  session.Send(message);
}

// As many bytes as the vector has, but the first half of it twice.
void Overlap(Dialogue& session, const std::string& name, const std::string& bytes) {
  const uint64_t transfer = session.NewTransfer();
  const size_t half = session.num_parameters() / 2 * session.element_bytes();
  session.Send(session.Header(transfer, name));
  for (int time = 0; time < 2; ++time) {
    for (size_t begin = 0; begin < half; begin += 1 << 20) {
      session.Send(session.Chunk(transfer, bytes, begin, std::min<size_t>(half, begin + (1 << 20))));
    }
  }
  if (2 * half < bytes.size()) session.Send(session.Chunk(transfer, bytes, 2 * half, bytes.size()));
}

void UnknownTransfer(Dialogue& session, const std::string&, const std::string& bytes) {
  session.Send(session.Chunk(session.NewTransfer() + 1000, bytes, 0, std::min<size_t>(bytes.size(), 1 << 16)));
}

void WrongSize(Dialogue& session, const std::string& name, const std::string& bytes) {
  v1::SessionResponse header = session.Header(session.NewTransfer(), name);
  header.mutable_vector_header()->set_size(session.num_parameters() + 1);
  session.Send(header);
  const std::string longer = bytes + std::string(session.element_bytes(), '\0');
  for (size_t begin = 0; begin < longer.size(); begin += 1 << 20) {
    session.Send(session.Chunk(header.vector_header().transfer(), longer, begin,
                               std::min<size_t>(longer.size(), begin + (1 << 20))));
  }
}

void HugeSize(Dialogue& session, const std::string& name, const std::string&) {
  v1::SessionResponse header = session.Header(session.NewTransfer(), name);
  header.mutable_vector_header()->set_size(uint64_t{1} << 61);  // times 8 is nothing, in 64 bits
  session.Send(header);
}

void WrongType(Dialogue& session, const std::string& name, const std::string& bytes) {
  v1::SessionResponse header = session.Header(session.NewTransfer(), name);
  header.mutable_vector_header()->set_element_type(session.float64() ? v1::ELEMENT_TYPE_FLOAT32
                                                                     : v1::ELEMENT_TYPE_FLOAT64);
  session.Send(header);
  session.Send(session.Chunk(header.vector_header().transfer(), bytes, 0, std::min<size_t>(bytes.size(), 1 << 16)));
}

void Garbage(Dialogue& session, const std::string&, const std::string&) {
  session.wire().SendBytes("\xff\xff\xff\xff\xff\xff\xff\xff these are no SessionResponse");
}

}  // namespace

std::vector<Case> VectorCases() {
  std::vector<Case> cases = {
      {"vectors/one-element", "chunks of one element", [](Lab& lab) { return InChunksOf(lab, 1, false); }},
      {"vectors/odd-chunks", "chunks of odd size", [](Lab& lab) { return InChunksOf(lab, 7, false); }},
      {"vectors/out-of-order", "chunks in any order", [](Lab& lab) { return InChunksOf(lab, 13, true); }},
      {"vectors/interleaved", "chunks of several transfers in turn", Interleaved},
      {"vectors/number-used-again", "the number of a finished transfer is used again", NumberUsedAgain},
      {"vectors/bfloat16", "direction and product in bfloat16, where Hello has it", Bfloat16, true}};
  const struct {
    const char* name;
    const char* meaning;
    Offence offence;
  } offences[] = {
      {"broken/beyond-the-end", "ends the session, or itself with a message, on a chunk beyond the vector's end",
       BeyondTheEnd},
      {"broken/overlap", "the same on a chunk that overlaps another one", Overlap},
      {"broken/unknown-transfer", "the same on a chunk without a header", UnknownTransfer},
      {"broken/wrong-size", "the same on a vector that has not num_parameters elements", WrongSize},
      {"broken/huge-size", "the same on a vector of 2^61 elements, without asking for the memory", HugeSize},
      {"broken/wrong-type", "the same on a vector of another element type", WrongType},
      {"broken/garbage", "the same on bytes that are no message", Garbage}};
  for (const auto& o : offences) {
    cases.push_back({o.name, o.meaning, [offence = o.offence](Lab& lab) { return Offend(lab, offence); }, true});
  }
  return cases;
}

}  // namespace hfopt::conformance
