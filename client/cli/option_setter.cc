#include "client/cli/option_setter.h"

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/protobuf/descriptor.h"

namespace hfopt::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// "LBFGS_FROZEN" -> "frozen": the value 0 of every enum is PREFIX_UNSPECIFIED.
std::string ShortName(const EnumValueDescriptor& value) {
  const std::string& zero = value.type()->value(0)->name();
  absl::string_view name = value.name();
  absl::ConsumePrefix(&name, absl::StripSuffix(zero, "UNSPECIFIED"));
  return absl::AsciiStrToLower(name);
}

std::vector<std::string> ShortNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 1; i < type.value_count(); ++i) names.push_back(ShortName(*type.value(i)));
  return names;
}

const EnumValueDescriptor* FindValue(const EnumDescriptor& type, const std::string& text) {
  for (int i = 1; i < type.value_count(); ++i) {
    const EnumValueDescriptor* const value = type.value(i);
    if (absl::EqualsIgnoreCase(text, ShortName(*value)) || absl::EqualsIgnoreCase(text, value->name())) return value;
  }
  return nullptr;
}

std::string FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return absl::StrJoin(names, ", ");
}

// Parses into Number and passes it to `set`.
template <typename Number, typename Set>
absl::Status SetInteger(const std::string& name, const std::string& value, Set set) {
  Number number;
  if (!absl::SimpleAtoi(value, &number)) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is \"", value, "\"; allowed: an integer from ",
                                                   std::numeric_limits<Number>::min(), " to ",
                                                   std::numeric_limits<Number>::max()));
  }
  set(number);
  return absl::OkStatus();
}

absl::Status SetField(const std::string& name, const std::string& value, const FieldDescriptor& field,
                      Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return SetInteger<uint32_t>(name, value, [&](uint32_t v) { reflection.SetUInt32(&message, &field, v); });
    case FieldDescriptor::CPPTYPE_UINT64:
      return SetInteger<uint64_t>(name, value, [&](uint64_t v) { reflection.SetUInt64(&message, &field, v); });
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double number;
      if (!absl::SimpleAtod(value, &number)) {
        return absl::InvalidArgumentError(absl::StrCat(name, " is \"", value, "\"; allowed: a number"));
      }
      reflection.SetDouble(&message, &field, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const EnumValueDescriptor* const found = FindValue(*field.enum_type(), value);
      if (found == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, " is \"", value, "\"; allowed: ", absl::StrJoin(ShortNames(*field.enum_type()), ", ")));
      }
      reflection.SetEnum(&message, &field, found);
      return absl::OkStatus();
    }
    default:
      return absl::UnimplementedError(absl::StrCat(name, " is of the type ", field.cpp_type_name()));
  }
}

}  // namespace

absl::Status SetOption(const std::string& assignment, Message& options) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(assignment, absl::MaxSplits('=', 1));
  const std::string name(absl::StripAsciiWhitespace(parts.first));
  const std::string value(absl::StripAsciiWhitespace(parts.second));
  if (name.empty() || value.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", assignment, "\" is no assignment; write NAME=VALUE, for example damping.initial=1"));
  }

  Message* message = &options;
  std::string path;
  const std::vector<std::string> steps = absl::StrSplit(name, '.');
  for (size_t i = 0; i < steps.size(); ++i) {
    const Descriptor& type = *message->GetDescriptor();
    const FieldDescriptor* const field = type.FindFieldByName(steps[i]);
    if (field == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("there is no option \"", steps[i], "\"",
                                                     path.empty() ? "" : absl::StrCat(" in ", path),
                                                     "; allowed: ", FieldNames(type)));
    }
    absl::StrAppend(&path, path.empty() ? "" : ".", steps[i]);
    const bool is_section = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const bool is_last = i + 1 == steps.size();
    if (is_section && is_last) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is a group of options; name one of them: ", FieldNames(*field->message_type())));
    }
    if (!is_section && !is_last) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is a single option; nothing is inside it"));
    }
    if (is_last) return SetField(path, value, *field, *message);
    message = message->GetReflection()->MutableMessage(message, field);
  }
  return absl::OkStatus();
}

std::string DescribeOptions(const Descriptor& options, const std::string& prefix) {
  std::string text;
  for (int i = 0; i < options.field_count(); ++i) {
    const FieldDescriptor& field = *options.field(i);
    const std::string name = absl::StrCat(prefix, field.name());
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      absl::StrAppend(&text, DescribeOptions(*field.message_type(), absl::StrCat(name, ".")));
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      absl::StrAppend(&text, "  ", name, "=", absl::StrJoin(ShortNames(*field.enum_type()), "|"), "\n");
    } else {
      absl::StrAppend(&text, "  ", name, "\n");
    }
  }
  return text;
}

}  // namespace hfopt::cli
