#include "proto/wire/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hfopt::wire {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kTokenBytes = 16;
constexpr size_t kStatesBegin = 64;
constexpr uint32_t kMostSlots = (kPage - kStatesBegin) / sizeof(uint32_t);
constexpr size_t kMostBytes = size_t{1} << 46;  // half of what a process can address

// States of a slot.
constexpr uint32_t kFree = 0, kWriting = 1, kHandedOver = 2, kReading = 3;

static_assert(std::atomic<uint32_t>::is_always_lock_free, "a lock would not be shared");

size_t Stride(size_t slot_bytes) { return (slot_bytes + kPage - 1) / kPage * kPage; }
size_t SegmentBytes(size_t slot_bytes, uint32_t slots) { return kPage + Stride(slot_bytes) * slots; }

absl::Status CheckSizes(uint64_t slot_bytes, uint64_t slots) {
  if (slots == 0 || slots > kMostSlots || slot_bytes == 0 || slot_bytes > kMostBytes / slots) {
    return absl::InvalidArgumentError(absl::StrCat("a shared segment of ", slots, " slots of ", slot_bytes, " bytes"));
  }
  return absl::OkStatus();
}

// Closes the descriptor unless released.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace

std::string HostName() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  char processes[64];
  const ssize_t size = readlink("/proc/self/ns/pid", processes, sizeof processes);
  if (boot_id.empty() || size <= 0) return "";
  return absl::StrCat(boot_id, "/", absl::string_view(processes, size));
}

absl::StatusOr<std::shared_ptr<SharedSegment>> SharedSegment::Create(size_t slot_bytes, uint32_t slots, Peer peer) {
  if (absl::Status sizes = CheckSizes(slot_bytes, slots); !sizes.ok()) return sizes;
  const size_t bytes = SegmentBytes(slot_bytes, slots);
  Descriptor fd(memfd_create("hfopt-vectors", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return absl::ErrnoToStatus(errno, "no shared memory: memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("no shared memory of ", bytes, " bytes"));
  }
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (base == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("no shared memory of ", bytes, " bytes: mmap"));
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (peer == Peer::kReads) seals |= F_SEAL_FUTURE_WRITE;
  const bool ready = getrandom(base, kTokenBytes, 0) == kTokenBytes && fcntl(fd.get(), F_ADD_SEALS, seals) == 0;
  const int error = errno;
  std::shared_ptr<SharedSegment> segment(
      new SharedSegment(fd.release(), static_cast<char*>(base), slot_bytes, slots));  // unmaps when it goes
  if (!ready) return absl::ErrnoToStatus(error, "no shared memory: cannot seal it");
  return segment;
}

absl::StatusOr<std::shared_ptr<SharedSegment>> SharedSegment::Attach(const v1::SharedSegment& description, Peer peer) {
  if (absl::Status sizes = CheckSizes(description.slot_bytes(), description.slots()); !sizes.ok()) return sizes;
  const size_t bytes = SegmentBytes(description.slot_bytes(), description.slots());
  const std::string path = absl::StrCat("/proc/", description.process_id(), "/fd/", description.file_descriptor());
  const bool writes = peer == Peer::kWrites;
  // Whatever else may have that number, a pipe or a device: not to wait, and nothing but sealed memory of this size and token.
  const Descriptor fd(open(path.c_str(), (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (fd.get() < 0) return absl::ErrnoToStatus(errno, path);
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  struct stat status;
  char token[kTokenBytes];
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd.get(), &status) != 0 ||
      static_cast<size_t>(status.st_size) != bytes || pread(fd.get(), token, kTokenBytes, 0) != kTokenBytes ||
      description.token() != absl::string_view(token, kTokenBytes)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not the memory that was described"));
  }
  void* const base =
      mmap(nullptr, bytes, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (base == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": mmap of ", bytes, " bytes"));
  return std::shared_ptr<SharedSegment>(
      new SharedSegment(-1, static_cast<char*>(base), description.slot_bytes(), description.slots()));
}

SharedSegment::SharedSegment(int descriptor, char* base, size_t slot_bytes, uint32_t slots)
    : descriptor_(descriptor), base_(base), slot_bytes_(slot_bytes), slots_(slots), held_(new std::atomic<bool>[slots]()) {}

SharedSegment::~SharedSegment() {
  munmap(base_, SegmentBytes(slot_bytes_, slots_));
  CloseDescriptor();
}

void SharedSegment::CloseDescriptor() {
  if (const int descriptor = descriptor_.exchange(-1); descriptor >= 0) close(descriptor);
}

v1::SharedSegment SharedSegment::Describe() const {
  v1::SharedSegment description;
  description.set_process_id(getpid());
  description.set_file_descriptor(descriptor_);
  description.set_token(base_, kTokenBytes);
  description.set_slot_bytes(slot_bytes_);
  description.set_slots(slots_);
  return description;
}

SharedSegment::State& SharedSegment::state(uint32_t slot) const {
  return reinterpret_cast<State*>(base_ + kStatesBegin)[slot];
}

char* SharedSegment::data(uint32_t slot) const { return base_ + kPage + Stride(slot_bytes_) * slot; }

std::optional<uint32_t> SharedSegment::SlotOf(const void* memory) const {
  const auto address = reinterpret_cast<uintptr_t>(memory), first = reinterpret_cast<uintptr_t>(data(0));
  if (address < first || address >= first + Stride(slot_bytes_) * slots_) return std::nullopt;
  if ((address - first) % Stride(slot_bytes_) != 0) return std::nullopt;
  return static_cast<uint32_t>((address - first) / Stride(slot_bytes_));
}

std::shared_ptr<void> SharedSegment::Acquire() {
  for (uint32_t slot = 0; slot < slots_; ++slot) {
    if (held_[slot].exchange(true)) continue;
    uint32_t expected = kFree;
    if (!state(slot).compare_exchange_strong(expected, kWriting)) {
      held_[slot] = false;
      continue;
    }
    return {data(slot), [segment = shared_from_this(), slot](void*) {
              uint32_t writing = kWriting;
              segment->state(slot).compare_exchange_strong(writing, kFree);
              segment->held_[slot] = false;
            }};
  }
  return nullptr;
}

void SharedSegment::HandOver(uint32_t slot) { state(slot) = kHandedOver; }

absl::StatusOr<std::shared_ptr<void>> SharedSegment::Take(uint32_t slot) {
  uint32_t expected = kHandedOver;
  if (slot >= slots_ || !state(slot).compare_exchange_strong(expected, kReading)) {
    return absl::FailedPreconditionError(absl::StrCat("slot ", slot, " of ", slots_, " was not handed over"));
  }
  return std::shared_ptr<void>(
      data(slot), [segment = shared_from_this(), slot](void*) { segment->state(slot) = kFree; });
}

absl::StatusOr<std::shared_ptr<void>> SharedSegment::Look(uint32_t slot) {
  if (slot >= slots_) return absl::OutOfRangeError(absl::StrCat("there is no slot ", slot, " of ", slots_));
  return std::shared_ptr<void>(shared_from_this(), data(slot));
}

}  // namespace hfopt::wire
