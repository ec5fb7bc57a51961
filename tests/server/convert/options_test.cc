#include "server/convert/options.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"

namespace hfopt::server {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;
using Preset = v1::OptimizerOptions::Preset;

constexpr Preset kPresets[] = {v1::OptimizerOptions::PRESET_ACCELERATED, v1::OptimizerOptions::PRESET_PUBLISHED,
                               v1::OptimizerOptions::PRESET_DETERMINISTIC};

v1::OptimizerOptions OfPreset(Preset preset) {
  v1::OptimizerOptions message;
  message.set_preset(preset);
  return message;
}

v1::OptimizerOptions AllFields(Preset preset) {
  return OptionsToProto(OptionsFromProto(OfPreset(preset)).value(), preset);
}

void ForEachField(const std::function<void(const FieldDescriptor& section, const FieldDescriptor& field)>& visit) {
  const auto& options = *v1::OptimizerOptions::descriptor();
  for (int i = 0; i < options.field_count(); ++i) {
    const FieldDescriptor& section = *options.field(i);
    if (section.message_type() == nullptr) continue;  // the preset
    for (int j = 0; j < section.message_type()->field_count(); ++j) visit(section, *section.message_type()->field(j));
  }
}

// Settings of a field to try: for any field one of these is valid and not the preset's value.
std::vector<std::function<void(Message*)>> Candidates(const FieldDescriptor& field) {
  std::vector<std::function<void(Message*)>> candidates;
  const auto add = [&](auto setter, auto value) {
    candidates.push_back([&field, setter, value](Message* m) { (m->GetReflection()->*setter)(m, &field, value); });
  };
  using R = google::protobuf::Reflection;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_DOUBLE:
      for (const double value : {0.3, 0.7, 1.7, 1e-3}) add(&R::SetDouble, value);
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      for (const uint32_t value : {8u, 6u}) add(&R::SetUInt32, value);
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      for (const uint64_t value : {uint64_t{1} << 40, uint64_t{7}}) add(&R::SetUInt64, value);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      for (int i = 1; i < field.enum_type()->value_count(); ++i)
        add(&R::SetEnumValue, field.enum_type()->value(i)->number());
      break;
    default:
      ADD_FAILURE() << field.full_name() << " is of a type without candidates";
  }
  return candidates;
}

// The message with one field set.
v1::OptimizerOptions With(v1::OptimizerOptions message, const FieldDescriptor& section,
                          const std::function<void(Message*)>& set) {
  set(message.GetReflection()->MutableMessage(&message, &section));
  return message;
}

TEST(OptionsConversion, EveryFieldOfEveryPresetSurvivesTheRoundTrip) {
  int fields = 0;
  for (const Preset preset : kPresets) {
    const v1::OptimizerOptions defaults = AllFields(preset);
    ForEachField([&](const FieldDescriptor& section, const FieldDescriptor& field) {
      int tested = 0;
      for (const auto& set : Candidates(field)) {
        const v1::OptimizerOptions expected = With(defaults, section, set);
        if (MessageDifferencer::Equals(expected, defaults)) continue;
        const auto options = OptionsFromProto(With(OfPreset(preset), section, set));
        if (!options.ok()) continue;
        EXPECT_TRUE(MessageDifferencer::Equals(OptionsToProto(*options, preset), expected))
            << field.full_name() << ":\n"
            << OptionsToProto(*options, preset).DebugString();
        ++tested;
      }
      EXPECT_GT(tested, 0) << field.full_name() << ": no candidate is valid and differs from the preset";
      ++fields;
    });
  }
  EXPECT_EQ(fields, 3 * 43);
}

TEST(OptionsConversion, FillsInEveryField) {
  const v1::OptimizerOptions all = AllFields(v1::OptimizerOptions::PRESET_PUBLISHED);
  ForEachField([&](const FieldDescriptor& section, const FieldDescriptor& field) {
    const Message& m = all.GetReflection()->GetMessage(all, &section);
    EXPECT_TRUE(m.GetReflection()->HasField(m, &field)) << field.full_name();
  });
}

