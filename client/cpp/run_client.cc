#include "client/cpp/run_client.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::client {
namespace {

using Clock = std::chrono::steady_clock;

// More than any machine can hold; guards the allocation.
constexpr uint64_t kMaxParameters = uint64_t{1} << 40;

std::string NameOf(const std::string& run_id) { return absl::StrCat("runs/", run_id); }

// One unary call: `method` of the stub.
template <typename Request, typename Response>
absl::StatusOr<Response> Call(v1::RunService::Stub& stub,
                              grpc::Status (v1::RunService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                           Response*),
                              const Request& request, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  Response response;
  if (grpc::Status status = (stub.*method)(&context, request, &response); !status.ok()) return wire::FromGrpc(status);
  return response;
}

// The same for the many calls that take a run's name and answer the run.
template <typename Request, typename Response>
absl::StatusOr<v1::Run> CallOnRun(v1::RunService::Stub& stub,
                                  grpc::Status (v1::RunService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                               Response*),
                                  const std::string& run_id, absl::Duration timeout) {
  Request request;
  request.set_name(NameOf(run_id));
  absl::StatusOr<Response> response = Call(stub, method, request, timeout);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_run());
}

std::string RandomRequestId() {
  std::random_device random;
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8));
}

bool IsOver(const v1::Run& run) { return run.state() == v1::RUN_STATE_ENDED || run.state() == v1::RUN_STATE_FAILED; }

// Whether a stream that ended so was broken rather than refused.
bool IsBroken(const absl::Status& status) {
  return status.ok() || absl::IsUnavailable(status) || absl::IsInternal(status) || absl::IsUnknown(status) ||
         absl::IsCancelled(status) || absl::IsAborted(status);
}

}  // namespace

RunClient::RunClient(std::shared_ptr<grpc::Channel> channel, RunClientOptions options)
    : channel_(std::move(channel)), stub_(v1::RunService::NewStub(channel_)), options_(options) {}

absl::StatusOr<v1::GetServerResponse> RunClient::GetServer() {
  return Call(*stub_, &v1::RunService::Stub::GetServer, v1::GetServerRequest(), options_.timeout);
}

absl::StatusOr<v1::Run> RunClient::Create(const std::string& run_id, const v1::RunOptions& options,
                                          std::string request_id) {
  v1::CreateRunRequest request;
  request.set_run_id(run_id);
  *request.mutable_options() = options;
  request.set_request_id(request_id.empty() ? RandomRequestId() : std::move(request_id));
  auto response = Call(*stub_, &v1::RunService::Stub::CreateRun, request, options_.timeout);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_run());
}

absl::StatusOr<v1::Run> RunClient::Get(const std::string& run_id) {
  return CallOnRun(*stub_, &v1::RunService::Stub::GetRun, run_id, options_.timeout);
}

