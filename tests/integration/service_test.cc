// The run service through real channels: states, refusals, paging, parameters, health and reflection.

#include <filesystem>
#include <string>
#include <vector>

#include "client/models/model_factory.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "proto/wire/status.h"
#include "server/run/file_run_store.h"
#include "tests/support/test_server.h"

namespace hfopt::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Begins an upload of float32.
v1::UploadParametersRequest UploadHeader(const std::string& run, uint64_t size) {
  v1::UploadParametersRequest message;
  message.mutable_header()->set_name(run);
  message.mutable_header()->set_size(size);
  message.mutable_header()->set_element_type(v1::ELEMENT_TYPE_FLOAT32);
  return message;
}

class ServiceTest : public ::testing::Test {
 protected:
  std::unique_ptr<WorkerThread<float>> StartWorker(const std::string& run_id, const std::string& layers = "64-10",
                                                   double l2 = 0, const std::string& worker_id = "w") {
    return std::make_unique<WorkerThread<float>>(
        models::MakeModel<float>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = layers, .l2 = l2}).value(),
        server_.address(), run_id, worker_id);
  }
  v1::RunOptions Options(uint64_t iterations) {
    v1::RunOptions options;
    options.set_shards(1);
    options.mutable_optimizer()->mutable_samples()->set_initial_gradient_examples(200);
    options.mutable_optimizer()->mutable_stop()->set_max_iterations(iterations);
    return options;
  }
  // Of a run that is still at work when a test interferes, however slow the machine is.
  v1::RunOptions Endless() {
    v1::RunOptions options = Options(0);
    options.mutable_optimizer()->mutable_stop()->set_max_rejections(1'000'000'000);
    return options;
  }
  v1::Run Watch(const std::string& run_id) {
    auto run = client_.Watch(run_id, 0, [](const v1::WatchRunResponse&) { return true; });
    EXPECT_TRUE(run.ok()) << run.status();
    return run.value_or(v1::Run());
  }
  // Blocks until the run has finished `iteration`, if it goes on for so long.
  static void AwaitIteration(client::RunClient& client, const std::string& run_id, uint64_t iteration) {
    client
        .Watch(run_id, 0,
               [&](const v1::WatchRunResponse& event) { return event.iteration().iteration() < iteration; })
        .status()
        .IgnoreError();
  }
  std::string Refusal(const absl::Status& status, absl::StatusCode code) {
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }

  TestServer server_;
  client::RunClient client_ = server_.Client();
};

TEST(Server, ListensOnAUnixSocketUnderItsName) {
  const TemporaryDirectory directory;
  const std::string address = "unix:" + directory.path() + "/socket";
  const auto server = server::Server::Start({.address = address, .state_directory = directory.path() + "/state"},
                                            [](const std::string&) {});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->address(), address);
  EXPECT_TRUE(client::RunClient(client::MakeChannel((*server)->address())).Create("a", {}).ok());
}

TEST_F(ServiceTest, CreateFillsInEveryOption) {
  const auto run = client_.Create("a", {});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->name(), "runs/a");
  EXPECT_EQ(run->state(), v1::RUN_STATE_CREATED);
  EXPECT_EQ(run->options().element_type(), v1::ELEMENT_TYPE_FLOAT32);
  EXPECT_EQ(run->options().optimizer().preset(), v1::OptimizerOptions::PRESET_ACCELERATED);
  EXPECT_GT(run->options().optimizer().conjugate_gradient().max_iterations(), 0u);
  EXPECT_GT(run->options().lease_seconds(), 0);
}

TEST_F(ServiceTest, CreateIsIdempotentByRequestId) {
  ASSERT_TRUE(client_.Create("a", {}, "once").ok());
  EXPECT_TRUE(client_.Create("a", {}, "once").ok());
  v1::RunOptions other;
  other.set_seed(7);
  EXPECT_THAT(Refusal(client_.Create("a", other, "once").status(), absl::StatusCode::kAlreadyExists),
              AllOf(HasSubstr("runs/a"), HasSubstr("seed: 7")));
  EXPECT_THAT(Refusal(client_.Create("a", {}, "twice").status(), absl::StatusCode::kAlreadyExists), HasSubstr("runs/a"));
}