// Does not compile when core gets a field that this list, and so perhaps proto, lacks.
TEST(OptionsConversion, CoreHasNoFieldThatProtoLacks) {
  const OptimizerOptions o;
  [[maybe_unused]] const auto& [a1, a2, a3, a4, a5, a6, a7, a8] = o.conjugate_gradient;
  EXPECT_EQ(v1::ConjugateGradientOptions::descriptor()->field_count(), 8);
  [[maybe_unused]] const auto& [b1, b2, b3, b4, b5, b6] = o.preconditioner;
  EXPECT_EQ(v1::PreconditionerOptions::descriptor()->field_count(), 6);
  [[maybe_unused]] const auto& [c1, c2, c3, c4, c5, c6, c7] = o.damping;
  EXPECT_EQ(v1::DampingOptions::descriptor()->field_count(), 7);
  [[maybe_unused]] const auto& [d1, d2, d3, d4, d5, d6, d7, d8, d9] = o.samples;
  EXPECT_EQ(v1::SampleOptions::descriptor()->field_count(), 9);
  [[maybe_unused]] const auto& [e1, e2, e3, e4, e5] = o.line_search;
  EXPECT_EQ(v1::LineSearchOptions::descriptor()->field_count(), 5);
  [[maybe_unused]] const auto& [f1, f2, f3, f4, f5, f6, f7, f8] = o.stop;
  EXPECT_EQ(v1::StopOptions::descriptor()->field_count(), 8);
  [[maybe_unused]] const auto& [g1, g2, g3, g4, g5, g6] = o;
  EXPECT_EQ(v1::OptimizerOptions::descriptor()->field_count(), 1 + 6);
}

TEST(OptionsConversion, StartsFromThePreset) {
  EXPECT_EQ(OptionsFromProto({})->conjugate_gradient.max_iterations,
            OptimizerOptions::Accelerated().conjugate_gradient.max_iterations);
  EXPECT_EQ(OptionsFromProto(OfPreset(v1::OptimizerOptions::PRESET_PUBLISHED))->samples.curvature_fraction,
            OptimizerOptions::Published().samples.curvature_fraction);
  EXPECT_EQ(OptionsFromProto(OfPreset(v1::OptimizerOptions::PRESET_DETERMINISTIC))->preconditioner.lbfgs,
            OptimizerOptions::Deterministic().preconditioner.lbfgs);
  EXPECT_EQ(OptionsToProto({}, v1::OptimizerOptions::PRESET_UNSPECIFIED).preset(),
            v1::OptimizerOptions::PRESET_ACCELERATED);
}

TEST(OptionsConversion, ExplicitZeroOverridesThePreset) {
  v1::OptimizerOptions message;
  message.mutable_conjugate_gradient()->set_warm_start_decay(0);
  EXPECT_EQ(OptionsFromProto(message)->conjugate_gradient.warm_start_decay, 0);
}

TEST(OptionsConversion, RefusesWithFieldValueAndRange) {
  struct Case {
    std::function<void(v1::OptimizerOptions&)> set;
    const char* message;
  };
  const Case cases[] = {
      {[](auto& o) { o.mutable_conjugate_gradient()->set_max_iterations(0); },
       "optimizer.conjugate_gradient.max_iterations is 0; allowed: 1 to 1e+06"},
      {[](auto& o) { o.mutable_line_search()->set_batch(4294967295); },
       "optimizer.line_search.batch is 4294967295; allowed: up to 2147483647"},
      {[](auto& o) { o.mutable_stop()->set_max_products(uint64_t{1} << 63); },
       "optimizer.stop.max_products is 9223372036854775808; allowed: up to 9223372036854775807"},
      {[](auto& o) { o.mutable_damping()->set_initial(std::nan("")); }, "optimizer.damping.initial is nan; allowed: "},
      {[](auto& o) { o.mutable_damping()->set_rule(static_cast<v1::DampingOptions::Rule>(9)); },
       "optimizer.damping.rule is 9; allowed: RULE_LEVENBERG_MARQUARDT, RULE_CONTINUOUS, RULE_CONSTANT, RULE_CONTINUOUS_BY_SHARE"},
      {[](auto& o) { o.mutable_preconditioner()->set_diagonal(static_cast<v1::PreconditionerOptions::Diagonal>(-1)); },
       "optimizer.preconditioner.diagonal is -1; allowed: DIAGONAL_NONE, DIAGONAL_SQUARED_GRADIENTS, DIAGONAL_SQUARED_GRADIENTS_IF_OFFERED"},
      {[](auto& o) { o.set_preset(static_cast<Preset>(4)); }, "optimizer.preset is 4; allowed: PRESET_ACCELERATED, "},
  };
  for (const Case& c : cases) {
    v1::OptimizerOptions message;
    c.set(message);
    const auto options = OptionsFromProto(message);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(options.status().message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace hfopt::server
