#ifndef HFOPT_SERVER_CONVERT_ENUM_TABLE_H_
#define HFOPT_SERVER_CONVERT_ENUM_TABLE_H_

#include <cstddef>
#include <optional>

namespace hfopt::server {

// One row of a table between an enum of core and one of proto, which counts from UNSPECIFIED and may hold numbers
// unknown to us.
template <typename Core, typename Proto>
struct EnumRow {
  Core core;
  Proto proto;
};

// The table has a row for every value of Core.
template <typename Core, typename Proto, size_t N>
Proto ToProto(const EnumRow<Core, Proto> (&table)[N], Core value) {
  for (const auto& row : table) {
    if (row.core == value) return row.proto;
  }
  return Proto{};
}

template <typename Core, typename Proto, size_t N>
std::optional<Core> FromProto(const EnumRow<Core, Proto> (&table)[N], int value) {
  for (const auto& row : table) {
    if (row.proto == value) return row.core;
  }
  return std::nullopt;
}

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_CONVERT_ENUM_TABLE_H_
