// What the store does when power, disk or people damage what it has written.

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/run/checkpoint_file.h"
#include "server/run/file_run_store.h"
#include "sqlite3.h"
#include "tests/server/store_testing.h"

namespace hfopt::server {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RunStoreCrash : public ::testing::Test {
 protected:
  RunStoreCrash() { Reopen(); }

  void Reopen() {
    store_.reset();
    auto store = FileRunStore::Open(directory_.path(), [this](const std::string& line) { log_.push_back(line); });
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  absl::Status Save(int64_t iteration, const SaveOptions& options = {}) {
    const auto state = MakeState<float>(iteration);
    return store_->SaveCheckpoint("an4", ViewCheckpoint(state), options);
  }
  void Put(const std::string& run_id) {
    v1::Run run;
    run.set_name("runs/" + run_id);
    ASSERT_TRUE(store_->PutRun(run, "").ok());
  }

  std::string RunPath() const { return directory_.path() + "/runs/an4"; }
  std::string FileOf(int64_t iteration) const {
    return RunPath() + "/checkpoint-" + std::to_string(iteration) + ".safetensors";
  }
  // Changes a byte of the numbers.
  static void Damage(const std::string& path) {
    std::string bytes = ReadBytes(path);
    bytes[bytes.size() - 1] ^= 1;
    WriteBytes(path, bytes);
  }

  const TemporaryDirectory directory_;
  std::vector<std::string> log_;
  std::unique_ptr<RunStore> store_;
};

TEST_F(RunStoreCrash, NoTruncationIsAccepted) {
  ASSERT_TRUE(Save(1).ok());
  const std::string bytes = ReadBytes(FileOf(1));
  for (size_t size = bytes.size(); size-- > 0;) {
    std::filesystem::resize_file(FileOf(1), size);
    const auto checkpoint = ReadCheckpointFile(FileOf(1));
    ASSERT_EQ(checkpoint.status().code(), absl::StatusCode::kDataLoss) << size << ": " << checkpoint.status();
  }
  WriteBytes(FileOf(1), bytes + '\0');
  EXPECT_EQ(ReadCheckpointFile(FileOf(1)).status().code(), absl::StatusCode::kDataLoss);
  WriteBytes(FileOf(1), bytes);
  EXPECT_TRUE(ReadCheckpointFile(FileOf(1)).ok());
}

// Every bit of the file. A flip that changes no content (in the spaces after the header, or the case of a hexadecimal
// \u) may pass.
TEST_F(RunStoreCrash, NoFlippedBitChangesAState) {
  const auto state = MakeState<float>(1);
  ASSERT_TRUE(Save(1).ok());
  const std::string bytes = ReadBytes(FileOf(1));
  std::fstream file(FileOf(1), std::ios::binary | std::ios::in | std::ios::out);
  const auto set = [&file](size_t at, char byte) { file.seekp(at).put(byte).flush(); };
  int passed = 0;
  for (size_t i = 0; i < 8 * bytes.size(); ++i) {
    set(i / 8, static_cast<char>(bytes[i / 8] ^ 1 << i % 8));
    auto checkpoint = ReadCheckpointFile(FileOf(1));
    set(i / 8, bytes[i / 8]);
    if (!checkpoint.ok()) {
      ASSERT_EQ(checkpoint.status().code(), absl::StatusCode::kDataLoss) << i << ": " << checkpoint.status();
      continue;
    }
    const auto back = StateFromCheckpoint<float>(*std::move(checkpoint));
    ASSERT_TRUE(back.ok() && SameBits(*back, state)) << "bit " << i;
    ++passed;
  }
  EXPECT_LT(passed, 8 * 8);
  EXPECT_TRUE(ReadCheckpointFile(FileOf(1)).ok());
}

TEST_F(RunStoreCrash, NumbersOfTheCheckpointAreChecksummedToo) {
  ASSERT_TRUE(Save(1).ok());
  std::string bytes = ReadBytes(FileOf(1));
  const size_t at = bytes.find("\\\"stalled_iterations\\\":6");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 23] = '7';
  WriteBytes(FileOf(1), bytes);
  EXPECT_THAT(std::string(ReadCheckpointFile(FileOf(1)).status().message()),
              AllOf(HasSubstr(FileOf(1)), HasSubstr("its content has the checksum ")));
}

TEST_F(RunStoreCrash, ADamagedCheckpointIsPassedOverWithAWarning) {
  for (const int64_t iteration : {7, 8, 9}) ASSERT_TRUE(Save(iteration).ok());
  Damage(FileOf(9));
  std::filesystem::resize_file(FileOf(8), 100);
  const auto loaded = store_->LoadLastCheckpoint("an4");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->checkpoint.meta.iteration(), 7u);
  EXPECT_THAT(loaded->warning, AllOf(HasSubstr("checkpoint-9.safetensors: its content has the checksum"),
                                     HasSubstr("checkpoint-8.safetensors: "), HasSubstr("took iteration 7 instead")));
  EXPECT_EQ(store_->LoadCheckpoint("an4", 9).status().code(), absl::StatusCode::kDataLoss);

