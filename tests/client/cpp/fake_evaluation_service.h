#ifndef HFOPT_TESTS_CLIENT_CPP_FAKE_EVALUATION_SERVICE_H_
#define HFOPT_TESTS_CLIENT_CPP_FAKE_EVALUATION_SERVICE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/cpp/channel.h"
#include "client/cpp/model.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/wire/shared_segment.h"
#include "proto/wire/vector_codec.h"
#include "tests/client/cpp/socket_address.h"

namespace hfopt::client {

// An answer as the server sees it.
template <typename Scalar>
struct Received {
  v1::Answer answer;
  std::map<uint64_t, Vector<Scalar>> vectors;  // by transfer
};

// The server's end of one session, with the moves of the protocol.
template <typename Scalar>
class ServerEnd {
 public:
  using Stream = grpc::ServerReaderWriter<v1::SessionResponse, v1::SessionRequest>;
  ServerEnd(grpc::ServerContext& context, Stream& stream) : context_(context), stream_(stream) {}

  // The next message; unset at the end of the worker's stream.
  v1::SessionRequest ReadAny() {
    v1::SessionRequest message;
    return stream_.Read(&message) ? message : v1::SessionRequest();
  }

  // The next message that is no lease renewal.
  v1::SessionRequest Read() {
    v1::SessionRequest message = ReadAny();
    while (message.has_lease_renewal()) message = ReadAny();
    return message;
  }

  void AwaitCancelled() {
    while (!context_.IsCancelled()) std::this_thread::yield();
  }

  // Reads the Hello and welcomes.
  v1::Hello Welcome(uint32_t shards = 1, double lease_seconds = 60) { return Welcome(shards, lease_seconds, {}); }

  // The same, with an offer of shared memory, which the worker must take. Vectors lie there from now on.
  v1::Hello WelcomeAndShare() {
    const v1::Hello hello = Welcome(1, 60, [this](const v1::Hello& from, v1::SharedMemory* memory) {
      EXPECT_EQ(from.host(), wire::HostName());
      const size_t bytes = from.num_parameters() * sizeof(Scalar);
      to_worker_ = wire::SharedSegment::Create(bytes, 8, wire::SharedSegment::Peer::kReads).value();
      to_server_ = wire::SharedSegment::Create(bytes, 8, wire::SharedSegment::Peer::kWrites).value();
      *memory->mutable_to_worker() = to_worker_->Describe();
      *memory->mutable_to_server() = to_server_->Describe();
    });
    EXPECT_TRUE(Read().has_shared_memory_attached());
    return hello;
  }

  using Offer = std::function<void(const v1::Hello& hello, v1::SharedMemory* memory)>;
  v1::Hello Welcome(uint32_t shards, double lease_seconds, const Offer& offer) {
    const v1::Hello hello = Read().hello();
    v1::SessionResponse message;
    if (offer) offer(hello, message.mutable_welcome()->mutable_shared_memory());
    message.mutable_welcome()->set_protocol_version(1);
    message.mutable_welcome()->set_element_type(wire::ElementTypeOf<Scalar>());
    message.mutable_welcome()->set_shards(shards);
    message.mutable_welcome()->set_lease_seconds(lease_seconds);
    stream_.Write(message);
    return hello;
  }

  bool Send(const v1::SessionResponse& message) { return stream_.Write(message); }

  void SendHeader(uint64_t transfer, const std::string& name, int64_t size) {
    v1::SessionResponse message;
    *message.mutable_vector_header() = wire::MakeHeader(transfer, name, size, wire::ElementTypeOf<Scalar>());
    Send(message);
  }

  // Sends elements [begin, end) as one chunk.
  void SendChunk(uint64_t transfer, const Vector<Scalar>& vector, int64_t begin, int64_t end) {
    v1::SessionResponse message;
    v1::VectorChunk& chunk = *message.mutable_vector_chunk();
    chunk.set_transfer(transfer);
    chunk.set_offset(begin * sizeof(Scalar));
    chunk.set_data(reinterpret_cast<const char*>(vector.data() + begin), (end - begin) * sizeof(Scalar));
    Send(message);
  }

  void SendVector(const std::string& name, const Vector<Scalar>& vector) {
    const uint64_t transfer = next_transfer_++;
    v1::SessionResponse message;
    if (to_worker_ != nullptr) {
      std::shared_ptr<void> slot = to_worker_->Acquire();
      std::copy(vector.begin(), vector.end(), static_cast<Scalar*>(slot.get()));
      *message.mutable_vector_header() = wire::MakeHeader(transfer, name, vector.size(), wire::ElementTypeOf<Scalar>());
      message.mutable_vector_header()->set_slot(*to_worker_->SlotOf(slot.get()));
      Send(message);
      slots_[name] = std::move(slot);
      return;
    }
    SendHeader(transfer, name, vector.size());
    for (uint64_t offset = 0;
         const size_t bytes = wire::FillChunk(vector, offset, transfer, message.mutable_vector_chunk());
         offset += bytes) {
      Send(message);
    }
  }

