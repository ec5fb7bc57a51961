#include "client/cli/conformance/dialogue.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/models/status_macros.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::conformance {
namespace {

template <typename... Parts>
absl::Status Wrong(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat("the worker ", parts...));
}

// Never the same twice, also not in another run of the suite with the same worker.
uint64_t NextNumber() {
  static std::atomic<uint64_t> next(absl::ToUnixNanos(absl::Now()));
  return next++;
}

const char* KindName(v1::EvaluationRequest::KindCase kind) {
  switch (kind) {
    case v1::EvaluationRequest::kLosses:
      return "losses";
    case v1::EvaluationRequest::kGradient:
      return "gradient";
    case v1::EvaluationRequest::kProduct:
      return "product";
    case v1::EvaluationRequest::kInitialParameters:
      return "initial_parameters";
    case v1::EvaluationRequest::KIND_NOT_SET:
      break;
  }
  return "of no known kind";
}

absl::Status ModelFailure(const v1::EvaluationRequest& request, const v1::Answer& answer) {
  return absl::InternalError(absl::StrCat("the worker answered a request (", KindName(request.kind_case()),
                                          ") with Failure ", answer.failure().code(), ": ",
                                          answer.failure().message()));
}

size_t Fingerprint(const v1::Answer& answer, const std::map<uint64_t, Vector>& vectors) {
  v1::Answer result = answer;
  result.clear_compute_seconds();
  std::string bytes;
  const auto append = [&](uint64_t transfer) {
    if (const auto v = vectors.find(transfer); v != vectors.end()) {
      bytes.append(reinterpret_cast<const char*>(v->second.data()), v->second.size() * sizeof(double));
    }
  };
  // A second answer may use other transfers.
  if (result.has_gradient()) {
    append(result.gradient().gradient_transfer());
    append(result.gradient().second_moment_transfer());
    result.mutable_gradient()->set_gradient_transfer(0);
    result.mutable_gradient()->clear_second_moment_transfer();
  } else if (result.has_product()) {
    append(result.product().product_transfer());
    result.mutable_product()->set_product_transfer(0);
  } else if (result.has_initial_parameters()) {
    append(result.initial_parameters().parameters_transfer());
    result.mutable_initial_parameters()->set_parameters_transfer(0);
  }
  return std::hash<std::string>()(bytes + result.SerializeAsString());
}

}  // namespace

void Dialogue::Welcome(v1::ElementType element_type, int shards, absl::Duration lease) {
  welcome_.set_protocol_version(1);
  welcome_.set_element_type(element_type);
  welcome_.set_shards(shards);
  welcome_.set_lease_seconds(absl::ToDoubleSeconds(lease));
  v1::SessionResponse message;
  *message.mutable_welcome() = welcome_;
  Send(message);
  ForgetSilence();
}

void Dialogue::ForgetSilence() {
  last_heard_ = absl::Now();
  longest_silence_ = absl::ZeroDuration();
}

// ---------------------------------------------------------------------------------------------------------------
// vectors sent

Vector Dialogue::Rounded(const Vector& vector) const {
  return float64() ? vector : Vector(vector.cast<float>().cast<double>());
}

std::string Dialogue::Encode(const Vector& vector) const {
  if (float64()) return std::string(reinterpret_cast<const char*>(vector.data()), vector.size() * sizeof(double));
  const Eigen::VectorXf narrow = vector.cast<float>();
  return std::string(reinterpret_cast<const char*>(narrow.data()), narrow.size() * sizeof(float));
}

std::string Dialogue::EncodeBfloat16(const Vector& vector) {
  const wire::Vector<wire::Bfloat16> halves = vector.cast<float>().cast<wire::Bfloat16>();
  return std::string(reinterpret_cast<const char*>(halves.data()), halves.size() * sizeof(wire::Bfloat16));
}

std::string Dialogue::NewName() {
  std::string name(16, '\0');
  const uint64_t number = NextNumber();
  std::memcpy(name.data(), "conform-", 8);
  std::memcpy(name.data() + 8, &number, sizeof number);
  return name;
}

v1::SessionResponse Dialogue::Header(uint64_t transfer, const std::string& name) const {
  v1::SessionResponse message;
  *message.mutable_vector_header() = wire::MakeHeader(transfer, name, num_parameters(), welcome_.element_type());
  return message;
}

