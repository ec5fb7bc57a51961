#ifndef HFOPT_CLIENT_CPP_MODEL_WORKER_H_
#define HFOPT_CLIENT_CPP_MODEL_WORKER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/channel.h"
#include "client/cpp/model.h"

namespace hfopt::client {

struct ModelWorkerOptions {
  std::shared_ptr<grpc::Channel> channel;  // MakeChannel("localhost:7447")
  std::string run_id;
  std::string worker_id;           // stable over restarts, one for each worker of a run: 1 to 63 of [a-z0-9-]
  uint64_t incarnation = 0;        // grows with every start of the process; 0: the time at which the worker is made
  std::set<uint32_t> shards;       // logical shards whose data the model has; empty: any
  size_t max_linearizations = 64;  // kept at once; each is as large as the model makes it

  // Whether vectors may be handed over in shared memory by a server on this machine.
  bool shared_memory = true;

  // Pauses between attempts to reach the server grow from the first to the second.
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(5);
  // Without a server, without the run on it, or without a session that lasts longer than max_backoff, for this long:
  // Run ends with an error.
  absl::Duration give_up_after = absl::Minutes(10);

  // Told, in one line for people, when a session begins, is lost or is tried again. Called from threads of the worker.
  std::function<void(const std::string&)> log;

  absl::Status Validate() const;
};

// Why Run ended: the name of the run's Termination.Reason, for example "CONVERGED", or kDrained.
struct Finished {
  std::string reason;
  std::string detail;
};
inline constexpr char kDrained[] = "DRAINED";

// Serves one run with a model: dials the server, answers its requests, and dials again whenever the session breaks,
// without losing vectors it holds or answers it computed. A worker in ten lines:
//
//     MyModel model(...);
//     ModelWorker<float> worker(
//         model, {.channel = MakeChannel("localhost:7447"), .run_id = "an4", .worker_id = "host-1"});
//     absl::StatusOr<Finished> finished = worker.Run();
//
// The trained parameters can then be had from RunClient.
template <typename Scalar>
class ModelWorker {
 public:
  // The model must outlive the worker.
  ModelWorker(Model<Scalar>& model, ModelWorkerOptions options);
  ~ModelWorker();

  // Blocks until the run ends or the worker has left after Stop. The model is called from the calling thread only; two
  // more threads speak with the server, so that a long computation is not taken for death. To be called once.
  //
  // A model's failure is an answer and does not end Run. Errors: INVALID_ARGUMENT for options or a model that cannot be
  // served; the server's Status when it refuses for good (another n, a newer incarnation, the run has ended, ...); the
  // last error, whatever its code, when give_up_after has passed without a session.
  absl::StatusOr<Finished> Run();

  // Leaves: the running computation is finished and answered, requests not yet begun are left to other workers, and Run
  // returns kDrained. A second call does not wait for the server any more. Neither interrupts the model. Does not
  // block; from any thread, also before Run, but not from within a signal handler.
  void Stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hfopt::client

#endif  // HFOPT_CLIENT_CPP_MODEL_WORKER_H_
