#include "server/convert/options.h"

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "server/convert/enum_table.h"

namespace hfopt::server {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// One table for each enum, found by the type of core.
const auto& TableOf(LbfgsMode) {
  using P = v1::PreconditionerOptions;
  static constexpr EnumRow<LbfgsMode, P::Lbfgs> kTable[] = {{LbfgsMode::kNone, P::LBFGS_NONE},
                                                            {LbfgsMode::kFrozen, P::LBFGS_FROZEN},
                                                            {LbfgsMode::kFlexible, P::LBFGS_FLEXIBLE}};
  return kTable;
}

const auto& TableOf(DiagonalMode) {
  using P = v1::PreconditionerOptions;
  static constexpr EnumRow<DiagonalMode, P::Diagonal> kTable[] = {
      {DiagonalMode::kNone, P::DIAGONAL_NONE},
      {DiagonalMode::kSquaredGradients, P::DIAGONAL_SQUARED_GRADIENTS},
      {DiagonalMode::kSquaredGradientsIfOffered, P::DIAGONAL_SQUARED_GRADIENTS_IF_OFFERED}};
  return kTable;
}

const auto& TableOf(DampingRule) {
  using P = v1::DampingOptions;
  static constexpr EnumRow<DampingRule, P::Rule> kTable[] = {
      {DampingRule::kLevenbergMarquardt, P::RULE_LEVENBERG_MARQUARDT},
      {DampingRule::kContinuous, P::RULE_CONTINUOUS},
      {DampingRule::kContinuousByShare, P::RULE_CONTINUOUS_BY_SHARE},
      {DampingRule::kConstant, P::RULE_CONSTANT}};
  return kTable;
}

const auto& TableOf(ActualReduction) {
  using P = v1::DampingOptions;
  static constexpr EnumRow<ActualReduction, P::ActualReduction> kTable[] = {
      {ActualReduction::kHeldOutAtLast, P::ACTUAL_REDUCTION_HELD_OUT_AT_LAST},
      {ActualReduction::kHeldOutAtChosen, P::ACTUAL_REDUCTION_HELD_OUT_AT_CHOSEN},
      {ActualReduction::kGradientSampleAtLast, P::ACTUAL_REDUCTION_GRADIENT_SAMPLE_AT_LAST}};
  return kTable;
}

const auto& TableOf(PredictedReduction) {
  using P = v1::DampingOptions;
  static constexpr EnumRow<PredictedReduction, P::PredictedReduction> kTable[] = {
      {PredictedReduction::kDamped, P::PREDICTED_REDUCTION_DAMPED},
      {PredictedReduction::kUndamped, P::PREDICTED_REDUCTION_UNDAMPED}};
  return kTable;
}

const auto& TableOf(SampleGrowth) {
  using P = v1::SampleOptions;
  static constexpr EnumRow<SampleGrowth, P::Growth> kTable[] = {{SampleGrowth::kGeometric, P::GROWTH_GEOMETRIC},
                                                                {SampleGrowth::kVariance, P::GROWTH_VARIANCE},
                                                                {SampleGrowth::kDamping, P::GROWTH_DAMPING}};
  return kTable;
}

// Every option once: its section and name in proto, its place in core. Both directions walk this list, so they cannot
// disagree. Options is OptimizerOptions, const or not.
template <typename Options, typename Visitor>
void VisitFields(Options& options, Visitor& visit) {
  auto& cg = options.conjugate_gradient;
  visit("conjugate_gradient", "max_iterations", cg.max_iterations);
  visit("conjugate_gradient", "initial_max_iterations", cg.initial_max_iterations);
  visit("conjugate_gradient", "progress_tolerance", cg.progress_tolerance);
  visit("conjugate_gradient", "residual_tolerance", cg.residual_tolerance);
  visit("conjugate_gradient", "noise_factor", cg.noise_factor);
  visit("conjugate_gradient", "warm_start_decay", cg.warm_start_decay);
  visit("conjugate_gradient", "kept_iterate_ratio", cg.kept_iterate_ratio);
  visit("conjugate_gradient", "orthogonalization_depth", cg.orthogonalization_depth);

  auto& preconditioner = options.preconditioner;
  visit("preconditioner", "lbfgs", preconditioner.lbfgs);
  visit("preconditioner", "memory", preconditioner.memory);
  visit("preconditioner", "diagonal", preconditioner.diagonal);
  visit("preconditioner", "diagonal_exponent", preconditioner.diagonal_exponent);
  visit("preconditioner", "diagonal_examples", preconditioner.diagonal_examples);
  visit("preconditioner", "min_pair_curvature", preconditioner.min_pair_curvature);

  auto& damping = options.damping;
  visit("damping", "rule", damping.rule);
  visit("damping", "initial", damping.initial);
  visit("damping", "min", damping.min);
  visit("damping", "max", damping.max);
  visit("damping", "target_ratio", damping.target_ratio);
  visit("damping", "actual_reduction", damping.actual_reduction);
  visit("damping", "predicted_reduction", damping.predicted_reduction);

  auto& samples = options.samples;
  visit("samples", "growth", samples.growth);
  visit("samples", "initial_gradient_examples", samples.initial_gradient_examples);
  visit("samples", "growth_factor", samples.growth_factor);
  visit("samples", "variance_tolerance", samples.variance_tolerance);
  visit("samples", "curvature_fraction", samples.curvature_fraction);
  visit("samples", "min_curvature_examples", samples.min_curvature_examples);
  visit("samples", "held_out_fraction", samples.held_out_fraction);
  visit("samples", "min_held_out_examples", samples.min_held_out_examples);
  visit("samples", "sub_batches", samples.sub_batches);

  auto& line_search = options.line_search;
  visit("line_search", "sufficient_decrease", line_search.sufficient_decrease);
  visit("line_search", "shrink", line_search.shrink);
  visit("line_search", "max_tries", line_search.max_tries);
  visit("line_search", "batch", line_search.batch);
  visit("line_search", "rescue_tries", line_search.rescue_tries);

  auto& stop = options.stop;
  visit("stop", "max_iterations", stop.max_iterations);
  visit("stop", "max_products", stop.max_products);
  visit("stop", "max_example_passes", stop.max_example_passes);
  visit("stop", "target_loss", stop.target_loss);
  visit("stop", "patience", stop.patience);
  visit("stop", "min_improvement", stop.min_improvement);
  visit("stop", "max_rejections", stop.max_rejections);
  visit("stop", "gradient_tolerance", stop.gradient_tolerance);
}

// int is uint32 in proto, int64_t is uint64.
template <typename T>
inline constexpr bool kIsCount = std::is_same_v<T, int> || std::is_same_v<T, int64_t>;

// Overrides options by the fields of a message that are present. Keeps the first error.
class Reader {
 public:
  explicit Reader(const v1::OptimizerOptions& message) : message_(message) {}