  // The run goes on from there, and even with a single checkpoint kept the good one is it.
  ASSERT_TRUE(Save(8, {.keep = 1}).ok());
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->checkpoint.meta.iteration(), 8u);
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->warning, "");
}

TEST_F(RunStoreCrash, TheBestIsTheLastResort) {
  ASSERT_TRUE(Save(1, {.best = true, .keep = 1}).ok());
  ASSERT_TRUE(Save(2, {.keep = 1}).ok());
  Damage(FileOf(2));
  const auto loaded = store_->LoadLastCheckpoint("an4");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->checkpoint.meta.iteration(), 1u);
  EXPECT_THAT(loaded->warning, HasSubstr("took iteration 1 instead"));
}

TEST_F(RunStoreCrash, OnlyDamagedCheckpointsAreAnErrorNamingThem) {
  for (const int64_t iteration : {8, 9}) ASSERT_TRUE(Save(iteration, {.best = true}).ok());
  Damage(FileOf(8));
  Damage(FileOf(9));  // and with it the best, which is the same file
  const auto loaded = store_->LoadLastCheckpoint("an4");
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(
      std::string(loaded.status().message()),
      AllOf(HasSubstr(FileOf(8)), HasSubstr(FileOf(9)), HasSubstr("best.safetensors"), HasSubstr("put back a copy")));
  EXPECT_EQ(store_->LoadBestCheckpoint("an4").status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RunStoreCrash, ARenamedCheckpointIsNotTakenForAnother) {
  ASSERT_TRUE(Save(1).ok());
  std::filesystem::copy(FileOf(1), FileOf(5));
  const auto loaded = store_->LoadLastCheckpoint("an4");
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->checkpoint.meta.iteration(), 1u);
  EXPECT_THAT(loaded->warning, HasSubstr("holds iteration 1; the file was renamed"));
}

TEST_F(RunStoreCrash, ALaterFormatIsRefusedNotPassedOver) {
  ASSERT_TRUE(Save(1).ok());
  const auto state = MakeState<float>(2);
  CheckpointView view = ViewCheckpoint(state);
  view.meta.set_format_version(2);
  ASSERT_TRUE(store_->SaveCheckpoint("an4", view, {}).ok());
  const auto loaded = store_->LoadLastCheckpoint("an4");
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("has format version 2; this server reads up to 1"));
}

