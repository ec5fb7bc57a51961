#ifndef HFOPT_CLIENT_CPP_RUN_CLIENT_H_
#define HFOPT_CLIENT_CPP_RUN_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/channel.h"
#include "client/cpp/model.h"
#include "hfopt/v1/run_service.grpc.pb.h"

namespace hfopt::client {

struct RunClientOptions {
  // Deadline of each call that answers at once; transfers of parameters and Watch have none.
  absl::Duration timeout = absl::Seconds(30);
  // Watch: pauses between attempts to reach the server, and when to give up.
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(5);
  absl::Duration give_up_after = absl::Minutes(10);
};

// Parameters of a run after some iteration.
template <typename Scalar>
struct Parameters {
  Vector<Scalar> theta;
  uint64_t iteration = 0;
  double held_out_loss = 0;
};

// RunService with types: what people and programs do with runs. Runs are named by their id ("an4", not "runs/an4").
// Every function blocks and answers the server's Status when it refuses; UNAVAILABLE when there is no server;
// DEADLINE_EXCEEDED. Thread-safe.
class RunClient {
 public:
  // Called with each report and each change of state; false leaves.
  using WatchCallback = std::function<bool(const v1::WatchRunResponse&)>;

  explicit RunClient(std::shared_ptr<grpc::Channel> channel, RunClientOptions options = {});

  // What the server is, and who this client is to it.
  absl::StatusOr<v1::GetServerResponse> GetServer();

  // Answers the run with every option filled in. ALREADY_EXISTS when there is one of this id with other options.
  // `request_id` is for callers that repeat the call after a failure: any text unique to this creation; empty: a random
  // one.
  absl::StatusOr<v1::Run> Create(const std::string& run_id, const v1::RunOptions& options, std::string request_id = "");
  absl::StatusOr<v1::Run> Get(const std::string& run_id);
  absl::StatusOr<std::vector<v1::Run>> List();  // all of them, by name
  absl::StatusOr<v1::Run> Start(const std::string& run_id);
  absl::StatusOr<v1::Run> Pause(const std::string& run_id);
  absl::StatusOr<v1::Run> Resume(const std::string& run_id);
  absl::StatusOr<v1::Run> Cancel(const std::string& run_id);
  absl::Status Delete(const std::string& run_id);

  // Follows the run until it has ended or failed, and answers it as it then is. Each iteration after `after_iteration`
  // is reported once, in order, also across broken streams and restarts of the server. CANCELLED when the callback or
  // `stop` asked to leave; the run is not affected.
  absl::StatusOr<v1::Run> Watch(const std::string& run_id, uint64_t after_iteration, const WatchCallback& callback,
                                std::stop_token stop = {});

  // Sets the initial parameters of a run that has not started. Scalar must be the run's element type.
  template <typename Scalar>
  absl::StatusOr<v1::Run> UploadParameters(const std::string& run_id, const Vector<Scalar>& theta);

  // The best parameters (lowest held-out loss), the last ones, or those after a certain iteration if they are kept.
  // FAILED_PRECONDITION when the run's element type is not Scalar.
  template <typename Scalar>
  absl::StatusOr<Parameters<Scalar>> DownloadBest(const std::string& run_id);
  template <typename Scalar>
  absl::StatusOr<Parameters<Scalar>> DownloadLast(const std::string& run_id);
  template <typename Scalar>
  absl::StatusOr<Parameters<Scalar>> DownloadAt(const std::string& run_id, uint64_t iteration);

 private:
  template <typename Scalar>
  absl::StatusOr<Parameters<Scalar>> Download(const v1::DownloadParametersRequest& request);

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::RunService::Stub> stub_;
  const RunClientOptions options_;
};

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_RUN_CLIENT_H_