  template <typename T>
  void operator()(const char* section_name, const char* name, T& value) {
    const Message& section =
        message_.GetReflection()->GetMessage(message_, message_.GetDescriptor()->FindFieldByName(section_name));
    const auto& reflection = *section.GetReflection();
    const FieldDescriptor* field = section.GetDescriptor()->FindFieldByName(name);
    if (!status_.ok() || !reflection.HasField(section, field)) return;
    if constexpr (std::is_same_v<T, double>) {
      value = reflection.GetDouble(section, field);
    } else if constexpr (kIsCount<T>) {
      uint64_t count = 0;
      if constexpr (std::is_same_v<T, int>) {
        count = reflection.GetUInt32(section, field);
      } else {
        count = reflection.GetUInt64(section, field);
      }
      constexpr uint64_t kMax = std::numeric_limits<T>::max();
      if (count > kMax) return Refuse(section_name, name, count, absl::StrCat("up to ", kMax));
      value = static_cast<T>(count);
    } else {
      const int number = reflection.GetEnumValue(section, field);
      const auto known = FromProto(TableOf(value), number);
      if (!known) return Refuse(section_name, name, number, NamesOf(*field->enum_type()));
      value = *known;
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  template <typename Number>
  void Refuse(const char* section, const char* name, Number number, const std::string& allowed) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("optimizer.", section, ".", name, " is ", number, "; allowed: ", allowed));
  }

  static std::string NamesOf(const google::protobuf::EnumDescriptor& type) {
    std::vector<std::string> names;
    for (int i = 1; i < type.value_count(); ++i) names.push_back(type.value(i)->name());  // 0 is UNSPECIFIED
    return absl::StrJoin(names, ", ");
  }

  const v1::OptimizerOptions& message_;
  absl::Status status_;
};

// Fills every field of a message.
class Writer {
 public:
  explicit Writer(v1::OptimizerOptions& message) : message_(message) {}

  template <typename T>
  void operator()(const char* section_name, const char* name, const T& value) {
    Message* section =
        message_.GetReflection()->MutableMessage(&message_, message_.GetDescriptor()->FindFieldByName(section_name));
    const auto& reflection = *section->GetReflection();
    const FieldDescriptor* field = section->GetDescriptor()->FindFieldByName(name);
    if constexpr (std::is_same_v<T, double>) {
      reflection.SetDouble(section, field, value);
    } else if constexpr (std::is_same_v<T, int>) {
      reflection.SetUInt32(section, field, value);
    } else if constexpr (std::is_same_v<T, int64_t>) {
      reflection.SetUInt64(section, field, value);
    } else {
      reflection.SetEnumValue(section, field, ToProto(TableOf(value), value));
    }
  }

 private:
  v1::OptimizerOptions& message_;
};

absl::StatusOr<OptimizerOptions> OptionsOfPreset(v1::OptimizerOptions::Preset preset) {
  switch (preset) {
    case v1::OptimizerOptions::PRESET_UNSPECIFIED:
    case v1::OptimizerOptions::PRESET_ACCELERATED:
      return OptimizerOptions::Accelerated();
    case v1::OptimizerOptions::PRESET_PUBLISHED:
      return OptimizerOptions::Published();
    case v1::OptimizerOptions::PRESET_DETERMINISTIC:
      return OptimizerOptions::Deterministic();
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "optimizer.preset is ", preset, "; allowed: PRESET_ACCELERATED, PRESET_PUBLISHED, PRESET_DETERMINISTIC"));
  }
}

}  // namespace

absl::StatusOr<OptimizerOptions> OptionsFromProto(const v1::OptimizerOptions& message) {
  HFOPT_ASSIGN_OR_RETURN(OptimizerOptions options, OptionsOfPreset(message.preset()));
  Reader reader(message);
  VisitFields(options, reader);
  HFOPT_RETURN_IF_ERROR(reader.status());
  HFOPT_RETURN_IF_ERROR(options.Validate());
  return options;
}

v1::OptimizerOptions OptionsToProto(const OptimizerOptions& options, v1::OptimizerOptions::Preset preset) {
  v1::OptimizerOptions message;
  message.set_preset(preset == v1::OptimizerOptions::PRESET_UNSPECIFIED ? v1::OptimizerOptions::PRESET_ACCELERATED
                                                                        : preset);
  Writer writer(message);
  VisitFields(options, writer);
  return message;
}

}  // namespace hfopt::server