TEST_F(RunStoreCrash, FilesThatAreNoCheckpointsAreRefused) {
  const Vector<float> x = Vector<float>::Ones(3);
  const std::string path = directory_.path() + "/x.safetensors";
  ASSERT_TRUE(wire::WriteSafetensors(path, {wire::View("theta", x)}).ok());
  EXPECT_THAT(std::string(ReadCheckpointFile(path).status().message()), HasSubstr("has no hfopt.checkpoint"));
  ASSERT_TRUE(wire::WriteSafetensors(path, {}, {{"hfopt.checkpoint", ""}, {"hfopt.checksum", ""}}).ok());
  EXPECT_THAT(std::string(ReadCheckpointFile(path).status().message()), HasSubstr("has no tensors"));
}

TEST_F(RunStoreCrash, UnfinishedFilesAreInvisibleAndRemovedAtOpening) {
  ASSERT_TRUE(Save(1).ok());
  WriteBytes(FileOf(2) + ".tmp", ReadBytes(FileOf(1)).substr(0, 100));
  WriteBytes(RunPath() + "/best.safetensors.tmp", "");
  WriteBytes(RunPath() + "/notes.txt", "of a person");
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->checkpoint.meta.iteration(), 1u);
  Reopen();
  EXPECT_THAT(Names(RunPath()), ElementsAre("checkpoint-1.safetensors", "notes.txt"));
}

TEST_F(RunStoreCrash, AnUnfinishedBestOfACrashDoesNotStopTheNext) {
  ASSERT_TRUE(Save(1, {.best = true}).ok());
  std::filesystem::create_hard_link(FileOf(1), RunPath() + "/best.safetensors.tmp");
  ASSERT_TRUE(Save(2, {.best = true}).ok());
  EXPECT_EQ(store_->LoadBestCheckpoint("an4")->checkpoint.meta.iteration(), 2u);
  EXPECT_THAT(Names(RunPath()),
              ElementsAre("best.safetensors", "checkpoint-1.safetensors", "checkpoint-2.safetensors"));
}

TEST_F(RunStoreCrash, ADeletionThatWasCutOffIsFinished) {
  Put("an4");
  ASSERT_TRUE(Save(1).ok());
  std::filesystem::rename(RunPath(), RunPath() + ".deleted");
  Reopen();
  EXPECT_THAT(store_->ListRuns().value(), IsEmpty());
  EXPECT_THAT(Names(directory_.path() + "/runs"), IsEmpty());
}

TEST_F(RunStoreCrash, TheRestOfADeletionDoesNotTakeANewRunAlong) {
  std::filesystem::create_directories(RunPath() + ".deleted");
  Put("an4");
  Reopen();
  EXPECT_EQ(store_->ListRuns()->size(), 1u);
}

// /dev/full in the place of the file to be written fails every write as a full disk does.
TEST_F(RunStoreCrash, AFullDiskIsReportedAndLeavesThePreviousCheckpoint) {
  ASSERT_TRUE(Save(1).ok());
  std::filesystem::create_symlink("/dev/full", FileOf(2) + ".tmp");
  const absl::Status full = Save(2);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()),
              AllOf(HasSubstr("cannot save the checkpoint of iteration 2 (120 bytes) in " + RunPath()),
                    HasSubstr("No space left on device"), HasSubstr("bytes free"), HasSubstr("free space there"),
                    HasSubstr("the checkpoints before it are untouched")));
  EXPECT_THAT(Names(RunPath()), ElementsAre("checkpoint-1.safetensors"));
  EXPECT_EQ(store_->LoadLastCheckpoint("an4")->checkpoint.meta.iteration(), 1u);
  EXPECT_TRUE(Save(2).ok());
}

