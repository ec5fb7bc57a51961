#ifndef HFOPT_SERVER_RUN_JOURNAL_H_
#define HFOPT_SERVER_RUN_JOURNAL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/objective.h"
#include "hfopt/v1/checkpoint.pb.h"

// The answers of the iteration under way, kept on the disk. An iteration is a pure function of the state that it begins from, so one that is done
// again asks the same questions in the same order: what was answered before comes out of the file, with the same bits, and the algorithm in core
// knows nothing of it.
namespace hfopt::server {

// The file: a header with the iteration, then entries (a v1::JournalEntry, its vectors, a checksum), in the order of the questions. Written behind
// what there is, never changed; what a crash cut off, or another iteration's, is passed over. A journal that cannot be written (a full disk) is
// given up for this iteration, and the log says so: the run goes on. Not thread-safe.
class Journal {
 public:
  using Log = std::function<void(const std::string&)>;

  struct Options {
    std::string path;
    absl::Duration sync_interval;  // how much may be lost when the power fails
    Log log = [](const std::string&) {};
    std::function<absl::Time()> now = absl::Now;
  };
  // What is in the file of the iteration after `iteration` will be given back; anything else is forgotten.
  Journal(Options options, int64_t iteration);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Forgets everything: the iteration after `iteration` begins.
  void Begin(int64_t iteration);

  // The next answer that is there, if it is one to this question; its vectors, of the sizes that it says, are read into what `vectors` gives. From the
  // first question on that is another, all is asked anew.
  std::optional<v1::JournalEntry> Next(uint64_t question, absl::FunctionRef<std::vector<absl::Span<char>>(const v1::JournalEntry&)> vectors);
  void Append(const v1::JournalEntry& entry, absl::Span<const absl::Span<const char>> vectors);

  // Of this iteration: answers that came out of the file.
  int replayed() const { return replayed_; }

 private:
  void Open(bool keep);
  void GiveUp(const absl::Status& why);
  // The rest of the file is of no use.
  void EndReplay();

  const Options options_;
  int64_t iteration_;
  int descriptor_ = -1;  // -1: given up
  bool replaying_ = false;
  uint64_t position_ = 0;  // of the next entry
  int replayed_ = 0;
  absl::Time synced_;
};

// An objective whose answers are kept in a journal, and given from it while it has them. Both must outlive it.
template <typename Scalar>
class JournaledObjective final : public Objective<Scalar> {
 public:
  JournaledObjective(Objective<Scalar>& objective, Journal& journal) : objective_(objective), journal_(journal) {}

  int64_t num_parameters() const override { return objective_.num_parameters(); }
  const DataLayout& layout() const override { return objective_.layout(); }
  bool has_second_moment() const override { return objective_.has_second_moment(); }
  absl::StatusOr<std::vector<LossAnswer>> Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials, const Sample& sample) override;
  absl::StatusOr<GradientAnswer<Scalar>> Gradient(const Vector<Scalar>& theta, const Sample& sample, const GradientExtras& extras) override;
  absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> GaussNewtonAt(const Vector<Scalar>& theta, const Sample& sample) override;

 private:
  class Product;

  Objective<Scalar>& objective_;
  Journal& journal_;
};

}  // namespace hfopt::server

#endif  // HFOPT_SERVER_RUN_JOURNAL_H_