v1::SessionResponse Dialogue::Chunk(uint64_t transfer, const std::string& bytes, size_t begin, size_t end) const {
  v1::SessionResponse message;
  message.mutable_vector_chunk()->set_transfer(transfer);
  message.mutable_vector_chunk()->set_offset(begin);
  message.mutable_vector_chunk()->set_data(bytes.substr(begin, end - begin));
  return message;
}

std::string Dialogue::Upload(const Vector& vector, const Cut& cut) {
  const std::string name = NewName(), bytes = cut.bfloat16 ? EncodeBfloat16(vector) : Encode(vector);
  const uint64_t transfer = NewTransfer();
  v1::SessionResponse header = Header(transfer, name);
  if (cut.bfloat16) header.mutable_vector_header()->set_element_type(v1::ELEMENT_TYPE_BFLOAT16);
  Send(header);
  const size_t chunks = (bytes.size() + cut.chunk_bytes - 1) / cut.chunk_bytes;
  for (size_t i = 0; i < chunks; ++i) {
    const size_t begin = (cut.backwards ? chunks - 1 - i : i) * cut.chunk_bytes;
    Send(Chunk(transfer, bytes, begin, std::min(bytes.size(), begin + cut.chunk_bytes)));
  }
  return name;
}

std::string Dialogue::Resident(const Vector& vector) {
  const std::string name = float64() ? wire::ContentName<double>(vector)
                                     : wire::ContentName<float>(wire::Vector<float>(vector.cast<float>()));
  if (!resident_.insert(name).second) return name;
  const std::string bytes = Encode(vector);
  const uint64_t transfer = NewTransfer();
  Send(Header(transfer, name));
  for (size_t begin = 0; begin < bytes.size(); begin += wire::kMaxChunkBytes) {
    Send(Chunk(transfer, bytes, begin, std::min(bytes.size(), begin + wire::kMaxChunkBytes)));
  }
  return name;
}

void Dialogue::Release(const std::vector<std::string>& names) {
  v1::SessionResponse message;
  for (const std::string& name : names) message.mutable_release()->add_vectors(name);
  Send(message);
}

void Dialogue::ReleaseResidents() {
  if (!resident_.empty()) Release({resident_.begin(), resident_.end()});
  resident_.clear();
}

// -------------------------------------------------------------------------------------------------------------------
// questions

void Dialogue::Fill(const Window& window, v1::EvaluationRequest& request) const {
  v1::Slice& slice = *request.mutable_slice();
  slice.set_data_set(window.held_out ? v1::DATA_SET_HELD_OUT : v1::DATA_SET_TRAINING);
  slice.set_shard(window.shard);
  slice.set_shards(window.shards);
  slice.set_begin(window.begin);
  slice.set_count(window.count);
}

void Dialogue::Fill(const Point& point, v1::Point& message) {
  message.set_base(Resident(point.base));
  for (const auto& [coefficient, vector] : point.terms) {
    v1::Term& term = *message.add_terms();
    term.set_coefficient(coefficient);
    term.set_vector(Resident(vector));
  }
}

v1::EvaluationRequest Dialogue::LossesRequest(const std::vector<Point>& points, const Window& window) {
  v1::EvaluationRequest request;
  Fill(window, request);
  for (const Point& point : points) Fill(point, *request.mutable_losses()->add_points());
  return request;
}

v1::EvaluationRequest Dialogue::GradientRequest(const Point& point, const Window& window, uint32_t sub_batches,
                                                bool second_moment) {
  v1::EvaluationRequest request;
  Fill(window, request);
  Fill(point, *request.mutable_gradient()->mutable_point());
  request.mutable_gradient()->set_sub_batches(sub_batches);
  request.mutable_gradient()->set_second_moment(second_moment);
  return request;
}

v1::EvaluationRequest Dialogue::ProductRequest(const Point& point, const Vector& direction, const Window& window) {
  v1::EvaluationRequest request;
  Fill(window, request);
  Fill(point, *request.mutable_product()->mutable_point());
  request.mutable_product()->set_direction(Resident(direction));
  return request;
}

v1::EvaluationRequest Dialogue::InitialParametersRequest(uint64_t seed) {
  v1::EvaluationRequest request;
  request.mutable_initial_parameters()->set_seed(seed);
  return request;
}

uint64_t Dialogue::Post(v1::EvaluationRequest request) {
  request.set_id(NextNumber());
  PostAs(request);
  return request.id();
}