// The disk gives out after each number of bytes of the file.
TEST_F(RunStoreCrash, ADiskThatFillsUpInTheMiddleOfAFileLeavesNoTrace) {
  ASSERT_TRUE(Save(1).ok());
  const size_t size = std::filesystem::file_size(FileOf(1));
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  for (size_t limit = 0; limit < size; limit += 100) {
    const rlimit small = {limit, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const absl::Status failed = Save(2, {.best = true});
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_FALSE(failed.ok());
    EXPECT_THAT(Names(RunPath()), ElementsAre("checkpoint-1.safetensors"));
  }
  signal(SIGXFSZ, handler);
  EXPECT_TRUE(store_->LoadLastCheckpoint("an4").ok());
}

TEST_F(RunStoreCrash, AReportThatDoesNotFitIsReportedAndLeavesTheOthers) {
  Put("an4");
  v1::IterationReport report;
  report.set_iteration(1);
  ASSERT_TRUE(store_->AppendReport("an4", report).ok());
  report.set_iteration(2);
  for (int i = 0; i < 10000; ++i) (*report.mutable_metrics())["a metric with a long name " + std::to_string(i)] = i;
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {200'000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status failed = store_->AppendReport("an4", report);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(std::string(failed.message()),
              AllOf(HasSubstr("hfopt.db: cannot store a report"), HasSubstr("space")));
  EXPECT_EQ(store_->Reports("an4", 0, 100)->size(), 1u);
  EXPECT_TRUE(store_->AppendReport("an4", report).ok());
  EXPECT_EQ(store_->Reports("an4", 0, 100)->size(), 2u);
}

// As root permissions do not hold, so the test becomes someone else for a moment.
TEST_F(RunStoreCrash, AMissingPermissionIsReportedWithTheRemedy) {
  constexpr uid_t kNobody = 65534;
  ASSERT_TRUE(Save(1).ok());
  std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755));
  const uid_t me = geteuid();
  if (me == 0) {
    ASSERT_EQ(seteuid(kNobody), 0);
  } else {
    std::filesystem::permissions(RunPath(), std::filesystem::perms(0555));
    std::filesystem::permissions(directory_.path(), std::filesystem::perms(0555));
  }
  const absl::Status save = Save(2);
  const auto open = FileRunStore::Open(directory_.path() + "/other");
  if (me == 0) {
    ASSERT_EQ(seteuid(me), 0);
  } else {
    std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755));
    std::filesystem::permissions(RunPath(), std::filesystem::perms(0755));
  }
  EXPECT_EQ(save.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(save.message()), AllOf(HasSubstr(RunPath()), HasSubstr("let the server's user write there")));
  EXPECT_EQ(open.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(open.status().message()),
              AllOf(HasSubstr(directory_.path() + "/other"), HasSubstr("use another state directory")));
}

TEST_F(RunStoreCrash, AFileInThePlaceOfTheStateDirectoryIsNamed) {
  const std::string file = directory_.path() + "/afile";
  WriteBytes(file, "of a person");
  for (const std::string& directory : {file, file + "/x", file + "/x/y"}) {
    const auto store = FileRunStore::Open(directory);
    EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition) << store.status();
    EXPECT_THAT(std::string(store.status().message()),
                AllOf(HasSubstr(file + " is a file"), HasSubstr("use another directory")));
  }
  EXPECT_EQ(ReadBytes(file), "of a person");
}

TEST_F(RunStoreCrash, ADamagedCatalogueIsReportedWithTheRemedy) {
  Put("an4");
  store_.reset();
  WriteBytes(directory_.path() + "/hfopt.db", std::string(8192, 'x'));
  const auto store = FileRunStore::Open(directory_.path());
  EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(store.status().message()),
              AllOf(HasSubstr(directory_.path() + "/hfopt.db"), HasSubstr("put back a copy"),
                    HasSubstr("hfopt params upload ID runs/ID/best.safetensors")));
}

