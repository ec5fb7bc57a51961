#include "proto/wire/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hfopt::wire {
namespace {

using ::testing::HasSubstr;
using Peer = SharedSegment::Peer;
using Segment = std::shared_ptr<SharedSegment>;

Segment Create(size_t bytes, uint32_t slots, Peer peer) { return SharedSegment::Create(bytes, slots, peer).value(); }

TEST(HostName, IsTheSameForEveryProcessOfThisMachine) {
  EXPECT_THAT(HostName(), HasSubstr("/pid:["));
  EXPECT_EQ(HostName(), HostName());
}

TEST(SharedSegment, GoesRoundBetweenWriterAndReader) {
  const Segment reader = Create(5000, 2, Peer::kWrites);
  const Segment writer = SharedSegment::Attach(reader->Describe(), Peer::kWrites).value();
  for (int round = 0; round < 5; ++round) {
    std::shared_ptr<void> slot = writer->Acquire();
    ASSERT_NE(slot, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slot.get()) % 4096, 0u);
    EXPECT_EQ(writer->SlotOf(slot.get()), 0u) << "the lowest free slot, so that no more memory is touched than is needed";
    memset(slot.get(), 'a' + round, 5000);
    EXPECT_EQ(reader->Take(0).status().code(), absl::StatusCode::kFailedPrecondition) << "not handed over";
    writer->HandOver(0);
    slot.reset();
    absl::StatusOr<std::shared_ptr<void>> taken = reader->Take(0);
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(static_cast<char*>(taken->get())[4999], 'a' + round);
    EXPECT_FALSE(reader->Take(0).ok()) << "twice";
    EXPECT_EQ(writer->SlotOf(writer->Acquire().get()), 1u) << "while it is being read";
    taken->reset();
  }
}

TEST(SharedSegment, FreesWhatWasNeverHandedOver) {
  const Segment segment = Create(100, 1, Peer::kReads);
  std::shared_ptr<void> slot = segment->Acquire();
  EXPECT_EQ(segment->Acquire(), nullptr) << "there is no other";
  std::shared_ptr<void> holder = slot;
  slot.reset();
  EXPECT_EQ(segment->Acquire(), nullptr) << "somebody holds it";
  holder.reset();
  EXPECT_NE(segment->Acquire(), nullptr);
}

TEST(SharedSegment, GivesNothingOutThatItsWriterStillHolds) {
  const Segment reader = Create(100, 2, Peer::kWrites);
  const Segment writer = SharedSegment::Attach(reader->Describe(), Peer::kWrites).value();
  std::shared_ptr<void> first = writer->Acquire();
  writer->HandOver(0);
  reader->Take(0).value().reset();
  // The reader is done with it, its writer is not: it may have to send it again.
  std::shared_ptr<void> second = writer->Acquire();
  EXPECT_EQ(writer->SlotOf(second.get()), 1u);
  first.reset();
  first = writer->Acquire();
  EXPECT_EQ(writer->SlotOf(first.get()), 0u);
  EXPECT_EQ(writer->Acquire(), nullptr);
}