  std::shared_ptr<void> SlotOf(const std::string& name) const { return slots_.at(name); }

  // What a server may do with a slot once nobody waits for an answer any more.
  void Overwrite(const std::string& name, const Vector<Scalar>& vector) {
    std::copy(vector.begin(), vector.end(), static_cast<Scalar*>(slots_.at(name).get()));
  }

  void SendRequest(const v1::EvaluationRequest& request) {
    v1::SessionResponse message;
    *message.mutable_evaluation() = request;
    Send(message);
  }

  void SendCancel(uint64_t id) {
    v1::SessionResponse message;
    message.mutable_cancel()->set_request_id(id);
    Send(message);
  }

  void SendRelease(const std::string& name) {
    v1::SessionResponse message;
    message.mutable_release()->add_vectors(name);
    Send(message);
    slots_.erase(name);
  }

  // Says that the run has ended; the script then returns OK.
  grpc::Status Finish(const std::string& reason = "CONVERGED") {
    v1::SessionResponse message;
    message.mutable_finished()->set_reason(reason);
    Send(message);
    EXPECT_EQ(Read().message_case(), v1::SessionRequest::MESSAGE_NOT_SET) << "nothing more was asked for";
    return grpc::Status::OK;
  }

  // Reads vectors up to and with the next answer.
  Received<Scalar> ReadAnswer() {
    Received<Scalar> received;
    std::map<uint64_t, wire::VectorAssembler<Scalar>> open;
    while (true) {
      const v1::SessionRequest message = Read();
      if (message.has_vector_header()) {
        const v1::VectorHeader& header = message.vector_header();
        EXPECT_EQ(header.name(), "");
        if (header.has_slot()) {
          const std::shared_ptr<void> slot = to_server_->Take(header.slot()).value();
          received.vectors[header.transfer()] =
              Eigen::Map<const Vector<Scalar>>(static_cast<Scalar*>(slot.get()), header.size());
          continue;
        }
        open.emplace(header.transfer(), wire::VectorAssembler<Scalar>::Create(header, header.size()).value());
      } else if (message.has_vector_chunk()) {
        const auto transfer = open.find(message.vector_chunk().transfer());
        EXPECT_TRUE(transfer->second.Add(message.vector_chunk()).ok());
        if (!transfer->second.complete()) continue;
        received.vectors[transfer->first] = std::move(transfer->second).Take().map();
        open.erase(transfer);
      } else {
        EXPECT_TRUE(message.has_answer()) << message.ShortDebugString();
        EXPECT_TRUE(open.empty()) << "the answer names an unfinished vector";
        received.answer = message.answer();
        return received;
      }
    }
  }

 private:
  grpc::ServerContext& context_;
  Stream& stream_;
  uint64_t next_transfer_ = 1;
  std::shared_ptr<wire::SharedSegment> to_worker_, to_server_;
  std::map<std::string, std::shared_ptr<void>> slots_;  // by the name of the vector that lies there
};

// Plays the i-th script to the i-th session; the scripts are the server's side of the test. Sessions beyond the last
// script are refused for good.
template <typename Scalar>
class FakeEvaluationService : public v1::EvaluationService::Service {
 public:
  using Script = std::function<grpc::Status(ServerEnd<Scalar>&)>;

  explicit FakeEvaluationService(std::vector<Script> scripts) : scripts_(std::move(scripts)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    // Nothing is received ahead of the script's reads but a few KiB.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeEvaluationService() override { server_->Shutdown(); }

  grpc::Status Session(grpc::ServerContext* context, typename ServerEnd<Scalar>::Stream* stream) override {
    const size_t i = sessions_++;
    if (i >= scripts_.size()) return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no script for this session");
    ServerEnd<Scalar> end(*context, *stream);
    return scripts_[i](end);
  }

  std::shared_ptr<grpc::Channel> channel() { return MakeChannel(address_); }
  int sessions() const { return sessions_; }

 private:
  const std::vector<Script> scripts_;
  const std::string address_ = SocketAddress();
  std::atomic<int> sessions_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hfopt::client

#endif  // HFOPT_TESTS_CLIENT_CPP_FAKE_EVALUATION_SERVICE_H_
