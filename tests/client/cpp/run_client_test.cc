#include "client/cpp/run_client.h"

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/wire/vector_codec.h"
#include "tests/client/cpp/socket_address.h"

namespace hfopt::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::WatchRunResponse Iteration(uint64_t number) {
  v1::WatchRunResponse event;
  event.mutable_iteration()->set_iteration(number);
  return event;
}

v1::WatchRunResponse State(v1::RunState state) {
  v1::WatchRunResponse event;
  event.mutable_run()->set_name("runs/an4");
  event.mutable_run()->set_state(state);
  return event;
}

// What the fake service was asked, and what it is to answer.
struct Script {
  std::vector<std::string> calls, request_ids;
  bool had_deadline = false;
  std::vector<std::pair<std::vector<v1::WatchRunResponse>, grpc::Status>> streams;
  std::vector<uint64_t> watched_after;
  wire::Vector<float> parameters;
  std::optional<uint64_t> announced_size;
};

// Keeps one run, "runs/an4".
class FakeRunService : public v1::RunService::Service {
 public:
  FakeRunService() {
    run_.set_name("runs/an4");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeRunService() override { server_->Shutdown(); }
  Script script() {
    const std::lock_guard<std::mutex> lock(mu_);
    return script_;
  }
  void Change(const std::function<void(Script&)>& change) {
    const std::lock_guard<std::mutex> lock(mu_);
    change(script_);
  }
  std::shared_ptr<grpc::Channel> channel() { return MakeChannel(address_); }

  grpc::Status CreateRun(grpc::ServerContext* context, const v1::CreateRunRequest* request,
                         v1::CreateRunResponse* response) override {
    Change([&](Script& script) {
      script.had_deadline = context->deadline() < std::chrono::system_clock::now() + std::chrono::hours(1);
      script.request_ids.push_back(request->request_id());
    });
    response->mutable_run()->set_name("runs/" + request->run_id());
    *response->mutable_run()->mutable_options() = request->options();
    return grpc::Status::OK;
  }
  grpc::Status ListRuns(grpc::ServerContext*, const v1::ListRunsRequest* request,
                        v1::ListRunsResponse* response) override {
    const int page = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    for (int i = 2 * page; i < 2 * page + 2 && i < 5; ++i) response->add_runs()->set_name("runs/r" + std::to_string(i));
    if (page < 2) response->set_next_page_token(std::to_string(page + 1));
    return grpc::Status::OK;
  }
  grpc::Status GetRun(grpc::ServerContext*, const v1::GetRunRequest* r, v1::GetRunResponse* a) override {
    return Answer("Get", r, a);
  }
  grpc::Status StartRun(grpc::ServerContext*, const v1::StartRunRequest* r, v1::StartRunResponse* a) override {
    return Answer("Start", r, a);
  }
  grpc::Status PauseRun(grpc::ServerContext*, const v1::PauseRunRequest* r, v1::PauseRunResponse* a) override {
    return Answer("Pause", r, a);
  }
  grpc::Status ResumeRun(grpc::ServerContext*, const v1::ResumeRunRequest* r, v1::ResumeRunResponse* a) override {
    return Answer("Resume", r, a);
  }
  grpc::Status CancelRun(grpc::ServerContext*, const v1::CancelRunRequest* r, v1::CancelRunResponse* a) override {
    return Answer("Cancel", r, a);
  }
  grpc::Status DeleteRun(grpc::ServerContext*, const v1::DeleteRunRequest* r, v1::DeleteRunResponse*) override {
    Note("Delete " + r->name());
    return grpc::Status::OK;
  }

  grpc::Status WatchRun(grpc::ServerContext* context, const v1::WatchRunRequest* request,
                        grpc::ServerWriter<v1::WatchRunResponse>* writer) override {
    const Script now = script();
    Change([&](Script& script) {
      script.watched_after.push_back(request->after_iteration());
      if (!script.streams.empty()) script.streams.erase(script.streams.begin());
    });
    if (now.streams.empty()) {  // stay silent
      while (!context->IsCancelled()) std::this_thread::yield();
      return grpc::Status::CANCELLED;
    }
    const auto& [events, status] = now.streams.front();
    for (const v1::WatchRunResponse& event : events) writer->Write(event);
    return status;
  }

  grpc::Status UploadParameters(grpc::ServerContext*, grpc::ServerReader<v1::UploadParametersRequest>* reader,
                                v1::UploadParametersResponse* response) override {
    v1::UploadParametersRequest message;
    reader->Read(&message);
    const v1::UploadParametersHeader& header = message.header();
    if (header.name() != "runs/an4") return NotFound(header.name());
    auto assembler = wire::VectorAssembler<float>::Create(wire::MakeHeader(0, "", header.size(), header.element_type()),
                                                          header.size());
    while (reader->Read(&message)) EXPECT_TRUE(assembler->Add(message.chunk()).ok());
    EXPECT_TRUE(assembler->CheckComplete().ok());
    Change([&](Script& script) { script.parameters = (*std::move(assembler)).Take().map(); });
    *response->mutable_run() = run_;
    return grpc::Status::OK;
  }

  grpc::Status DownloadParameters(grpc::ServerContext*, const v1::DownloadParametersRequest* request,
                                  grpc::ServerWriter<v1::DownloadParametersResponse>* writer) override {
    if (request->name() != "runs/an4") return NotFound(request->name());
    const Script now = script();
    v1::DownloadParametersResponse message;
    v1::DownloadParametersHeader& header = *message.mutable_header();
    header.set_size(now.announced_size.value_or(now.parameters.size()));
    header.set_element_type(v1::ELEMENT_TYPE_FLOAT32);
    header.set_iteration(request->has_iteration()                                            ? request->iteration()
                         : request->version() == v1::DownloadParametersRequest::VERSION_BEST ? 7
                                                                                             : 9);
    header.set_held_out_loss(0.5);
    writer->Write(message);
    for (uint64_t offset = 0; const size_t bytes = wire::FillChunk(now.parameters, offset, 0, message.mutable_chunk());
         offset += bytes) {
      writer->Write(message);
    }
    return grpc::Status::OK;
  }

 private:
  static grpc::Status NotFound(const std::string& name) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, name + ": no such run");
  }
  void Note(const std::string& call) {
    Change([&](Script& script) { script.calls.push_back(call); });
  }
  template <typename Request, typename Response>
  grpc::Status Answer(const std::string& call, const Request* request, Response* response) {
    Note(call + " " + request->name());
    if (request->name() != "runs/an4") return NotFound(request->name());
    *response->mutable_run() = run_;
    return grpc::Status::OK;
  }

  const std::string address_ = SocketAddress();
  v1::Run run_;
  std::mutex mu_;
  Script script_;
  std::unique_ptr<grpc::Server> server_;
};

