#include "client/cli/run_page.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

v1::Run EndedRun() {
  v1::Run run;
  run.set_name("runs/an4");
  run.set_state(v1::RUN_STATE_ENDED);
  run.mutable_termination()->set_reason(v1::Termination::REASON_TARGET_REACHED);
  run.mutable_termination()->set_detail("held-out loss 0.99 <= 1");
  run.mutable_options()->set_shards(2);
  run.mutable_options()->mutable_optimizer()->set_preset(v1::OptimizerOptions::PRESET_ACCELERATED);
  run.set_num_parameters(204902);
  run.set_best_held_out_loss(0.99);
  run.set_best_iteration(25);
  run.mutable_seconds()->set_total(100);
  run.mutable_seconds()->set_client_compute(80);
  run.mutable_seconds()->set_transport(15);
  run.mutable_seconds()->set_server_arithmetic(5);
  run.mutable_last_iteration()->set_iteration(26);
  run.mutable_last_iteration()->mutable_seconds()->set_total(4);
  run.mutable_last_iteration()->mutable_seconds()->set_client_compute(3);
  run.mutable_last_iteration()->mutable_seconds()->set_transport(0.99);
  run.mutable_last_iteration()->mutable_seconds()->set_reduction(0.01);
  v1::WorkerStatus& worker = *run.add_workers();
  worker.set_worker_id("worker-1");
  worker.set_connected(true);
  worker.add_shards(0);
  worker.add_shards(1);
  return run;
}

TEST(RunPage, TellsWhatHappened) {
  EXPECT_THAT(RunPage(EndedRun()),
              AllOf(HasSubstr("ended: target reached (held-out loss 0.99 <= 1)"), HasSubstr("accelerated"),
                    HasSubstr("2 shards"), HasSubstr("204,902"), HasSubstr("0.9900 after iteration 25"),
                    HasSubstr("client compute"), HasSubstr("80.0 %"), HasSubstr("worker-1"), HasSubstr("0,1"),
                    HasSubstr("4.0 s: client compute 75.0 %, transport 24.8 %\n")));
}

TEST(RunPage, LeavesOutWhatIsNotKnownYet) {
  v1::Run run;
  run.set_name("runs/new");
  run.set_state(v1::RUN_STATE_CREATED);
  EXPECT_THAT(RunPage(run), AllOf(HasSubstr("created"), HasSubstr("when the first worker has joined"),
                                  Not(HasSubstr("last iteration")), Not(HasSubstr("worker  "))));
}

TEST(RunPage, TellsWhatCgIsPreconditionedWith) {
  v1::Run run = EndedRun();
  v1::PreconditionerOptions& options = *run.mutable_options()->mutable_optimizer()->mutable_preconditioner();
  options.set_diagonal(v1::PreconditionerOptions::DIAGONAL_SQUARED_GRADIENTS_IF_OFFERED);
  EXPECT_THAT(RunPage(run), Not(HasSubstr("preconditioner"))) << "before a worker was there";
  run.mutable_model();
  EXPECT_THAT(RunPage(run), HasSubstr("none: the workers offer no second moments"));
  run.mutable_model()->set_second_moment(true);
  EXPECT_THAT(RunPage(run), HasSubstr("squared-gradient diagonal"));
  options.set_diagonal(v1::PreconditionerOptions::DIAGONAL_NONE);
  EXPECT_THAT(RunPage(run), AllOf(HasSubstr("preconditioner"), Not(HasSubstr("diagonal"))));
  options.set_lbfgs(v1::PreconditionerOptions::LBFGS_FROZEN);
  options.set_memory(64);
  options.set_diagonal(v1::PreconditionerOptions::DIAGONAL_SQUARED_GRADIENTS);
  EXPECT_THAT(RunPage(run), HasSubstr("64 frozen L-BFGS pairs, squared-gradient diagonal"));
}

TEST(RunPage, ListHasALineForEachRun) {
  v1::Run fresh;
  fresh.set_name("runs/b");
  fresh.set_state(v1::RUN_STATE_CREATED);
  const std::string list = RunList({EndedRun(), fresh});
  EXPECT_EQ(std::count(list.begin(), list.end(), '\n'), 3);
  EXPECT_THAT(list, AllOf(HasSubstr("ended: target reached"), HasSubstr("\nb")));
}

}  // namespace
}  // namespace hfopt::cli
