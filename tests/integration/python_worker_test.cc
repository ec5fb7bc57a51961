// "Any language": a worker of the Python package shares a run with one of the C++ SDK.

#include <memory>
#include <string>

#include "client/models/model_factory.h"
#include "gtest/gtest.h"
#include "tests/support/local_objective.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

std::unique_ptr<client::Model<double>> MakeDigits() {
  return models::MakeModel<double>({.task = "digits", .data = HFOPT_DIGITS_DATA}).value();
}

v1::OptimizerOptions Options() {
  v1::OptimizerOptions options;
  options.set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  options.mutable_samples()->set_initial_gradient_examples(700);
  options.mutable_samples()->set_growth(v1::SampleOptions::GROWTH_VARIANCE);  // asks for sub-batches
  options.mutable_preconditioner()->set_diagonal(v1::PreconditionerOptions::DIAGONAL_SQUARED_GRADIENTS);
  options.mutable_stop()->set_max_iterations(4);
  return options;
}

TEST(PythonWorker, SharesARunWithACppWorker) {
  TestServer server;
  client::RunClient client = server.Client();
  v1::RunOptions options;
  options.set_shards(2);
  options.set_element_type(v1::ELEMENT_TYPE_FLOAT64);
  *options.mutable_optimizer() = Options();
  ASSERT_TRUE(client.Create("digits", options).ok());

  // Each has one of the two shards once the run begins.
  ASSERT_EQ(setenv("PYTHONPATH", HFOPT_PYTHON_PATH, 1), 0);
  Process python({HFOPT_PYTHON, HFOPT_PYTHON_WORKER, "--server", server.address(), "--run", "digits", "--worker-id",
                  "py", "--data", HFOPT_DIGITS_DATA});
  WorkerThread<double> cpp(MakeDigits(), server.address(), "digits", "cpp");
  while (client.Get("digits")->workers_size() < 2) std::this_thread::yield();
  ASSERT_TRUE(client.Start("digits").ok());
  const auto ended = client.Watch("digits", 0, [](const v1::WatchRunResponse&) { return true; });
  ASSERT_TRUE(ended.ok()) << ended.status();
  ASSERT_EQ(ended->state(), v1::RUN_STATE_ENDED) << ended->state_detail();
  for (const v1::WorkerStatus& worker : ended->workers()) {
    EXPECT_GT(worker.answers(), 0u) << worker.worker_id() << " had nothing to do";
  }
  EXPECT_EQ(python.Wait(), 0);

  // NumPy's sums are not Eigen's, so not the bits: but the same numbers, to what four iterations make of rounding errors.
  auto model = MakeDigits();
  LocalObjective<double> objective(*model, 2);
  const auto local = RunLocally<double>(objective, *model->InitialParameters(0), Options());
  const auto remote = client.DownloadLast<double>("digits");
  ASSERT_TRUE(remote.ok()) << remote.status();
  EXPECT_LT((remote->theta - local.theta).norm(), 1e-6 * local.theta.norm());
  EXPECT_NEAR(remote->held_out_loss, local.held_out_loss, 1e-8);
}

}  // namespace
}  // namespace hfopt::testing