class RunClientTest : public ::testing::Test {
 protected:
  static RunClientOptions Options() {
    RunClientOptions options;
    options.initial_backoff = options.max_backoff = absl::Milliseconds(1);
    return options;
  }
  const grpc::Status broken_{grpc::StatusCode::UNAVAILABLE, "the server went away"};
  FakeRunService service_;
  RunClient client_{service_.channel(), Options()};
};

TEST_F(RunClientTest, CreatesWithARequestIdOfItsOwnOrTheCallers) {
  v1::RunOptions options;
  options.set_shards(3);
  const auto run = client_.Create("an4", options);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->name(), "runs/an4");
  EXPECT_EQ(run->options().shards(), 3u);
  ASSERT_TRUE(client_.Create("an4", options).ok());
  ASSERT_TRUE(client_.Create("an4", options, "mine").ok());
  EXPECT_EQ(service_.script().request_ids[0].size(), 32u);
  EXPECT_NE(service_.script().request_ids[0], service_.script().request_ids[1]);
  EXPECT_EQ(service_.script().request_ids[2], "mine");
  EXPECT_TRUE(service_.script().had_deadline);
}

TEST_F(RunClientTest, NamesTheRunInEveryCall) {
  for (const auto& run :
       {client_.Get("an4"), client_.Start("an4"), client_.Pause("an4"), client_.Resume("an4"), client_.Cancel("an4")}) {
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(run->name(), "runs/an4");
  }
  EXPECT_TRUE(client_.Delete("an4").ok());
  EXPECT_THAT(service_.script().calls, ElementsAre("Get runs/an4", "Start runs/an4", "Pause runs/an4",
                                                   "Resume runs/an4", "Cancel runs/an4", "Delete runs/an4"));
  EXPECT_EQ(client_.Get("an5").status(), absl::NotFoundError("runs/an5: no such run"));
}

