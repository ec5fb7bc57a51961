// The smallest worker: least squares, one example for each parameter. Prints the error of a server that is not there.

#include <iostream>

#include "client/cpp/model_worker.h"
#include "client/cpp/run_client.h"
#include "quadratic.h"

int main() {
  Quadratic model;
  hc::ModelWorker<double> worker(model, {.channel = hc::MakeChannel("127.0.0.1:1"),
                                         .run_id = "quadratic",
                                         .worker_id = "w",
                                         .give_up_after = absl::ZeroDuration()});
  const absl::StatusOr<hc::Finished> finished = worker.Run();
  std::cout << finished.status() << "\n";
  return absl::IsUnavailable(finished.status()) ? 0 : 1;
}
