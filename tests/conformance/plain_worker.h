#ifndef HFOPT_TESTS_CONFORMANCE_PLAIN_WORKER_H_
#define HFOPT_TESTS_CONFORMANCE_PLAIN_WORKER_H_

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "client/cpp/evaluator.h"
#include "grpcpp/client_context.h"
#include "hfopt/v1/evaluation_service.grpc.pb.h"
#include "proto/wire/status.h"
#include "proto/wire/vector_codec.h"
#include "tests/conformance/thread_worker.h"

namespace hfopt::conformance {

// What is wrong with a worker's conversation.
enum class Misconduct {
  kNone,
  kOtherVersion,
  kBadWorkerId,
  kConstantIncarnation,
  kIncarnationOfTheSession,
  kSpeaksBeforeWelcome,
  kDialsAfterARefusal,
  kGivesUpWhenUnavailable,
  kNeverRenews,
  kRenewsBetweenEvaluationsOnly,
  kIgnoresOffsets,
  kMixesTransfers,
  kTakesOverlaps,
  kStatesHalfVectors,
  kNeverForgets,
  kPromisesLostAnswers,
  kAnswersBeforeTheVector,
  kAnswersASecondCopyOtherwise,
  kDiesOfUnknownMessages,
  kFailsAtFinished,
  kLeavesWithoutDrain,
  kDropsTheAnswerWhenDrained,
  kWritesInItsReader,
  kCutsMetrics,
  kTakesAnyWindow,
  kTakesTheFirstTermOnly,
  kTakesTheFirstPointOnly,
  kRoundsShardsUp,
  kSharesATransferNumber,
  kSendsFloat32,
  kPromisesBfloat16,
};

// A worker on the plain stub, one thread reads and computes, one writes and renews
// the lease.
class PlainWorker final : public Service {
 public:
  PlainWorker(std::unique_ptr<client::Model<double>> model, const std::string& address, const std::string& run_id,
              const std::string& worker_id, Misconduct misconduct)
      : model_(std::move(model)),
        misconduct_(misconduct),
        stub_(v1::EvaluationService::NewStub(client::MakeChannel(address))),
        evaluator_(*model_, {}, 16) {
    identity_.set_protocol_version(Is(Misconduct::kOtherVersion) ? 3 : 1);
    identity_.set_worker_id(Is(Misconduct::kBadWorkerId) ? "My Worker" : worker_id);
    identity_.set_incarnation(Is(Misconduct::kConstantIncarnation) ? 1 : absl::ToUnixNanos(absl::Now()));
    identity_.set_run_id(run_id);
    identity_.set_num_parameters(model_->num_parameters());
    identity_.set_training_examples(model_->num_examples(client::DataSet::kTraining));
    identity_.set_held_out_examples(model_->num_examples(client::DataSet::kHeldOut));
    identity_.add_element_types(v1::ELEMENT_TYPE_FLOAT64);
    identity_.set_second_moment(true);
    identity_.set_sub_batches(true);
    identity_.set_initial_parameters(true);
    identity_.set_bfloat16(Is(Misconduct::kPromisesBfloat16));
  }

  absl::Status Run() override;
  void Stop() override;
  void StopAtOnce() override;

 private:
  using Stream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;
  struct Session {
    grpc::ClientContext context;
    std::unique_ptr<Stream> stream;
  };

  bool Is(Misconduct misconduct) const { return misconduct_ == misconduct; }
  v1::Hello Hello() const;
  // OK when Finished has come.
  absl::Status Serve();
  absl::Status Handle(v1::SessionResponse& message);
  absl::Status HandleChunk(const v1::VectorChunk& chunk);
  void HandleEvaluation(v1::EvaluationRequest request);
  void Send(v1::SessionRequest message);
  void SendVector(uint64_t transfer, const wire::SharedVector<double>& vector);
  void Write();

  const std::unique_ptr<client::Model<double>> model_;
  const Misconduct misconduct_;
  const std::unique_ptr<v1::EvaluationService::Stub> stub_;
  client::Evaluator<double> evaluator_;
  v1::Hello identity_;
  std::map<std::string, wire::SharedVector<double>> vectors_;
  struct Transfer {
    std::string name;
    std::vector<double> numbers;
    std::vector<bool> there;
    size_t received = 0;
  };
  std::map<uint64_t, Transfer> transfers_;
  std::set<std::string> half_;
  std::set<uint64_t> seen_;
  double lease_ = 3600;

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<v1::SessionRequest> outbox_;
  Session* session_ = nullptr;
  bool computing_ = false, stopping_ = false, at_once_ = false, over_ = false, finished_ = false, welcomed_ = false;
};

}  // namespace hfopt::conformance

#endif  // HFOPT_TESTS_CONFORMANCE_PLAIN_WORKER_H_
