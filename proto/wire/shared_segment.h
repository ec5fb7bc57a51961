#ifndef HFOPT_PROTO_WIRE_SHARED_SEGMENT_H_
#define HFOPT_PROTO_WIRE_SHARED_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hfopt/v1/vector.pb.h"

namespace hfopt::wire {

// Names this machine and its namespace of process ids, for Hello.host: two processes with equal names can find each other's
// descriptors. Empty where that cannot be known.
std::string HostName();

// Memory for vectors that a server and a worker of one machine have mapped: hfopt.v1.SharedSegment, where its layout and the states
// of a slot are told. The memory has no name in any file system, so it goes with the last process that has it mapped, however that
// process ends; and its size is sealed, so that neither can cut it off under the other. Thread-safe. Always held by a shared_ptr;
// slots that are out keep the segment mapped.
class SharedSegment : public std::enable_shared_from_this<SharedSegment> {
 public:
  enum class Peer { kReads, kWrites };

  // Memory of this process, of which pages come into being when they are written. A peer that reads cannot map it to write.
  // RESOURCE_EXHAUSTED or UNAVAILABLE, with the reason, where the system does not give it.
  static absl::StatusOr<std::shared_ptr<SharedSegment>> Create(size_t slot_bytes, uint32_t slots, Peer peer);

  // Memory of another process, which must be on this machine. `peer` is what the creator of the segment meant us for. NOT_FOUND,
  // PERMISSION_DENIED, FAILED_PRECONDITION when what is there is not what was described: nothing of it was used then.
  static absl::StatusOr<std::shared_ptr<SharedSegment>> Attach(const v1::SharedSegment& description, Peer peer);

  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  // For Attach, in another process, while this one lives and has the descriptor open.
  v1::SharedSegment Describe() const;
  // When no more processes are to attach.
  void CloseDescriptor();

  // The slot that begins at `memory`, if it is one of this segment's.
  std::optional<uint32_t> SlotOf(const void* memory) const;

  // --- The side that writes.

  // The first free slot; null when there is none. It is not given out again before its last holder here lets go, and, if it was handed
  // over, the reader as well: what is held may be sent once more when a session breaks.
  std::shared_ptr<void> Acquire();
  // Lets the reader take an acquired slot.
  void HandOver(uint32_t slot);

  // --- The side that reads.

  // A slot that was handed over; it is freed once the last holder lets go. FAILED_PRECONDITION when it was not.
  absl::StatusOr<std::shared_ptr<void>> Take(uint32_t slot);
  // A slot of which the writer decides how long it is kept. OUT_OF_RANGE when there is no such slot.
  absl::StatusOr<std::shared_ptr<void>> Look(uint32_t slot);

 private:
  using State = std::atomic<uint32_t>;

  SharedSegment(int descriptor, char* base, size_t slot_bytes, uint32_t slots);
  State& state(uint32_t slot) const;
  char* data(uint32_t slot) const;

  std::atomic<int> descriptor_;  // -1 where attached or closed
  char* const base_;
  const size_t slot_bytes_;
  const uint32_t slots_;
  const std::unique_ptr<std::atomic<bool>[]> held_;  // by this process, as the writer
};

}  // namespace hfopt::wire

#endif  // HFOPT_PROTO_WIRE_SHARED_SEGMENT_H_
