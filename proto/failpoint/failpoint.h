#ifndef HFOPT_PROTO_FAILPOINT_FAILPOINT_H_
#define HFOPT_PROTO_FAILPOINT_FAILPOINT_H_

// Failpoints: places in server and client where a test can make the process crash, stop, wait or fail, by name. They are compiled in where
// the CMake option HFOPT_FAILPOINTS is on (presets dev, asan-ubsan and tsan); elsewhere the macros are nothing.
//
//     HFOPT_FAILPOINTS="checkpoint.rename=crash@3;worker.product=sleep(20)"
//
// in the environment of a process arms them, as FAILPOINTS does for the Rust crate `fail`: rules NAME=ACTION, NAME=ACTION(ARGUMENT), each with
// @K behind it if only the K-th passage (from 1) is meant. NAME may be * for all. Whatever a rule does, it first writes the line
// "failpoint NAME: ACTION" to standard error. Actions:
//
//     crash         SIGKILL to itself
//     stop          SIGSTOP to itself; goes on after SIGCONT
//     sleep(MS)     waits
//     error         the function returns INTERNAL; error(RESOURCE_EXHAUSTED) that code. Only where the table below says so.
//     print         nothing but the line
//
// Rules that cannot be understood end the process at its start.

#ifdef HFOPT_FAILPOINTS

#include <cstddef>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

// Statements. The second is for functions that return a Status or StatusOr, and for names that can fail.
#define HFOPT_FAILPOINT(name) ::hfopt::failpoint::Pass(::hfopt::failpoint::IndexOf(name, false)).IgnoreError()
#define HFOPT_FAILPOINT_OR_RETURN(name)                                                                            \
  if (::absl::Status hfopt_failpoint_status = ::hfopt::failpoint::Pass(::hfopt::failpoint::IndexOf(name, true)); \
      !hfopt_failpoint_status.ok()) {                                                                              \
    return hfopt_failpoint_status;                                                                                 \
  }                                                                                                                \
  static_assert(true)

namespace hfopt::failpoint {

struct Point {
  std::string_view name;
  bool can_fail;
  std::string_view where;
};

// All of them. tests/faults/run passes each.
inline constexpr Point kPoints[] = {
    // server/evaluation
    {"evaluation.dispatch", false, "a request has been handed to a worker's session"},
    {"evaluation.gradient", true, "a shard's gradient has been added up"},
    {"evaluation.product", true, "a shard's product has been added up"},
    {"evaluation.backtracking", true, "a shard's losses at CG iterates have been added up"},
    {"evaluation.line_search", true, "a shard's losses along a line have been added up"},
    {"session.hello", true, "a worker has introduced itself"},
    {"session.send_chunk", false, "a part of a vector is about to be written to a worker"},
    {"session.send_slot", false, "the header of a vector in shared memory is about to be written to a worker"},
    {"session.receive_chunk", true, "a part of an answer's vector has arrived"},
    {"session.receive_slot", true, "a vector of an answer has been taken out of shared memory"},
    {"session.answer", true, "an answer has arrived with all its vectors, and is not booked yet"},
    // server/run
    {"run.report", true, "an iteration's report is stored, its checkpoint is not"},
    {"run.checkpoint", true, "an iteration's checkpoint is stored, the run's record is not"},
    {"run.published", false, "an iteration is stored and has been told to watchers"},
    {"run.end", false, "the run has ended, which is not stored yet"},
    {"catalogue.write", true, "a row of the catalogue is about to be written"},
    {"checkpoint.rename", true, "a checkpoint is on the disk under its temporary name"},
    {"checkpoint.best", true, "a checkpoint has its name, but is not the best one yet"},
    {"checkpoint.rename_best", true, "the best checkpoint has its temporary name"},
    {"checkpoint.sync", true, "all names of a checkpoint are there, the directory is not synced"},
    {"checkpoint.prune", false, "a checkpoint is stored, those that it makes superfluous are still there"},
    {"journal.write", true, "an entry of the journal has begun, its vectors are not written"},
    {"journal.sync", true, "an entry of the journal is written and not synced"},
    // proto/wire
    {"file.write", true, "a tensor of a safetensors file is about to be written"},
    {"file.sync", true, "a safetensors file is written and not synced"},
    // client/cpp
    {"worker.hello", false, "the stream is open, Hello is not sent"},
    {"worker.welcome", false, "the worker is in session"},
    {"worker.attach", true, "shared memory was offered and is not attached; an error: it cannot be"},
    {"worker.receive_chunk", false, "a part of a vector has arrived"},
    {"worker.receive_slot", false, "a vector in shared memory has been announced"},
    {"worker.request", false, "a request has arrived"},
    {"worker.initial_parameters", true, "the initial parameters are computed"},
    {"worker.gradient", true, "a gradient is computed"},
    {"worker.product", true, "a product is computed"},
    {"worker.backtracking", true, "the loss at one of the points of a request, a CG iterate, is computed"},
    {"worker.line_search", true, "the loss at one of the points of a request, along a line, is computed"},
    {"worker.answer", false, "an answer is computed, nothing of it is sent"},
    {"worker.send_chunk", false, "a part of an answer's vector is about to be written"},
    {"worker.send_slot", false, "a vector of an answer is handed over in shared memory, its header is not sent"},
    {"worker.uploaded", false, "the vectors of an answer are sent, the answer itself is not"},
    {"worker.answered", false, "an answer is sent"},
    {"worker.finished", false, "the worker knows that the run has ended"},
};

// Its place in the table; does not compile for a name that is not there, or that has the other kind.
consteval size_t IndexOf(std::string_view name, bool can_fail) {
  size_t i = 0;
  while (kPoints[i].name != name || kPoints[i].can_fail != can_fail) ++i;
  return i;
}

// Does what the rules say for this passage. OK unless a rule is an error. Thread-safe.
absl::Status Pass(size_t point);

// Replaces the rules, and counts passages from 0 again: for tests in one process. INVALID_ARGUMENT for rules that cannot be understood,
// which then stay as they were.
absl::Status Configure(absl::string_view rules);

}  // namespace hfopt::failpoint

#else

#define HFOPT_FAILPOINT(name) static_cast<void>(0)
#define HFOPT_FAILPOINT_OR_RETURN(name) static_assert(true)

#endif  // HFOPT_FAILPOINTS

#endif  // HFOPT_PROTO_FAILPOINT_FAILPOINT_H_