TEST_F(RunClientTest, ListsAllPages) {
  const auto runs = client_.List();
  ASSERT_TRUE(runs.ok()) << runs.status();
  ASSERT_EQ(runs->size(), 5u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ((*runs)[i].name(), "runs/r" + std::to_string(i));
}

TEST_F(RunClientTest, WatchGoesOnAcrossBrokenStreamsWithoutRepetition) {
  service_.Change([&](Script& script) {
    script.streams = {{{State(v1::RUN_STATE_RUNNING), Iteration(3), Iteration(4)}, broken_},
                      {{}, broken_},
                      {{Iteration(4), Iteration(5)}, grpc::Status::OK},
                      {{Iteration(6), State(v1::RUN_STATE_ENDED)}, grpc::Status::OK}};
  });
  std::vector<uint64_t> seen;
  const auto run = client_.Watch("an4", 2, [&](const v1::WatchRunResponse& event) {
    if (event.has_iteration()) seen.push_back(event.iteration().iteration());
    return true;
  });
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->state(), v1::RUN_STATE_ENDED);
  EXPECT_THAT(seen, ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(service_.script().watched_after, ElementsAre(2, 4, 4, 5));
}

TEST_F(RunClientTest, WatchEndsWithAFailedRunOrARefusal) {
  service_.Change([&](Script& script) {
    script.streams = {{{State(v1::RUN_STATE_FAILED)}, grpc::Status::OK},
                      {{}, grpc::Status(grpc::StatusCode::NOT_FOUND, "runs/an4: no such run")}};
  });
  const auto ignore = [](const v1::WatchRunResponse&) { return true; };
  EXPECT_EQ(client_.Watch("an4", 0, ignore).value().state(), v1::RUN_STATE_FAILED);
  EXPECT_EQ(client_.Watch("an4", 0, ignore).status(), absl::NotFoundError("runs/an4: no such run"));
}

TEST_F(RunClientTest, WatchLeavesWhenTheCallbackSaysSo) {
  service_.Change([&](Script& script) {
    script.streams = {{{Iteration(1), Iteration(2), Iteration(3)}, grpc::Status::OK}};
  });
  int events = 0;
  const auto run = client_.Watch("an4", 0, [&](const v1::WatchRunResponse&) { return ++events < 2; });
  EXPECT_EQ(run.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(events, 2);
}

TEST_F(RunClientTest, WatchLeavesWhenItIsStoppedInSilence) {
  service_.Change([&](Script& script) { script.streams = {{{Iteration(1)}, broken_}}; });  // then silence
  std::stop_source stop;
  const auto run = client_.Watch(
      "an4", 0,
      [&](const v1::WatchRunResponse&) {
        stop.request_stop();
        return true;
      },
      stop.get_token());
  EXPECT_EQ(run.status(), absl::CancelledError("stopped watching run an4"));
}

TEST_F(RunClientTest, WatchGivesUpInTheEnd) {
  RunClientOptions options = Options();
  options.give_up_after = absl::Milliseconds(5);
  RunClient client(MakeChannel(SocketAddress()), options);
  const auto run = client.Watch("an4", 0, [](const v1::WatchRunResponse&) { return true; });
  EXPECT_EQ(run.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(run.status().message()), HasSubstr("run an4: gave up watching, nothing heard for 5ms"));
}

TEST_F(RunClientTest, CarriesParametersThereAndBack) {
  const Vector<float> theta = Vector<float>::LinSpaced(600'000, -1, 1);  // three chunks
  ASSERT_TRUE(client_.UploadParameters("an4", theta).ok());
  EXPECT_EQ(service_.script().parameters, theta);
  const auto best = client_.DownloadBest<float>("an4");
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_EQ(best->theta, theta);
  EXPECT_EQ(best->iteration, 7u);
  EXPECT_EQ(best->held_out_loss, 0.5);
  EXPECT_EQ(client_.DownloadLast<float>("an4")->iteration, 9u);
  EXPECT_EQ(client_.DownloadAt<float>("an4", 4)->iteration, 4u);
}

TEST_F(RunClientTest, RefusesTransfersThatCannotBeRight) {
  const Vector<float> theta = Vector<float>::LinSpaced(600'000, -1, 1);
  EXPECT_EQ(client_.UploadParameters("an5", theta).status(), absl::NotFoundError("runs/an5: no such run"));
  EXPECT_EQ(client_.DownloadBest<float>("an5").status(), absl::NotFoundError("runs/an5: no such run"));
  service_.Change([&](Script& script) { script.parameters = theta; });
  EXPECT_EQ(client_.DownloadBest<double>("an4").status(),
            absl::FailedPreconditionError("runs/an4: the run uses float32, asked for as float64"));
  service_.Change([&](Script& script) { script.announced_size = 600'001; });
  EXPECT_THAT(std::string(client_.DownloadBest<float>("an4").status().message()),
              HasSubstr("the first gap is at byte 2400000"));
  service_.Change([&](Script& script) { script.announced_size = 599'999; });
  EXPECT_THAT(std::string(client_.DownloadBest<float>("an4").status().message()), HasSubstr("passes the vector's end"));
  service_.Change([&](Script& script) { script.announced_size = ~uint64_t{0}; });
  EXPECT_EQ(client_.DownloadBest<float>("an4").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace hfopt::client
