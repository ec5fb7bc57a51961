#include "client/cli/option_setter.h"

#include <string>

#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "hfopt/v1/run.pb.h"

namespace hfopt::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ErrorOf(const std::string& assignment) {
  v1::OptimizerOptions options;
  options.mutable_damping()->set_initial(7);
  const v1::OptimizerOptions before = options;
  const absl::Status status = SetOption(assignment, options);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << assignment << ": " << status;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equivalent(before, options)) << options.DebugString();
  return std::string(status.message());
}

TEST(OptionSetter, SetsNumbersOfEachType) {
  v1::OptimizerOptions options;
  EXPECT_TRUE(SetOption("conjugate_gradient.max_iterations=20", options).ok());
  EXPECT_TRUE(SetOption("samples.initial_gradient_examples = 10000000000", options).ok());
  EXPECT_TRUE(SetOption("damping.min=1e-9", options).ok());
  EXPECT_EQ(options.conjugate_gradient().max_iterations(), 20u);
  EXPECT_EQ(options.samples().initial_gradient_examples(), 10'000'000'000u);
  EXPECT_EQ(options.damping().min(), 1e-9);
}

TEST(OptionSetter, DistinguishesZeroFromAbsent) {
  v1::OptimizerOptions options;
  ASSERT_TRUE(SetOption("conjugate_gradient.progress_tolerance=0", options).ok());
  EXPECT_TRUE(options.conjugate_gradient().has_progress_tolerance());
  EXPECT_FALSE(options.conjugate_gradient().has_residual_tolerance());
}

TEST(OptionSetter, TakesEnumsByShortAndFullNames) {
  v1::OptimizerOptions options;
  ASSERT_TRUE(SetOption("preconditioner.lbfgs=frozen", options).ok());
  EXPECT_EQ(options.preconditioner().lbfgs(), v1::PreconditionerOptions::LBFGS_FROZEN);
  ASSERT_TRUE(SetOption("preconditioner.lbfgs=LBFGS_FLEXIBLE", options).ok());
  EXPECT_EQ(options.preconditioner().lbfgs(), v1::PreconditionerOptions::LBFGS_FLEXIBLE);
  ASSERT_TRUE(SetOption("preset=Published", options).ok());
  EXPECT_EQ(options.preset(), v1::OptimizerOptions::PRESET_PUBLISHED);
}

TEST(OptionSetter, ListsTheAllowedNames) {
  EXPECT_THAT(ErrorOf("dampin.initial=1"),
              AllOf(HasSubstr("\"dampin\""), HasSubstr("conjugate_gradient, preconditioner, damping")));
  EXPECT_THAT(ErrorOf("conjugate_gradient.max_iter=1"),
              AllOf(HasSubstr("\"max_iter\" in conjugate_gradient"), HasSubstr("max_iterations, progress_tolerance")));
  EXPECT_THAT(ErrorOf("damping=1"), AllOf(HasSubstr("group"), HasSubstr("initial, min, max")));
  EXPECT_THAT(ErrorOf("damping.rule=foo"),
              AllOf(HasSubstr("levenberg_marquardt, continuous, constant"), Not(HasSubstr("unspecified"))));
  EXPECT_THAT(ErrorOf("damping.rule=unspecified"), HasSubstr("allowed"));
}

TEST(OptionSetter, NamesBadValues) {
  EXPECT_THAT(ErrorOf("stop.max_iterations=-1"),
              AllOf(HasSubstr("stop.max_iterations is \"-1\""), HasSubstr("integer from 0")));
  EXPECT_THAT(ErrorOf("conjugate_gradient.max_iterations=4294967296"), HasSubstr("4294967295"));
  EXPECT_THAT(ErrorOf("damping.initial=fast"), HasSubstr("a number"));
  EXPECT_THAT(ErrorOf("damping.initial.x=1"), HasSubstr("single option"));
  EXPECT_THAT(ErrorOf("damping.initial"), HasSubstr("NAME=VALUE"));
  EXPECT_THAT(ErrorOf("=3"), HasSubstr("NAME=VALUE"));
}

TEST(OptionSetter, DescribesEveryOption) {
  const std::string text = DescribeOptions(*v1::OptimizerOptions::descriptor());
  EXPECT_THAT(text,
              AllOf(HasSubstr("  preset=accelerated|published|deterministic\n"), HasSubstr("  line_search.batch\n"),
                    HasSubstr("  preconditioner.lbfgs=none|frozen|flexible\n")));
}

}  // namespace
}  // namespace hfopt::cli
