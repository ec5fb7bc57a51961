#include "server/run/checkpoint_directory.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#include "server/run/checkpoint_file.h"
#include "server/run/durable_files.h"

namespace hfopt::server {
namespace {

constexpr char kUnfinished[] = ".tmp";

std::string NameOf(uint64_t iteration) { return absl::StrCat("checkpoint-", iteration, ".safetensors"); }

std::optional<uint64_t> IterationOf(const std::string& name) {
  absl::string_view digits = name;
  uint64_t iteration = 0;
  if (!absl::ConsumePrefix(&digits, "checkpoint-") || !absl::ConsumeSuffix(&digits, ".safetensors") ||
      !absl::SimpleAtoi(digits, &iteration) || name != NameOf(iteration)) {
    return std::nullopt;
  }
  return iteration;
}

// Damaged content, or a disk that cannot read it (EIO). Anything else, such as a missing permission, is not mended by
// an older file.
bool IsDamage(const absl::Status& status) { return absl::IsDataLoss(status) || absl::IsUnknown(status); }

absl::string_view Remedy(const absl::Status& status) {
  if (absl::IsPermissionDenied(status)) return "; let the server's user write there";
  if (absl::IsResourceExhausted(status)) return "; free space there";
  if (absl::IsOutOfRange(status)) return "; raise the limit on file sizes (ulimit -f)";
  return "";
}

// A failed save for the one who has to do something about it.
absl::Status ExplainFailedSave(const absl::Status& status, const std::string& path, const CheckpointView& checkpoint) {
  uint64_t bytes = 0;
  for (const wire::TensorView& t : checkpoint.tensors) bytes += t.bytes.size();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path, error);
  return absl::Status(
      status.code(), absl::StrCat("cannot save the checkpoint of iteration ", checkpoint.meta.iteration(), " (", bytes,
                                  " bytes) in ", path, error ? "" : absl::StrCat(" (", space.available, " bytes free)"),
                                  ": ", status.message(), Remedy(status), "; the checkpoints before it are untouched"));
}

}  // namespace

std::string CheckpointDirectory::PathOf(uint64_t iteration) const {
  return absl::StrCat(path_, "/", NameOf(iteration));
}

std::string CheckpointDirectory::BestPath() const { return absl::StrCat(path_, "/best.safetensors"); }

absl::StatusOr<std::vector<uint64_t>> CheckpointDirectory::Iterations() const {
  HFOPT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path_));
  std::vector<uint64_t> iterations;
  for (const std::string& name : names) {
    if (const auto iteration = IterationOf(name)) iterations.push_back(*iteration);
  }
  std::sort(iterations.begin(), iterations.end());
  return iterations;
}

absl::Status CheckpointDirectory::Save(const CheckpointView& checkpoint, const SaveOptions& options) {
  if (options.keep < 1) {
    return absl::InvalidArgumentError(absl::StrCat("keep is ", options.keep, "; allowed: at least 1"));
  }
  if (const absl::Status status = Write(checkpoint, options.best); !status.ok()) {
    RemoveUnfinished().IgnoreError();  // the error to tell of is the first
    return ExplainFailedSave(status, path_, checkpoint);
  }
  HFOPT_FAILPOINT("checkpoint.prune");
  Prune(checkpoint.meta.iteration(), options.keep);
  return absl::OkStatus();
}

absl::Status CheckpointDirectory::Write(const CheckpointView& checkpoint, bool best) {
  HFOPT_RETURN_IF_ERROR(CreateDirectory(path_));
  const std::string path = PathOf(checkpoint.meta.iteration()), unfinished = path + kUnfinished;
  HFOPT_RETURN_IF_ERROR(WriteCheckpointFile(unfinished, checkpoint));
  HFOPT_FAILPOINT_OR_RETURN("checkpoint.rename");
  HFOPT_RETURN_IF_ERROR(Rename(unfinished, path));
  if (best) {
    HFOPT_FAILPOINT_OR_RETURN("checkpoint.best");
    // A second name for the same file; a second file where the file system has no such thing.
    const std::string unfinished_best = BestPath() + kUnfinished;
    HFOPT_RETURN_IF_ERROR(Remove(unfinished_best));
    if (link(path.c_str(), unfinished_best.c_str()) != 0) {
      HFOPT_RETURN_IF_ERROR(WriteCheckpointFile(unfinished_best, checkpoint));
    }
    HFOPT_FAILPOINT_OR_RETURN("checkpoint.rename_best");
    HFOPT_RETURN_IF_ERROR(Rename(unfinished_best, BestPath()));
  }
  HFOPT_FAILPOINT_OR_RETURN("checkpoint.sync");
  return SyncDirectory(path_);
}