void Dialogue::PostAs(const v1::EvaluationRequest& request) {
  if (!fingerprints_.contains(request.id())) pending_[request.id()] = request;
  v1::SessionResponse message;
  *message.mutable_evaluation() = request;
  Send(message);
}

absl::StatusOr<Reply> Dialogue::Await(uint64_t id) {
  const absl::Time deadline = absl::Now() + timeout_;
  while (true) {
    if (const auto reply = arrived_.find(id); reply != arrived_.end()) {
      Reply result = std::move(reply->second);
      arrived_.erase(reply);
      return result;
    }
    const absl::StatusOr<v1::SessionRequest> message = Read(deadline);
    if (absl::IsDeadlineExceeded(message.status())) {
      return absl::DeadlineExceededError(
          absl::StrCat("no answer to a request (",
                       KindName(pending_.contains(id) ? pending_[id].kind_case() : v1::EvaluationRequest::KIND_NOT_SET),
                       ") after ", absl::FormatDuration(timeout_), "; a slow model needs a longer --timeout"));
    }
    if (absl::IsUnavailable(message.status())) {
      return Wrong("ended the session (", message.status().message(), ") while an answer was waited for");
    }
    HFOPT_RETURN_IF_ERROR(message.status());
  }
}

absl::StatusOr<v1::LossesAnswer> Dialogue::Losses(const std::vector<Point>& points, const Window& window) {
  const v1::EvaluationRequest request = LossesRequest(points, window);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, Ask(request));
  if (reply.answer.has_failure()) return ModelFailure(request, reply.answer);
  return reply.answer.losses();
}

absl::StatusOr<double> Dialogue::Loss(const Point& point, const Window& window) {
  HFOPT_ASSIGN_OR_RETURN(const v1::LossesAnswer answer, Losses({point}, window));
  return answer.loss_sums(0);
}

absl::StatusOr<GradientReply> Dialogue::Gradient(const Point& point, const Window& window, uint32_t sub_batches,
                                                 bool second_moment) {
  const v1::EvaluationRequest request = GradientRequest(point, window, sub_batches, second_moment);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, Ask(request));
  if (reply.answer.has_failure()) return ModelFailure(request, reply.answer);
  const v1::GradientAnswer& a = reply.answer.gradient();
  GradientReply result{.loss = a.loss_sum(), .weight = a.weight(), .gradient = reply.vectors.at(a.gradient_transfer())};
  if (second_moment) result.second_moment = reply.vectors.at(a.second_moment_transfer());
  for (const v1::SubBatch& part : a.sub_batches()) result.sub_batches.emplace_back(part.squared_norm(), part.weight());
  return result;
}

absl::StatusOr<ProductReply> Dialogue::Product(const Point& point, const Vector& direction, const Window& window) {
  const v1::EvaluationRequest request = ProductRequest(point, direction, window);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, Ask(request));
  if (reply.answer.has_failure()) return ModelFailure(request, reply.answer);
  const v1::ProductAnswer& a = reply.answer.product();
  return ProductReply{.weight = a.weight(), .product = reply.vectors.at(a.product_transfer())};
}

absl::StatusOr<Vector> Dialogue::InitialParameters(uint64_t seed) {
  const v1::EvaluationRequest request = InitialParametersRequest(seed);
  HFOPT_ASSIGN_OR_RETURN(const Reply reply, Ask(request));
  if (reply.answer.has_failure()) return ModelFailure(request, reply.answer);
  return reply.vectors.at(reply.answer.initial_parameters().parameters_transfer());
}

// -------------------------------------------------------------------------------------------------------- what the
// worker says

absl::StatusOr<v1::SessionRequest> Dialogue::Read(absl::Time deadline) {
  HFOPT_ASSIGN_OR_RETURN(v1::SessionRequest message, session_->Receive(deadline));
  const absl::Time now = absl::Now();
  longest_silence_ = std::max(longest_silence_, now - last_heard_);
  last_heard_ = now;
  HFOPT_RETURN_IF_ERROR(Check(message));
  return message;
}

absl::Status Dialogue::ReadUntil(absl::Time deadline) {
  while (true) {
    const absl::Status status = Read(deadline).status();
    if (absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status)) return absl::OkStatus();
    HFOPT_RETURN_IF_ERROR(status);
  }
}

