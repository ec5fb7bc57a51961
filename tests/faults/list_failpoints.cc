// hfopt_list_failpoints: the table of proto/failpoint/failpoint.h, one point a line: name, "fails" or "-", where it is; with tabs between.

#include <iostream>

#include "proto/failpoint/failpoint.h"

int main() {
  for (const auto& point : hfopt::failpoint::kPoints) {
    std::cout << point.name << '\t' << (point.can_fail ? "fails" : "-") << '\t' << point.where << '\n';
  }
}