TEST(SharedSegment, LetsAReaderLookWithoutSayingSo) {
  const Segment writer = Create(100, 2, Peer::kReads);
  const Segment reader = SharedSegment::Attach(writer->Describe(), Peer::kReads).value();
  const std::shared_ptr<void> slot = writer->Acquire();
  strcpy(static_cast<char*>(slot.get()), "theta");
  EXPECT_STREQ(static_cast<char*>(reader->Look(0).value().get()), "theta");
  EXPECT_EQ(reader->Look(2).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(SharedSegment, KnowsItsSlotsByTheirAddress) {
  const Segment segment = Create(4097, 3, Peer::kReads);
  std::vector<std::shared_ptr<void>> slots;
  for (uint32_t i = 0; i < 3; ++i) {
    slots.push_back(segment->Acquire());
    EXPECT_EQ(segment->SlotOf(slots.back().get()), i);
    EXPECT_EQ(segment->SlotOf(static_cast<char*>(slots.back().get()) + 4), std::nullopt);
  }
  EXPECT_EQ(segment->SlotOf(static_cast<char*>(slots.back().get()) + 8192), std::nullopt);
  EXPECT_EQ(segment->SlotOf(&segment), std::nullopt);
  EXPECT_EQ(segment->SlotOf(nullptr), std::nullopt);
}

TEST(SharedSegment, StaysMappedWhileASlotIsOut) {
  std::shared_ptr<void> slot;
  {
    const Segment writer = Create(100, 1, Peer::kReads);
    slot = SharedSegment::Attach(writer->Describe(), Peer::kReads).value()->Look(0).value();
    strcpy(static_cast<char*>(writer->Acquire().get()), "still here");
  }
  EXPECT_STREQ(static_cast<char*>(slot.get()), "still here");
}

TEST(SharedSegment, CannotBeWrittenByOneThatIsToRead) {
  const Segment writer = Create(100, 1, Peer::kReads);
  EXPECT_FALSE(SharedSegment::Attach(writer->Describe(), Peer::kWrites).ok());
}

TEST(SharedSegment, CannotBeCutOffByEitherSide) {
  const Segment creator = Create(100, 1, Peer::kWrites);
  const v1::SharedSegment d = creator->Describe();
  const std::string path = "/proc/self/fd/" + std::to_string(d.file_descriptor());
  EXPECT_NE(truncate(path.c_str(), 0), 0);
  const int other = open(path.c_str(), O_RDWR | O_CLOEXEC);
  EXPECT_NE(ftruncate(other, 0), 0);
  EXPECT_NE(fcntl(other, F_ADD_SEALS, F_SEAL_WRITE), 0) << "nor taken from us";
  close(other);
}

TEST(SharedSegment, AttachesToNothingElse) {
  const Segment segment = Create(100, 1, Peer::kWrites);
  const auto refusal = [&](auto change) {
    v1::SharedSegment d = segment->Describe();
    change(d);
    const auto attached = SharedSegment::Attach(d, Peer::kReads);
    EXPECT_FALSE(attached.ok());
    return attached.status().code();
  };
  EXPECT_EQ(refusal([](auto& d) { d.mutable_token()->at(3) ^= 1; }), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refusal([](auto& d) { d.set_slots(2); }), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refusal([](auto& d) { d.set_slot_bytes(5000); }), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refusal([](auto& d) { d.set_slot_bytes(~uint64_t{0}); }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](auto& d) { d.set_slots(0); }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](auto& d) { d.set_slots(1 << 20); }), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](auto& d) { d.set_file_descriptor(987654); }), absl::StatusCode::kNotFound);
  EXPECT_EQ(refusal([](auto& d) { d.set_process_id(-1); }), absl::StatusCode::kNotFound);

  // What a stranger may have under that number: a pipe must not block us, a file must not be taken for memory.
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  EXPECT_EQ(refusal([&](auto& d) { d.set_file_descriptor(ends[0]); }), absl::StatusCode::kFailedPrecondition);
  close(ends[0]);
  close(ends[1]);
  FILE* const file = tmpfile();
  ASSERT_EQ(ftruncate(fileno(file), 8192), 0);
  EXPECT_EQ(refusal([&](auto& d) { d.set_file_descriptor(fileno(file)); }), absl::StatusCode::kFailedPrecondition);
  fclose(file);
  // Memory of the right size and token that its owner could still cut off.
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(unsealed, 8192), 0);
  const std::string token = segment->Describe().token();
  ASSERT_EQ(pwrite(unsealed, token.data(), token.size(), 0), 16);
  EXPECT_EQ(refusal([&](auto& d) { d.set_file_descriptor(unsealed); }), absl::StatusCode::kFailedPrecondition);
  close(unsealed);
}

TEST(SharedSegment, GoesWithItsProcessesHoweverTheyEnd) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = fork();
  if (child == 0) {
    const Segment segment = Create(100, 1, Peer::kReads);
    const std::shared_ptr<void> slot = segment->Acquire();
    strcpy(static_cast<char*>(slot.get()), "from a process that was killed");
    const std::string description = segment->Describe().SerializeAsString();
    if (write(ends[1], description.data(), description.size()) < 0) _exit(1);
    pause();
  }
  std::string description(200, '\0');
  description.resize(read(ends[0], description.data(), description.size()));
  v1::SharedSegment d;
  ASSERT_TRUE(d.ParseFromString(description));
  const Segment attached = SharedSegment::Attach(d, Peer::kReads).value();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_STREQ(static_cast<char*>(attached->Look(0).value().get()), "from a process that was killed");
  EXPECT_FALSE(SharedSegment::Attach(d, Peer::kReads).ok());
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace hfopt::wire
