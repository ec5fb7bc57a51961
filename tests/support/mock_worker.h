#ifndef HFOPT_TESTS_SUPPORT_MOCK_WORKER_H_
#define HFOPT_TESTS_SUPPORT_MOCK_WORKER_H_

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "client/cpp/channel.h"
#include "client/cpp/evaluator.h"
#include "grpcpp/client_context.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"

namespace hfopt::testing {

// A worker on the bare stub, whose manners a test decides. It answers as it should, with a real model, except where `misbehave` says
// otherwise. One stream, no reconnect, and a lease that is renewed only by what it sends.
class MockWorker {
 public:
  using Stream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;
  enum class Action {
    kAnswer,
    kAnswerTwice,
    kStaySilent,  // keeps the stream, never says anything again
    kDie,         // cuts the stream
  };
  // Called for each request with its number, from 0, and the right answer, which it may change.
  using Misbehave = std::function<Action(int number, client::Evaluated<float>& answer)>;

  MockWorker(std::unique_ptr<client::Model<float>> model, const std::string& address, v1::Hello hello,
             Misbehave misbehave)
      : model_(std::move(model)),
        evaluator_(*model_, {}, 16),
        misbehave_(std::move(misbehave)),
        channel_(client::MakeChannel(address)),
        stream_(v1::EvaluationService::NewStub(channel_)->Session(&context_)) {
    Complete(hello);
    v1::SessionRequest message;
    *message.mutable_hello() = std::move(hello);
    stream_->Write(message);
    thread_ = std::thread([this] { Serve(); });
  }
  ~MockWorker() {
    context_.TryCancel();
    thread_.join();
  }

  // Blocks until the server ends the session, and tells how.
  absl::Status AwaitEnd() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(+[](std::optional<absl::Status>* end) { return end->has_value(); }, &end_));
    return *end_;
  }

 private:
  void Complete(v1::Hello& hello) {
    if (hello.protocol_version() == 0) hello.set_protocol_version(1);
    if (hello.incarnation() == 0) hello.set_incarnation(1);
    if (hello.num_parameters() == 0) hello.set_num_parameters(model_->num_parameters());
    hello.set_training_examples(model_->num_examples(client::DataSet::kTraining));
    hello.set_held_out_examples(model_->num_examples(client::DataSet::kHeldOut));
    hello.add_element_types(v1::ELEMENT_TYPE_FLOAT32);
    hello.set_initial_parameters(true);
    hello.set_second_moment(model_->has_second_moment());
  }

  void Serve() {
    v1::SessionResponse message;
    std::optional<wire::VectorAssembler<float>> assembler;
    int number = 0;
    bool silent = false;
    while (stream_->Read(&message)) {
      if (message.has_vector_header()) {
        assembler.emplace(*wire::VectorAssembler<float>::Create(message.vector_header(), model_->num_parameters()));
      } else if (message.has_vector_chunk()) {
        (void)assembler->Add(message.vector_chunk());
        if (assembler->complete()) {
          const std::string name = assembler->name();
          vectors_[name] = std::move(*assembler).Take();
        }
      } else if (message.has_evaluation() && !silent) {
        client::Evaluated<float> evaluated = evaluator_.Evaluate({message.evaluation(), vectors_});
        const Action action = misbehave_(number++, evaluated);
        if (action == Action::kDie) {
          context_.TryCancel();
          break;
        }
        silent = action == Action::kStaySilent;
        if (!silent) Send(evaluated);
        if (action == Action::kAnswerTwice) Send(evaluated);
      }
    }
    stream_->WritesDone();
    const absl::Status end = wire::FromGrpc(stream_->Finish());
    absl::MutexLock lock(&mu_);
    end_ = end;
  }

  void Send(const client::Evaluated<float>& evaluated) {
    v1::SessionRequest message;
    for (const auto& [transfer, vector] : evaluated.vectors) {
      *message.mutable_vector_header() = wire::MakeHeader(transfer, "", vector.size(), v1::ELEMENT_TYPE_FLOAT32);
      stream_->Write(message);
      v1::VectorChunk* const chunk = message.mutable_vector_chunk();
      const client::Vector<float> numbers = vector.map();
      for (uint64_t offset = 0; const size_t bytes = wire::FillChunk(numbers, offset, transfer, chunk); offset += bytes) {
        stream_->Write(message);
      }
    }
    *message.mutable_answer() = evaluated.answer;
    stream_->Write(message);
  }

  std::unique_ptr<client::Model<float>> model_;
  client::Evaluator<float> evaluator_;
  Misbehave misbehave_;
  std::map<std::string, wire::SharedVector<float>> vectors_;
  grpc::ClientContext context_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Stream> stream_;
  absl::Mutex mu_;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace hfopt::testing

#endif  // HFOPT_TESTS_SUPPORT_MOCK_WORKER_H_