TEST_F(ServiceTest, CreateIsIdempotentAlsoOnceTheServerHasChosen) {
  v1::RunOptions options = Options(1);
  options.set_shards(0);
  ASSERT_TRUE(client_.Create("a", options, "once").ok());
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  EXPECT_EQ(Watch("a").options().shards(), 1u);
  EXPECT_TRUE(client_.Create("a", options, "once").ok());
  options.set_shards(2);
  EXPECT_THAT(Refusal(client_.Create("a", options, "once").status(), absl::StatusCode::kAlreadyExists),
              HasSubstr("shards: 1 -> 2"));
}

// As a server does whose preset has other numbers than that which created the run.
TEST_F(ServiceTest, CreateIsIdempotentWhateverThePresetHasBecome) {
  v1::RunOptions stored;
  stored.mutable_optimizer()->mutable_samples()->set_initial_gradient_examples(777);
  ASSERT_TRUE(client_.Create("a", stored, "once").ok());
  v1::RunOptions options;
  options.mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  const auto again = client_.Create("a", options, "once");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->options().optimizer().samples().initial_gradient_examples(), 777u);
  options.mutable_optimizer()->mutable_samples()->set_initial_gradient_examples(778);
  EXPECT_THAT(Refusal(client_.Create("a", options, "once").status(), absl::StatusCode::kAlreadyExists), HasSubstr("initial_gradient_examples: 777 -> 778"));
  options.mutable_optimizer()->mutable_samples()->clear_initial_gradient_examples();
  options.mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_PUBLISHED);
  EXPECT_THAT(Refusal(client_.Create("a", options, "once").status(), absl::StatusCode::kAlreadyExists), HasSubstr("preset: PRESET_ACCELERATED -> PRESET_PUBLISHED"));
}