// What the message above says is to be done without a copy.
TEST_F(RunStoreCrash, RunsOfALostCatalogueCanBeginAnewFromTheirCheckpoints) {
  Put("an4");
  ASSERT_TRUE(Save(3, {.best = true}).ok());
  store_.reset();
  std::filesystem::remove(directory_.path() + "/hfopt.db");
  Reopen();
  EXPECT_THAT(log_, ElementsAre(AllOf(HasSubstr(RunPath()), HasSubstr("was the database lost?"))));
  v1::Run run;
  run.set_name("runs/an4");
  const absl::Status refused = store_->PutRun(run, "");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr(RunPath()), HasSubstr("move the directory away"),
                                                    HasSubstr("hfopt params upload")));
  const std::string aside = directory_.path() + "/aside";
  std::filesystem::rename(directory_.path() + "/runs", aside);
  Reopen();
  EXPECT_TRUE(store_->PutRun(run, "").ok());
  // As hfopt params upload reads it.
  const auto file = wire::ReadSafetensors(aside + "/an4/best.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(SameBits(file->Vector<float>("theta").value(), MakeState<float>(3).theta));
}

TEST_F(RunStoreCrash, FilesThatBelongToNoRunOrCannotBeUsedStopNoServer) {
  Put("an4");
  ASSERT_TRUE(Save(3).ok());
  store_.reset();
  WriteBytes(directory_.path() + "/runs/Notes.txt", "mine");
  WriteBytes(directory_.path() + "/runs/notes", "also mine");
  Reopen();
  EXPECT_THAT(log_, ElementsAre(HasSubstr("/runs/Notes.txt is no run's"), HasSubstr("the files of run notes cannot be used")));
  EXPECT_TRUE(store_->LoadLastCheckpoint("an4").ok());
}

TEST_F(RunStoreCrash, ACatalogueOfALaterVersionIsRefused) {
  store_.reset();
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open((directory_.path() + "/hfopt.db").c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "PRAGMA user_version = 2", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  const auto store = FileRunStore::Open(directory_.path());
  EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("has schema version 2; this server reads up to 1"));
}

// Saves and acknowledges iterations first, first + 1, ... until it is killed.
[[noreturn]] void SaveUntilKilled(const std::string& directory, uint64_t first, int acknowledge) {
  auto store = FileRunStore::Open(directory);
  if (!store.ok()) _exit(1);
  for (uint64_t iteration = first;; ++iteration) {
    const auto state = MakeState<float>(iteration, 10000);
    v1::IterationReport report;
    report.set_iteration(iteration);
    if (!(*store)->AppendReport("an4", report).ok()) _exit(1);
    if (!(*store)->SaveCheckpoint("an4", ViewCheckpoint(state), {.best = iteration % 3 == 0, .keep = 1}).ok()) _exit(1);
    if (write(acknowledge, &iteration, sizeof(iteration)) < 0) _exit(1);
  }
}

TEST_F(RunStoreCrash, WhatWasAcknowledgedOutlivesAKilledProcess) {
  Put("an4");
  uint64_t next = 1;
  for (int round = 0; round < 12; ++round) {
    store_.reset();
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) SaveUntilKilled(directory_.path(), next, pipe_ends[1]);
    close(pipe_ends[1]);
    uint64_t acknowledged = 0;
    ASSERT_EQ(read(pipe_ends[0], &acknowledged, sizeof(acknowledged)), ssize_t{sizeof(acknowledged)});
    usleep(300 * round);  // to hit another place in each round
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(pipe_ends[0], &acknowledged, sizeof(acknowledged)) > 0) {
    }
    close(pipe_ends[0]);

    Reopen();
    auto loaded = store_->LoadLastCheckpoint("an4");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->warning, "");
    const uint64_t last = loaded->checkpoint.meta.iteration();
    EXPECT_TRUE(last == acknowledged || last == acknowledged + 1) << last << " after " << acknowledged;
    const auto state = StateFromCheckpoint<float>(std::move(loaded->checkpoint));
    ASSERT_TRUE(state.ok());
    EXPECT_TRUE(SameBits(*state, MakeState<float>(last, 10000)));
    const auto reports = store_->Reports("an4", 0, 100000);
    EXPECT_GE(reports->size(), last);
    for (const std::string& name : Names(RunPath())) EXPECT_THAT(name, ::testing::EndsWith(".safetensors"));
    next = last + 1;
  }
}

}  // namespace
}  // namespace hfopt::server