absl::StatusOr<std::vector<v1::Run>> RunClient::List() {
  std::vector<v1::Run> runs;
  v1::ListRunsRequest request;
  do {
    auto page = Call(*stub_, &v1::RunService::Stub::ListRuns, request, options_.timeout);
    if (!page.ok()) return page.status();
    for (v1::Run& run : *page->mutable_runs()) runs.push_back(std::move(run));
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return runs;
}

absl::StatusOr<v1::Run> RunClient::Start(const std::string& run_id) {
  return CallOnRun(*stub_, &v1::RunService::Stub::StartRun, run_id, options_.timeout);
}

absl::StatusOr<v1::Run> RunClient::Pause(const std::string& run_id) {
  return CallOnRun(*stub_, &v1::RunService::Stub::PauseRun, run_id, options_.timeout);
}

absl::StatusOr<v1::Run> RunClient::Resume(const std::string& run_id) {
  return CallOnRun(*stub_, &v1::RunService::Stub::ResumeRun, run_id, options_.timeout);
}

absl::StatusOr<v1::Run> RunClient::Cancel(const std::string& run_id) {
  return CallOnRun(*stub_, &v1::RunService::Stub::CancelRun, run_id, options_.timeout);
}

absl::Status RunClient::Delete(const std::string& run_id) {
  v1::DeleteRunRequest request;
  request.set_name(NameOf(run_id));
  return Call(*stub_, &v1::RunService::Stub::DeleteRun, request, options_.timeout).status();
}

absl::StatusOr<v1::Run> RunClient::Watch(const std::string& run_id, uint64_t after_iteration,
                                         const WatchCallback& callback, std::stop_token stop) {
  absl::Duration backoff = options_.initial_backoff;
  std::optional<Clock::time_point> lost_since;  // since when no stream has brought anything
  while (!stop.stop_requested()) {
    v1::WatchRunRequest request;
    request.set_name(NameOf(run_id));
    request.set_after_iteration(after_iteration);
    grpc::ClientContext context;
    const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
    const auto stream = stub_->WatchRun(&context, request);

    bool go_on = true;
    v1::WatchRunResponse event;
    while (go_on && stream->Read(&event)) {
      lost_since.reset();
      backoff = options_.initial_backoff;
      if (event.has_iteration()) {
        if (event.iteration().iteration() <= after_iteration) continue;
        after_iteration = event.iteration().iteration();
      }
      go_on = callback(event) && !IsOver(event.run());
    }
    if (!go_on) context.TryCancel();
    const absl::Status status = wire::FromGrpc(stream->Finish());
    if (IsOver(event.run())) return event.run();
    if (!go_on || stop.stop_requested()) break;
    if (!IsBroken(status)) return status;
    const Clock::time_point now = Clock::now();
    if (!lost_since) lost_since = now;
    if (absl::FromChrono(now - *lost_since) > options_.give_up_after) {
      return absl::UnavailableError(absl::StrCat("run ", run_id, ": gave up watching, nothing heard for ",
                                                 absl::FormatDuration(options_.give_up_after),
                                                 "; the last error: ", status.message()));
    }
    PauseBeforeRetry(*channel_, backoff, [&] { return stop.stop_requested(); });
    backoff = std::min(options_.max_backoff, backoff * 2);
  }
  return absl::CancelledError(absl::StrCat("stopped watching run ", run_id));
}

template <typename Scalar>
absl::StatusOr<v1::Run> RunClient::UploadParameters(const std::string& run_id, const Vector<Scalar>& theta) {
  grpc::ClientContext context;
  v1::UploadParametersResponse response;
  const auto stream = stub_->UploadParameters(&context, &response);
  v1::UploadParametersRequest message;
  message.mutable_header()->set_name(NameOf(run_id));
  message.mutable_header()->set_size(theta.size());
  message.mutable_header()->set_element_type(wire::ElementTypeOf<Scalar>());
  bool open = stream->Write(message);  // once it fails, Finish says why
  v1::VectorChunk* chunk = message.mutable_chunk();
  for (uint64_t offset = 0; const size_t bytes = open ? wire::FillChunk(theta, offset, 0, chunk, wire::kSlowLinkChunkBytes) : 0; offset += bytes) {
    open = stream->Write(message);
  }
  stream->WritesDone();
  if (grpc::Status status = stream->Finish(); !status.ok()) return wire::FromGrpc(status);
  return std::move(*response.mutable_run());
}

template <typename Scalar>
absl::StatusOr<Parameters<Scalar>> RunClient::DownloadBest(const std::string& run_id) {
  v1::DownloadParametersRequest request;
  request.set_name(NameOf(run_id));
  request.set_version(v1::DownloadParametersRequest::VERSION_BEST);
  return Download<Scalar>(request);
}

template <typename Scalar>
absl::StatusOr<Parameters<Scalar>> RunClient::DownloadLast(const std::string& run_id) {
  v1::DownloadParametersRequest request;
  request.set_name(NameOf(run_id));
  request.set_version(v1::DownloadParametersRequest::VERSION_LAST);
  return Download<Scalar>(request);
}

template <typename Scalar>
absl::StatusOr<Parameters<Scalar>> RunClient::DownloadAt(const std::string& run_id, uint64_t iteration) {
  v1::DownloadParametersRequest request;
  request.set_name(NameOf(run_id));
  request.set_iteration(iteration);
  return Download<Scalar>(request);
}

template <typename Scalar>
absl::StatusOr<Parameters<Scalar>> RunClient::Download(const v1::DownloadParametersRequest& request) {
  grpc::ClientContext context;
  const auto stream = stub_->DownloadParameters(&context, request);
  // Ends the call for a reason of ours.
  const auto give_up = [&](absl::StatusCode code, absl::string_view why) {
    context.TryCancel();
    stream->Finish();
    return absl::Status(code, absl::StrCat(request.name(), ": ", why));
  };

  v1::DownloadParametersResponse message;
  if (!stream->Read(&message)) {
    const absl::Status status = wire::FromGrpc(stream->Finish());
    return status.ok() ? absl::DataLossError(absl::StrCat(request.name(), ": the server sent no parameters")) : status;
  }
  if (!message.has_header()) return give_up(absl::StatusCode::kDataLoss, "the server sent chunks before the header");
  const v1::DownloadParametersHeader header = message.header();
  if (header.element_type() != wire::ElementTypeOf<Scalar>()) {
    return give_up(absl::StatusCode::kFailedPrecondition,
                   absl::StrCat("the run uses ", wire::ElementTypeName(header.element_type()), ", asked for as ",
                                wire::ElementTypeName(wire::ElementTypeOf<Scalar>())));
  }
  if (header.size() > kMaxParameters) {
    return give_up(absl::StatusCode::kDataLoss, absl::StrCat("the server announced ", header.size(), " parameters"));
  }
  auto assembler = wire::VectorAssembler<Scalar>::Create(
      wire::MakeHeader(/*transfer=*/0, "", header.size(), header.element_type()), header.size());
  if (!assembler.ok()) return give_up(assembler.status().code(), assembler.status().message());
  while (stream->Read(&message)) {
    if (auto s = assembler->Add(message.chunk()); !s.ok()) return give_up(absl::StatusCode::kDataLoss, s.message());
  }
  if (grpc::Status status = stream->Finish(); !status.ok()) return wire::FromGrpc(status);
  if (auto s = assembler->CheckComplete(); !s.ok()) {
    return absl::DataLossError(absl::StrCat(request.name(), ": ", s.message()));
  }
  return Parameters<Scalar>{(*std::move(assembler)).Take().map(), header.iteration(), header.held_out_loss()};
}

template absl::StatusOr<v1::Run> RunClient::UploadParameters(const std::string&, const Vector<float>&);
template absl::StatusOr<v1::Run> RunClient::UploadParameters(const std::string&, const Vector<double>&);
template absl::StatusOr<Parameters<float>> RunClient::DownloadBest(const std::string&);
template absl::StatusOr<Parameters<double>> RunClient::DownloadBest(const std::string&);
template absl::StatusOr<Parameters<float>> RunClient::DownloadLast(const std::string&);
template absl::StatusOr<Parameters<double>> RunClient::DownloadLast(const std::string&);
template absl::StatusOr<Parameters<float>> RunClient::DownloadAt(const std::string&, uint64_t);
template absl::StatusOr<Parameters<double>> RunClient::DownloadAt(const std::string&, uint64_t);

}  // namespace hfopt::client
