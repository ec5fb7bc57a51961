// mpirun -n K hfopt-worker: to the server one worker, whatever K is.

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::SizeIs;

class MpiWorker : public ::testing::Test {
 protected:
  MpiWorker() {
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"}) setenv(name, "1", 1);
  }

  std::unique_ptr<Process> Worker(int ranks, const std::string& run) {
    std::vector<std::string> command = {HFOPT_WORKER_BINARY, "--server", server_.address(), "--run", run, "--worker-id", "w", "--task", "digits",
                                        "--data", HFOPT_DIGITS_DATA, "--layers", "64-12-10"};
    if (ranks > 1) command.insert(command.begin(), {HFOPT_MPIRUN, "-n", std::to_string(ranks)});
    return std::make_unique<Process>(command);
  }

  void Create(const std::string& run, int iterations = 3) {
    v1::RunOptions options;
    options.set_shards(1);
    options.set_element_type(v1::ELEMENT_TYPE_FLOAT64);
    options.set_lease_seconds(0.5);
    options.mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_PUBLISHED);
    options.mutable_optimizer()->mutable_conjugate_gradient()->set_max_iterations(8);
    options.mutable_optimizer()->mutable_stop()->set_max_iterations(iterations);
    ASSERT_TRUE(client_.Create(run, options).ok());
    ASSERT_TRUE(client_.Start(run).ok());
  }

  v1::Run AwaitEnd(const std::string& run) {
    const auto end = client_.Watch(run, 0, [](const v1::WatchRunResponse&) { return true; });
    EXPECT_TRUE(end.ok()) << end.status();
    EXPECT_EQ(end->state(), v1::RUN_STATE_ENDED) << end->state_detail();
    return end.value_or(v1::Run());
  }
  client::Vector<double> Theta(const std::string& run) { return client_.DownloadLast<double>(run)->theta; }

  TestServer server_;
  client::RunClient client_ = server_.Client();
};

TEST_F(MpiWorker, IsOneWorkerWithTheResultOfOneProcess) {
  std::vector<v1::WorkerStatus> seen;
  for (const int ranks : {1, 2, 3}) {
    const std::string run = absl::StrCat("of-", ranks);
    Create(run);
    const auto worker = Worker(ranks, run);
    const v1::Run end = AwaitEnd(run);
    EXPECT_EQ(worker->Wait(), 0);
    ASSERT_THAT(end.workers(), SizeIs(1));
    seen.push_back(end.workers(0));
    EXPECT_LT((Theta(run) - Theta("of-1")).norm(), 1e-9 * Theta("of-1").norm()) << ranks;
  }
  for (const v1::WorkerStatus& worker : seen) {
    EXPECT_EQ(worker.bytes_sent(), seen[0].bytes_sent()) << "bytes at the server grow with the ranks";
    EXPECT_EQ(worker.bytes_received(), seen[0].bytes_received());
  }
}

// A rank that dies takes the group with it; what starts it again gets the same worker, newer.
TEST_F(MpiWorker, ComesBackAfterARankHasDied) {
  Create("undisturbed", 6);
  const auto undisturbed = Worker(2, "undisturbed");
  AwaitEnd("undisturbed");
  EXPECT_EQ(undisturbed->Wait(), 0);

  for (const size_t rank : {0, 1}) {
    const std::string run = absl::StrCat("rank-", rank, "-dies");
    Create(run, 6);
    auto worker = Worker(2, run);
    const auto told = client_.Watch(run, 0, [](const v1::WatchRunResponse& event) { return event.iteration().iteration() < 2; });
    ASSERT_TRUE(absl::IsCancelled(told.status())) << told.status();  // by us, at iteration 2
    std::ifstream children(absl::StrCat("/proc/", worker->pid(), "/task/", worker->pid(), "/children"));
    std::vector<pid_t> ranks;
    for (pid_t child = 0; children >> child;) ranks.push_back(child);
    ASSERT_THAT(ranks, SizeIs(2));
    kill(ranks[rank], SIGKILL);
    EXPECT_NE(worker->Wait(), 0);
    worker = Worker(2, run);
    AwaitEnd(run);
    EXPECT_EQ(worker->Wait(), 0);
    EXPECT_EQ(Theta(run), Theta("undisturbed"));
  }
}

}  // namespace
}  // namespace hfopt::testing