TEST_F(ServiceTest, RefusesAbsurdOptionsNamingFieldValueAndRange) {
  const auto refusal = [&](auto change) {
    v1::RunOptions options;
    change(options);
    return Refusal(client_.Create("a", options).status(), absl::StatusCode::kInvalidArgument);
  };
  EXPECT_THAT(refusal([](auto& o) { o.mutable_optimizer()->mutable_samples()->set_growth_factor(0.5); }),
              AllOf(HasSubstr("samples.growth_factor"), HasSubstr("0.5"), HasSubstr("1 to")));
  EXPECT_THAT(refusal([](auto& o) { o.mutable_optimizer()->mutable_preconditioner()->set_memory(7); }),
              AllOf(HasSubstr("preconditioner.memory"), HasSubstr("7"), HasSubstr("even")));
  EXPECT_THAT(refusal([](auto& o) { o.mutable_optimizer()->mutable_damping()->set_initial(NAN); }),
              HasSubstr("damping.initial"));
  EXPECT_THAT(refusal([](auto& o) { o.set_shards(4'000'000'000); }), HasSubstr("options.shards is 4000000000"));
  EXPECT_THAT(refusal([](auto& o) { o.set_lease_seconds(-1); }), HasSubstr("lease_seconds"));
  EXPECT_THAT(refusal([](auto& o) { o.set_max_wall_seconds(NAN); }), HasSubstr("max_wall_seconds"));
  EXPECT_THAT(Refusal(client_.Create("../../etc", {}).status(), absl::StatusCode::kInvalidArgument), HasSubstr("a-z, 0-9 and -"));
  v1::RunOptions huge;
  huge.set_num_parameters(uint64_t{1} << 45);
  EXPECT_THAT(Refusal(client_.Create("a", huge).status(), absl::StatusCode::kResourceExhausted),
              HasSubstr("--memory-limit"));
}

TEST_F(ServiceTest, RefusesWhatTheStateForbids) {
  EXPECT_THAT(Refusal(client_.Get("nothing").status(), absl::StatusCode::kNotFound),
              AllOf(HasSubstr("runs/nothing"), HasSubstr("`hfopt run list`")));
  ASSERT_TRUE(client_.Create("a", Options(1)).ok());
  EXPECT_THAT(Refusal(client_.Pause("a").status(), absl::StatusCode::kFailedPrecondition), HasSubstr("CREATED"));
  EXPECT_THAT(Refusal(client_.Resume("a").status(), absl::StatusCode::kFailedPrecondition), HasSubstr("PAUSED"));
  ASSERT_TRUE(client_.Start("a").ok());
  EXPECT_THAT(Refusal(client_.Start("a").status(), absl::StatusCode::kFailedPrecondition), HasSubstr("started"));
  EXPECT_THAT(Refusal(client_.Delete("a"), absl::StatusCode::kFailedPrecondition), HasSubstr("cancel"));
  ASSERT_TRUE(client_.Cancel("a").ok());
  EXPECT_EQ(client_.Get("a")->termination().reason(), v1::Termination::REASON_CANCELLED);
  EXPECT_THAT(Refusal(client_.Cancel("a").status(), absl::StatusCode::kFailedPrecondition), HasSubstr("ENDED"));
  EXPECT_TRUE(client_.Delete("a").ok());
  EXPECT_EQ(client_.Get("a").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ServiceTest, ListsAllPages) {
  auto stub = v1::RunService::NewStub(client::MakeChannel(server_.address()));
  for (const char* id : {"c", "a", "b", "d", "e"}) ASSERT_TRUE(client_.Create(id, {}).ok());
  std::vector<std::string> names;
  v1::ListRunsRequest request;
  request.set_page_size(2);
  int pages = 0;
  do {
    grpc::ClientContext context;
    v1::ListRunsResponse response;
    ASSERT_TRUE(stub->ListRuns(&context, request, &response).ok());
    for (const v1::Run& run : response.runs()) names.push_back(run.name());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(pages, 3);
  EXPECT_THAT(names, ElementsAre("runs/a", "runs/b", "runs/c", "runs/d", "runs/e"));
}

TEST_F(ServiceTest, SaysWhatItWaitsFor) {
  ASSERT_TRUE(client_.Create("a", Options(2)).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  std::string detail;
  client_
      .Watch("a", 0,
             [&](const v1::WatchRunResponse& event) {
               detail = event.run().state_detail();
               return event.run().state() != v1::RUN_STATE_WAITING_FOR_WORKERS;
             })
      .status()
      .IgnoreError();
  EXPECT_THAT(detail, HasSubstr("no worker has joined"));
}

TEST_F(ServiceTest, PausedRunsResumeAndSurviveARestart) {
  ASSERT_TRUE(client_.Create("a", Endless()).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  AwaitIteration(client_, "a", 3);
  const auto paused = client_.Pause("a");
  ASSERT_TRUE(paused.ok()) << paused.status();
  EXPECT_EQ(paused->state(), v1::RUN_STATE_PAUSED);
  const uint64_t at = paused->last_iteration().iteration();
  server_.Restart();
  client::RunClient client = server_.Client();
  const auto restarted = client.Get("a");
  ASSERT_TRUE(restarted.ok()) << restarted.status();
  EXPECT_EQ(restarted->state(), v1::RUN_STATE_PAUSED);
  EXPECT_EQ(restarted->last_iteration().iteration(), at);
  ASSERT_TRUE(client.Resume("a").ok());
  const auto worker2 = StartWorker("a");  // the first one looks for the old port
  AwaitIteration(client, "a", at + 2);
  const auto ended = client.Cancel("a");
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_GE(ended->last_iteration().iteration(), at + 2);
}

TEST_F(ServiceTest, ARunWhoseCheckpointsAreGoneDoesNotBeginAgainInSilence) {
  ASSERT_TRUE(client_.Create("a", Endless()).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  {
    const auto worker = StartWorker("a");
    AwaitIteration(client_, "a", 2);
    ASSERT_TRUE(client_.Pause("a").ok());
  }
  const uint64_t last = client_.Get("a")->last_iteration().iteration();
  const std::string directory = server_.state_directory() + "/runs/a";
  server_.Stop();
  std::filesystem::rename(directory, directory + "-elsewhere");
  server_.Restart();
  client::RunClient client = server_.Client();
  ASSERT_TRUE(client.Resume("a").ok());
  const auto worker = StartWorker("a");
  const auto run = client.Watch("a", last, [](const v1::WatchRunResponse&) { return true; });
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run->state_detail(), AllOf(HasSubstr(directory), HasSubstr("iteration " + std::to_string(last)),
                                         HasSubstr("put its checkpoints back")));

  std::filesystem::rename(directory + "-elsewhere", directory);
  ASSERT_TRUE(client.Resume("a").ok());
  AwaitIteration(client, "a", last + 1);
  EXPECT_EQ(client.Get("a")->state(), v1::RUN_STATE_RUNNING);
  EXPECT_TRUE(client.Cancel("a").ok());
}

TEST_F(ServiceTest, TheWorkersPresentAtTheStartDecideTheShardsNotThoseThatLeftBefore) {
  v1::RunOptions options = Options(1);
  options.set_shards(0);
  ASSERT_TRUE(client_.Create("a", options).ok());
  const auto connected = [&] {
    int count = 0;
    const v1::Run run = client_.Get("a").value();
    for (const v1::WorkerStatus& worker : run.workers()) count += worker.connected() ? 1 : 0;
    return count;
  };
  {
    const auto left = StartWorker("a", "64-10", 0, "left");
    while (connected() != 1) std::this_thread::yield();
  }
  while (connected() != 0) std::this_thread::yield();
  const auto worker = StartWorker("a");
  while (connected() != 1) std::this_thread::yield();
  ASSERT_TRUE(client_.Start("a").ok());
  EXPECT_EQ(Watch("a").options().shards(), 1u);
}

TEST_F(ServiceTest, ARunThatCannotBeRecoveredKeepsItsIdUntilItIsDeleted) {
  server_.Stop();
  {
    auto store = server::FileRunStore::Open(server_.state_directory());
    ASSERT_TRUE(store.ok()) << store.status();
    v1::Run run;
    run.set_name("runs/a");
    run.mutable_options()->mutable_optimizer()->mutable_samples()->set_growth_factor(-1);  // of a server with other rules
    ASSERT_TRUE((*store)->PutRun(run, "once").ok());
  }
  server_.Restart();
  client::RunClient client = server_.Client();
  for (const absl::Status& refused :
       {client.Create("a", {}, "once").status(), client.Get("a").status(), client.Start("a").status()}) {
    EXPECT_THAT(Refusal(refused, absl::StatusCode::kFailedPrecondition),
                AllOf(HasSubstr("runs/a cannot be recovered"), HasSubstr("samples.growth_factor is -1"),
                      HasSubstr("delete the run")));
  }
  ASSERT_TRUE(client.Delete("a").ok());
  EXPECT_TRUE(client.Create("a", {}).ok());
}

TEST_F(ServiceTest, StartsFromUploadedParameters) {
  ASSERT_TRUE(client_.Create("a", Options(1)).ok());
  const Vector<float> theta = Vector<float>::Constant(650, 0.01f);
  ASSERT_TRUE(client_.UploadParameters<float>("a", theta).ok());
  EXPECT_EQ(client_.DownloadLast<float>("a")->theta, theta);
  EXPECT_EQ(client_.DownloadLast<double>("a").status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  EXPECT_EQ(Watch("a").state(), v1::RUN_STATE_ENDED);
  EXPECT_NE(client_.DownloadLast<float>("a")->theta, theta);
  EXPECT_EQ(client_.DownloadBest<float>("a")->theta, client_.DownloadLast<float>("a")->theta);
  EXPECT_EQ(client_.DownloadAt<float>("a", 0)->theta, theta);
  EXPECT_EQ(client_.DownloadAt<float>("a", 77).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ServiceTest, AWrongFirstWorkerIsRefusedAndTheRunWaitsForARightOne) {
  v1::RunOptions options = Options(1);
  options.set_num_parameters(650);
  ASSERT_TRUE(client_.Create("a", options).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  EXPECT_THAT(Refusal(StartWorker("a", "64-12-10")->Join().status(), absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("num_parameters is 910"), HasSubstr("has 650")));
  const auto worker = StartWorker("a");
  EXPECT_EQ(Watch("a").state(), v1::RUN_STATE_ENDED);
}

TEST_F(ServiceTest, AnotherModelIsRefusedAlsoAfterARestart) {
  ASSERT_TRUE(client_.Create("a", Endless()).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  AwaitIteration(client_, "a", 1);
  server_.Restart();
  client::RunClient client = server_.Client();
  const auto restarted = client.Get("a");
  ASSERT_TRUE(restarted.ok()) << restarted.status();
  EXPECT_EQ(restarted->model().num_parameters(), 650u);
  EXPECT_THAT(Refusal(StartWorker("a", "64-10", /*l2=*/0.5)->Join().status(), absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("model_signature"), HasSubstr("l2 0.5"), HasSubstr(restarted->model().signature())));
  const auto same = StartWorker("a");
  AwaitIteration(client, "a", restarted->last_iteration().iteration() + 1);
  EXPECT_TRUE(client.Cancel("a").ok());
}

TEST_F(ServiceTest, WorkersThatDoNotFitUploadedParametersAreRefusedWithBothSizes) {
  ASSERT_TRUE(client_.Create("a", Options(1)).ok());
  ASSERT_TRUE(client_.UploadParameters<float>("a", Vector<float>::Zero(649)).ok());
  EXPECT_FALSE(client_.UploadParameters<float>("a", Vector<float>::Constant(650, NAN)).ok());
  EXPECT_FALSE(client_.UploadParameters<double>("a", Vector<double>::Zero(650)).ok());
  EXPECT_THAT(Refusal(StartWorker("a")->Join().status(), absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("649"), HasSubstr("650")));
}

TEST_F(ServiceTest, AHugeUploadIsRefusedAtItsHeaderAndLeavesTheServerWhole) {
  ASSERT_TRUE(client_.Create("a", Options(1)).ok());
  const auto stub = v1::RunService::NewStub(client::MakeChannel(server_.address()));
  for (const uint64_t size : {uint64_t{1} << 33, ~uint64_t{0}}) {
    grpc::ClientContext context;
    v1::UploadParametersResponse response;
    const auto stream = stub->UploadParameters(&context, &response);
    v1::UploadParametersRequest request = UploadHeader("runs/a", size);
    stream->Write(request);
    EXPECT_THAT(Refusal(wire::FromGrpc(stream->Finish()), absl::StatusCode::kResourceExhausted),
                AllOf(HasSubstr("MiB"), HasSubstr("allows 1000 MiB"), HasSubstr("--memory-limit")));
  }
  server_.Stop();  // returns: no stream is left behind
}

TEST_F(ServiceTest, AnUploadThatEndsAfterItsRunWasDeletedLeavesNothing) {
  ASSERT_TRUE(client_.Create("a", Options(1)).ok());
  const auto stub = v1::RunService::NewStub(client::MakeChannel(server_.address()));
  grpc::ClientContext context;
  v1::UploadParametersResponse response;
  const auto upload = stub->UploadParameters(&context, &response);
  v1::UploadParametersRequest message = UploadHeader("runs/a", 3);
  ASSERT_TRUE(upload->Write(message));
  message.mutable_chunk()->set_data(std::string(12, '\0'));
  ASSERT_TRUE(upload->Write(message));
  ASSERT_TRUE(client_.Delete("a").ok());
  upload->WritesDone();
  const grpc::Status end = upload->Finish();
  EXPECT_FALSE(end.ok());
  EXPECT_TRUE(client_.Create("a", Options(1)).ok()) << "the id is free";
}

TEST(UnixSocket, OfAServerIsNotTakenByAnother) {
  TemporaryDirectory directory;
  const std::string address = "unix:" + directory.path() + "/s";
  TestServer first({.address = address});
  server::ServerOptions options{.address = address};
  options.state_directory = directory.path() + "/other";
  const auto second = server::Server::Start(options, [](const std::string&) {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another server does"));
  EXPECT_TRUE(first.Client().Create("r", {}).ok());
  first.Restart();  // and what a server has left behind is no obstacle
  EXPECT_TRUE(first.Client().Get("r").ok());
}

TEST_F(ServiceTest, AWorkerWhoseModelDoesNotFitIsToldSoAndStops) {
  v1::RunOptions options = Options(1);
  options.set_shards(100'000);  // of whose answers each may have to wait for its turn
  ASSERT_TRUE(client_.Create("a", options).ok());
  EXPECT_THAT(Refusal(StartWorker("a", "64-40-10")->Join().status(), absl::StatusCode::kResourceExhausted),
              AllOf(HasSubstr("worker w"), HasSubstr("3010"), HasSubstr("allows 1000 MiB")));
}

TEST_F(ServiceTest, ARunThatHasMoreShardsThanExamplesFailsWithTheNumbers) {
  v1::RunOptions options = Options(1);
  options.set_shards(5000);
  ASSERT_TRUE(client_.Create("a", options).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  const v1::Run run = Watch("a");
  EXPECT_EQ(run.state(), v1::RUN_STATE_FAILED);
  EXPECT_THAT(run.state_detail(), AllOf(HasSubstr("5000 shards"), HasSubstr("397 held-out")));
}

TEST_F(ServiceTest, BooksTimeByPhase) {
  ASSERT_TRUE(client_.Create("a", Options(5)).ok());
  ASSERT_TRUE(client_.Start("a").ok());
  const auto worker = StartWorker("a");
  const v1::PhaseSeconds s = Watch("a").seconds();
  EXPECT_GT(s.client_compute(), 0);
  EXPECT_GT(s.transport(), 0);
  EXPECT_NEAR(s.total(), s.client_compute() + s.transport() + s.reduction() + s.server_arithmetic() + s.waiting(), 1e-6 * s.total());
}

TEST(TransferIdle, EndsAnUploadAndASessionOfWhichNothingComesOverARealConnection) {
  TestServer server({.address = "127.0.0.1:0", .memory_limit_mib = TestServer::kMemoryLimitMib, .transfer_idle_seconds = 0.1});
  ASSERT_TRUE(server.Client().Create("r", {}).ok());
  const std::shared_ptr<grpc::Channel> channel = client::MakeChannel(server.address());

  grpc::ClientContext upload_context, session_context;
  v1::UploadParametersResponse response;
  const auto stub = v1::RunService::NewStub(channel);
  const auto upload = stub->UploadParameters(&upload_context, &response);
  v1::UploadParametersRequest header = UploadHeader("runs/r", 1000);
  ASSERT_TRUE(upload->Write(header));
  const auto sessions = v1::EvaluationService::NewStub(channel);
  const auto session = sessions->Session(&session_context);

  v1::SessionResponse message;
  EXPECT_FALSE(session->Read(&message));
  const grpc::Status session_end = session->Finish();
  EXPECT_EQ(session_end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(session_end.error_message(), HasSubstr("the worker has not said Hello for 100ms"));
  const grpc::Status upload_end = upload->Finish();
  EXPECT_EQ(upload_end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(upload_end.error_message(), HasSubstr("no chunk of the upload has come for 100ms"));
  EXPECT_TRUE(server.Client().Get("r").ok());
}

TEST_F(ServiceTest, AnswersHealthAndReflection) {
  // The bytes of the standard services, so that no further stubs are needed: HealthCheckResponse{status: SERVING}.
  auto channel = client::MakeChannel(server_.address());
  grpc::GenericStub stub(channel);
  const auto call = [&](const std::string& method) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::ByteBuffer response;
    grpc::Status status;
    const grpc::Slice empty;
    auto reader = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&empty, 1), &queue);
    reader->StartCall();
    reader->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_TRUE(status.ok()) << method << ": " << status.error_message();
    grpc::Slice slice;
    return response.DumpToSingleSlice(&slice).ok() ? std::string(slice.begin(), slice.end()) : "";
  };
  EXPECT_EQ(call("/grpc.health.v1.Health/Check"), std::string("\x08\x01"));

  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto stream = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  stream->StartCall(nullptr);
  queue.Next(&tag, &ok);
  const grpc::Slice list_services(std::string("\x3a\x00", 2));  // list_services: ""
  stream->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer response;
  stream->Read(&response, nullptr);
  queue.Next(&tag, &ok);
  ASSERT_TRUE(ok);
  grpc::Slice slice;
  ASSERT_TRUE(response.DumpToSingleSlice(&slice).ok());
  EXPECT_THAT(std::string(slice.begin(), slice.end()),
              AllOf(HasSubstr("hfopt.v1.RunService"), HasSubstr("hfopt.v1.EvaluationService")));
  context.TryCancel();
}

}  // namespace
}  // namespace hfopt::testing