// What cannot be removed now is tried again after the next save; the new checkpoint is safe in any case.
void CheckpointDirectory::Prune(uint64_t last, int keep) {
  const absl::StatusOr<std::vector<uint64_t>> iterations = Iterations();
  if (!iterations.ok()) return;
  const auto later = std::upper_bound(iterations->begin(), iterations->end(), last);
  const auto kept = later - std::min<ptrdiff_t>(keep, later - iterations->begin());
  for (auto i = iterations->begin(); i != kept; ++i) Remove(PathOf(*i)).IgnoreError();
  for (auto i = later; i != iterations->end(); ++i) Remove(PathOf(*i)).IgnoreError();
}

absl::StatusOr<LoadedCheckpoint> CheckpointDirectory::LoadLast() const {
  HFOPT_ASSIGN_OR_RETURN(std::vector<uint64_t> iterations, Iterations());
  std::vector<std::string> damage;
  const auto with_warning = [&damage](LoadedCheckpoint loaded) {
    if (!damage.empty()) {
      loaded.warning = absl::StrCat("passed over damaged checkpoints (", absl::StrJoin(damage, "; "),
                                    "); took iteration ", loaded.checkpoint.meta.iteration(), " instead");
    }
    return loaded;
  };
  for (; !iterations.empty(); iterations.pop_back()) {
    absl::StatusOr<LoadedCheckpoint> loaded = Load(iterations.back());
    if (loaded.ok()) return with_warning(*std::move(loaded));
    if (!IsDamage(loaded.status())) return loaded;
    damage.emplace_back(loaded.status().message());
  }
  // The best one, when it is an earlier one and a file of its own, may have been spared.
  absl::StatusOr<LoadedCheckpoint> best = LoadBest();
  if (best.ok()) return with_warning(*std::move(best));
  if (damage.empty() && absl::IsNotFound(best.status())) {
    return absl::NotFoundError(absl::StrCat("there is no checkpoint in ", path_));
  }
  if (!absl::IsNotFound(best.status())) damage.emplace_back(best.status().message());
  return absl::DataLossError(absl::StrCat("no checkpoint in ", path_, " can be read: ", absl::StrJoin(damage, "; "),
                                          "; put back a copy of one of them, or begin the run anew"));
}

absl::StatusOr<LoadedCheckpoint> CheckpointDirectory::LoadBest() const {
  absl::StatusOr<Checkpoint> checkpoint = ReadCheckpointFile(BestPath());
  if (checkpoint.ok()) return LoadedCheckpoint{*std::move(checkpoint), ""};
  if (!absl::IsNotFound(checkpoint.status())) return checkpoint.status();
  return absl::NotFoundError(absl::StrCat("no checkpoint in ", path_, " was the best yet; take the last one"));
}

absl::StatusOr<LoadedCheckpoint> CheckpointDirectory::Load(uint64_t iteration) const {
  absl::StatusOr<Checkpoint> checkpoint = ReadCheckpointFile(PathOf(iteration));
  if (absl::IsNotFound(checkpoint.status())) {
    // The best one may be older than those that are kept.
    absl::StatusOr<LoadedCheckpoint> best = LoadBest();
    if (best.ok() && best->checkpoint.meta.iteration() == iteration) return best;
    HFOPT_ASSIGN_OR_RETURN(const std::vector<uint64_t> iterations, Iterations());
    return absl::NotFoundError(absl::StrCat("no checkpoint of iteration ", iteration, " is kept in ", path_,
                                            "; kept are: ", absl::StrJoin(iterations, ", ")));
  }
  if (!checkpoint.ok()) return checkpoint.status();
  if (checkpoint->meta.iteration() != iteration) {
    return absl::DataLossError(
        absl::StrCat(PathOf(iteration), ": holds iteration ", checkpoint->meta.iteration(), "; the file was renamed"));
  }
  return LoadedCheckpoint{*std::move(checkpoint), ""};
}

absl::Status CheckpointDirectory::RemoveUnfinished() {
  HFOPT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path_));
  for (const std::string& name : names) {
    if (absl::EndsWith(name, kUnfinished)) HFOPT_RETURN_IF_ERROR(Remove(absl::StrCat(path_, "/", name)));
  }
  return absl::OkStatus();
}

}  // namespace hfopt::server
