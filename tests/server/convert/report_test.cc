#include "server/convert/report.h"

#include <limits>
#include <set>
#include <string>

#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"

namespace hfopt::server {
namespace {

// Every value of a proto enum but UNSPECIFIED converts to a core value of the same name and back.
template <typename ProtoEnum, typename FromProto, typename ToProto, typename NameOf>
void ExpectSameValues(const google::protobuf::EnumDescriptor& type, const std::string& prefix, FromProto from,
                      ToProto to, NameOf name_of) {
  for (int i = 0; i < type.value_count(); ++i) {
    const auto proto = static_cast<ProtoEnum>(type.value(i)->number());
    const auto core = from(proto);
    if (type.value(i)->number() == 0) {
      EXPECT_EQ(core.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ASSERT_TRUE(core.ok()) << core.status();
    EXPECT_EQ(prefix + std::string(name_of(*core)), type.value(i)->name());
    EXPECT_EQ(to(*core), proto);
  }
  EXPECT_EQ(from(static_cast<ProtoEnum>(99)).status().code(), absl::StatusCode::kInvalidArgument);
  // core numbers its values 0, 1, ... and names the first that does not exist "UNKNOWN".
  using Core = typename decltype(from(ProtoEnum{}))::value_type;
  int core_values = 0;
  while (name_of(static_cast<Core>(core_values)) != "UNKNOWN") ++core_values;
  EXPECT_EQ(core_values, type.value_count() - 1);
}

TEST(ReportConversion, CgStopsAreTheSame) {
  ExpectSameValues<v1::CgStop>(*v1::CgStop_descriptor(), "CG_STOP_", CgStopFromProto, CgStopToProto, CgStopName);
}

TEST(ReportConversion, TerminationReasonsAreTheSame) {
  ExpectSameValues<v1::Termination::Reason>(*v1::Termination::Reason_descriptor(), "REASON_",
                                            TerminationReasonFromProto, TerminationReasonToProto,
                                            TerminationReasonName);
}

TEST(ReportConversion, TerminationKeepsItsDetail) {
  const Termination termination{TerminationReason::kProductBudget, "1200 Gauss-Newton products"};
  const auto back = TerminationFromProto(TerminationToProto(termination));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->reason, termination.reason);
  EXPECT_EQ(back->detail, termination.detail);
  EXPECT_EQ(TerminationFromProto({}).status().message(),
            "termination.reason is 0, which is no reason known to this version");
}

TEST(ReportConversion, CostSurvivesTheRoundTrip) {
  const Cost cost{1, 2, 3, 4, 5, 6, 7, 8, 9};
  const v1::Cost message = CostToProto(cost, 10);
  EXPECT_EQ(CostFromProto(message).value(), cost);
  EXPECT_EQ(message.example_passes(), (3. * 2 + 4 + 4 * 6 + 8) / 10);
  EXPECT_EQ(CostToProto(cost, 0).example_passes(), 0);
}

TEST(ReportConversion, RefusesACountAboveWhatCoreHolds) {
  v1::Cost message;
  message.set_products(uint64_t{1} << 63);
  EXPECT_EQ(CostFromProto(message).status().message(),
            "cost.products is 9223372036854775808; allowed: up to 9223372036854775807");
}

TEST(ReportConversion, EveryFieldOfCoreArrives) {
  const IterationReport report = {.iteration = 1,
                                  .accepted = true,
                                  .training_loss = 2,
                                  .held_out_loss = 3,
                                  .metrics = {{"frame_error", 0.5}},
                                  .gradient_norm = 4,
                                  .gradient_noise = 5,
                                  .damping = 6,
                                  .next_damping = 7,
                                  .reduction_ratio = 8,
                                  .cg_iterations = 9,
                                  .cg_stop = CgStop::kNoise,
                                  .chosen_iterate = 10,
                                  .step_length = 11,
                                  .losses_evaluated = 12,
                                  .gradient_examples = 13,
                                  .curvature_examples = 14,
                                  .held_out_examples = 15,
                                  .pairs_kept = 16,
                                  .pairs_skipped = 17,
                                  .cost = {.gradients = 18}};
  const v1::IterationReport message = ReportToProto(report, 100);
  EXPECT_EQ(message.metrics().at("frame_error"), 0.5);
  EXPECT_EQ(message.cg_stop(), v1::CG_STOP_NOISE);
  EXPECT_EQ(message.cost().gradients(), 18);
  const std::set<std::string> by_server = {"seconds", "end_time", "reissued", "hedged"};
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const auto* field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) continue;  // metrics
    EXPECT_EQ(message.GetReflection()->HasField(message, field), !by_server.contains(field->name())) << field->name();
  }
  EXPECT_EQ(message.iteration(), 1u);
  EXPECT_TRUE(message.accepted());
  EXPECT_EQ(message.training_loss(), 2);
  EXPECT_EQ(message.held_out_loss(), 3);
  EXPECT_EQ(message.gradient_norm(), 4);
  EXPECT_EQ(message.gradient_noise(), 5);
  EXPECT_EQ(message.damping(), 6);
  EXPECT_EQ(message.next_damping(), 7);
  EXPECT_EQ(message.reduction_ratio(), 8);
  EXPECT_EQ(message.cg_iterations(), 9u);
  EXPECT_EQ(message.chosen_iterate(), 10u);
  EXPECT_EQ(message.step_length(), 11);
  EXPECT_EQ(message.losses_evaluated(), 12u);
  EXPECT_EQ(message.gradient_examples(), 13u);
  EXPECT_EQ(message.curvature_examples(), 14u);
  EXPECT_EQ(message.held_out_examples(), 15u);
  EXPECT_EQ(message.pairs_kept(), 16u);
  EXPECT_EQ(message.pairs_skipped(), 17u);
}

}  // namespace
}  // namespace hfopt::server
