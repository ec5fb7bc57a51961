// State directories of all formats there ever were (tests/server/testdata): this server reads them, and the runs go on.

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/models/model_factory.h"
#include "gtest/gtest.h"
#include "server/convert/checkpoint.h"
#include "server/run/checkpoint_file.h"
#include "tests/support/local_objective.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

std::unique_ptr<client::Model<double>> MakeModel() {
  return models::MakeModel<double>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-4-10"}).value();
}

class Upgrade : public ::testing::TestWithParam<std::string> {};

TEST_P(Upgrade, AStoredRunIsReadAndGoesOn) {
  const TemporaryDirectory directory;
  std::filesystem::copy(std::filesystem::path(HFOPT_STATE_FIXTURES) / GetParam(), directory.path(),
                        std::filesystem::copy_options::recursive);
  auto server = server::Server::Start({.address = "127.0.0.1:0", .state_directory = directory.path(), .memory_limit_mib = 1000},
                                      [](const std::string&) {});
  ASSERT_TRUE(server.ok()) << server.status();
  client::RunClient client(client::MakeChannel((*server)->address()));

  const auto stored = client.Get("r");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->state(), v1::RUN_STATE_PAUSED);
  EXPECT_EQ(stored->last_iteration().iteration(), 2u);
  EXPECT_EQ(stored->best_iteration(), 2u);
  EXPECT_NEAR(stored->best_held_out_loss(), 2.155252846839947, 1e-15);
  auto checkpoint = server::ReadCheckpointFile(directory.path() + "/runs/r/checkpoint-2.safetensors");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto state = server::StateFromCheckpoint<double>(*std::move(checkpoint));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(client.DownloadBest<double>("r")->theta, state->theta);

  WorkerThread<double> worker(MakeModel(), (*server)->address(), "r", "w");
  ASSERT_TRUE(client.Resume("r").ok());
  uint64_t iterations = 0;
  const auto ended = client.Watch("r", 0, [&](const v1::WatchRunResponse& event) {
    if (event.has_iteration()) iterations = event.iteration().iteration();
    return true;
  });
  ASSERT_TRUE(ended.ok()) << ended.status();
  ASSERT_EQ(ended->state(), v1::RUN_STATE_ENDED) << ended->state_detail();
  EXPECT_EQ(iterations, 4u);

  // What the optimizer makes of the stored state alone.
  const auto model = MakeModel();
  LocalObjective<double> objective(*model, stored->options().shards());
  const auto options = server::OptionsFromProto(stored->options().optimizer());
  ASSERT_TRUE(options.ok()) << options.status();
  while (state->iteration < 4) {
    auto next = Iterate<double>(*state, objective, *options);
    ASSERT_TRUE(next.ok()) << next.status();
    state = std::move(next->state);
  }
  EXPECT_EQ(client.DownloadLast<double>("r")->theta, state->theta);
}

std::vector<std::string> StoredFormats() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(HFOPT_STATE_FIXTURES)) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(From, Upgrade, ::testing::ValuesIn(StoredFormats()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace hfopt::testing