absl::Status Dialogue::Check(const v1::SessionRequest& message) {
  if (welcome_.shards() == 0 && !message.has_lease_renewal())
    return Wrong("said more than Hello before Welcome had come");
  switch (message.message_case()) {
    case v1::SessionRequest::kHello:
      return Wrong("said Hello twice in one session");
    case v1::SessionRequest::kVectorHeader:
      return CheckHeader(message.vector_header());
    case v1::SessionRequest::kVectorChunk:
      return CheckChunk(message.vector_chunk());
    case v1::SessionRequest::kAnswer:
      return CheckAnswer(message.answer());
    case v1::SessionRequest::kSharedMemoryAttached:
      return Wrong("attached to shared memory that was not offered");
    case v1::SessionRequest::kDrain:
      said_drain_ = true;
      return absl::OkStatus();
    case v1::SessionRequest::kLeaseRenewal:
      return absl::OkStatus();
    case v1::SessionRequest::MESSAGE_NOT_SET:
      return Wrong("sent a message without content");
  }
  return absl::OkStatus();
}

absl::Status Dialogue::CheckHeader(const v1::VectorHeader& header) {
  if (header.size() != hello_.num_parameters()) {
    return Wrong("announced a vector of ", header.size(), " elements; its Hello says ", hello_.num_parameters());
  }
  const auto asks_for_bfloat16 = [](const auto& pending) { return pending.second.product().bfloat16(); };
  const bool halves = header.element_type() == v1::ELEMENT_TYPE_BFLOAT16 && std::any_of(pending_.begin(), pending_.end(), asks_for_bfloat16);
  if (header.element_type() != welcome_.element_type() && !halves) {
    return Wrong("announced a vector of ", wire::ElementTypeName(header.element_type()), "; Welcome says ",
                 wire::ElementTypeName(welcome_.element_type()));
  }
  if (!header.name().empty()) return Wrong("gave the vector of an answer a name; such vectors have a transfer only");
  if (header.has_slot()) return Wrong("handed over a slot of shared memory that was not offered");
  Incoming incoming{header.element_type(), Vector::Zero(num_parameters()), std::vector<bool>(num_parameters()), size_t(num_parameters())};
  if (!incoming_.emplace(header.transfer(), std::move(incoming)).second) {
    return Wrong("began transfer ", header.transfer(), " twice; numbers have to be unique among open transfers");
  }
  return absl::OkStatus();
}

absl::Status Dialogue::CheckChunk(const v1::VectorChunk& chunk) {
  const auto found = incoming_.find(chunk.transfer());
  if (found == incoming_.end()) return Wrong("sent a chunk of transfer ", chunk.transfer(), ", which is not open");
  Incoming& incoming = found->second;
  const size_t width = incoming.type == v1::ELEMENT_TYPE_BFLOAT16 ? sizeof(wire::Bfloat16) : element_bytes(), bytes = chunk.data().size();
  if (bytes == 0) return Wrong("sent a chunk without data");
  if (bytes > (4u << 20) - 1024) return Wrong("sent a chunk of ", bytes, " bytes; about 1 MiB is right");
  if (chunk.offset() % width != 0 || bytes % width != 0) {
    return Wrong("sent a chunk of ", bytes, " bytes at ", chunk.offset(), ", not whole elements of ", width, " bytes");
  }
  const size_t begin = chunk.offset() / width, count = bytes / width;
  if (begin > size_t(num_parameters()) || count > num_parameters() - begin) {
    return Wrong("sent a chunk to byte ", chunk.offset() + bytes, " of a vector of ", num_parameters() * width,
                 " bytes");
  }
  for (size_t i = 0; i < count; ++i) {
    if (incoming.there[begin + i])
      return Wrong("sent element ", begin + i, " of transfer ", chunk.transfer(), " twice");
    incoming.there[begin + i] = true;
    if (incoming.type == v1::ELEMENT_TYPE_BFLOAT16) {
      wire::Bfloat16 number;
      std::memcpy(&number, chunk.data().data() + i * width, width);
      incoming.numbers[begin + i] = static_cast<float>(number);
    } else if (float64()) {
      std::memcpy(&incoming.numbers[begin + i], chunk.data().data() + i * width, width);
    } else {
      float number;
      std::memcpy(&number, chunk.data().data() + i * width, width);
      incoming.numbers[begin + i] = number;
    }
  }
  incoming.missing -= count;
  return absl::OkStatus();
}

absl::Status Dialogue::CheckAnswer(const v1::Answer& answer) {
  const uint64_t id = answer.request_id();
  Reply reply{.answer = answer};
  for (auto& [transfer, incoming] : incoming_) {
    if (incoming.missing != 0) {
      return Wrong("sent an answer before its vectors: ", incoming.missing, " of ", num_parameters(),
                   " elements of transfer ", transfer, " are missing");
    }
    reply.vectors.emplace(transfer, std::move(incoming.numbers));
    reply.types.emplace(transfer, incoming.type);
  }
  incoming_.clear();
  const size_t fingerprint = Fingerprint(answer, reply.vectors);
  const auto request = pending_.find(id);
  if (request == pending_.end()) {
    const auto& promised = hello_.pending_requests();
    // Sent whole in an earlier session, as far as the worker knows; a server drops it by its id.
    if (std::find(promised.begin(), promised.end(), id) != promised.end()) return absl::OkStatus();
    const auto before = fingerprints_.find(id);
    if (before == fingerprints_.end()) return Wrong("answered request ", id, ", which was not asked");
    if (before->second != fingerprint) return Wrong("answered request ", id, " twice, and differently");
    return absl::OkStatus();
  }
  if (!answer.has_failure()) {
    HFOPT_RETURN_IF_ERROR(CheckResult(request->second, answer));
    const auto need = [&](uint64_t transfer) -> absl::Status {
      if (reply.vectors.contains(transfer)) return absl::OkStatus();
      return Wrong("sent an answer that names transfer ", transfer, ", which did not come before it");
    };
    if (answer.has_gradient()) HFOPT_RETURN_IF_ERROR(need(answer.gradient().gradient_transfer()));
    if (answer.gradient().has_second_moment_transfer()) {
      HFOPT_RETURN_IF_ERROR(need(answer.gradient().second_moment_transfer()));
    }
    if (answer.has_product()) HFOPT_RETURN_IF_ERROR(need(answer.product().product_transfer()));
    if (answer.has_initial_parameters()) {
      HFOPT_RETURN_IF_ERROR(need(answer.initial_parameters().parameters_transfer()));
    }
  }
  pending_.erase(request);
  fingerprints_[id] = fingerprint;
  arrived_[id] = std::move(reply);
  return absl::OkStatus();
}

absl::Status Dialogue::CheckResult(const v1::EvaluationRequest& request, const v1::Answer& answer) const {
  const char* const kind = KindName(request.kind_case());
  const auto wrong_kind = [&] { return Wrong("answered a request (", kind, ") with another kind of result"); };
  const auto check_weight = [&](double weight) -> absl::Status {
    if ((weight > 0 && std::isfinite(weight)) || request.slice().count() == 0) return absl::OkStatus();
    return Wrong("answered a request (", kind, ") with weight ", weight, "; it is the number of examples or frames");
  };
  switch (request.kind_case()) {
    case v1::EvaluationRequest::kLosses: {
      if (!answer.has_losses()) return wrong_kind();
      const int points = request.losses().points_size();
      if (answer.losses().loss_sums_size() != points) {
        return Wrong("answered ", answer.losses().loss_sums_size(), " loss sums for ", points, " points");
      }
      for (const v1::MetricSums& metric : answer.losses().metrics()) {
        if (metric.name().empty()) return Wrong("answered a metric without a name");
        if (metric.sums_size() != points) {
          return Wrong("answered ", metric.sums_size(), " sums of metric ", metric.name(), " for ", points, " points");
        }
      }
      return check_weight(answer.losses().weight());
    }
    case v1::EvaluationRequest::kGradient: {
      if (!answer.has_gradient()) return wrong_kind();
      const v1::GradientAnswer& a = answer.gradient();
      if (a.sub_batches_size() != static_cast<int>(request.gradient().sub_batches())) {
        return Wrong("answered ", a.sub_batches_size(), " sub-batches where ", request.gradient().sub_batches(),
                     " were asked for");
      }
      if (a.has_second_moment_transfer() != request.gradient().second_moment()) {
        return Wrong(a.has_second_moment_transfer() ? "answered a second moment that was not asked for"
                                                    : "left out the second moment that was asked for");
      }
      return check_weight(a.weight());
    }
    case v1::EvaluationRequest::kProduct:
      return answer.has_product() ? check_weight(answer.product().weight()) : wrong_kind();
    case v1::EvaluationRequest::kInitialParameters:
      return answer.has_initial_parameters() ? absl::OkStatus() : wrong_kind();
    case v1::EvaluationRequest::KIND_NOT_SET:
      return Wrong("answered a request of a kind that does not exist with a result");
  }
  return absl::OkStatus();
}

}  // namespace hfopt::conformance
