#include "server/run/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "proto/failpoint/failpoint.h"
#define XXH_INLINE_ALL  // states on the stack, and no library whose idea of them may differ
#include "xxhash.h"

namespace hfopt::server {
namespace {

// Integers in the file are in the machine's order: a journal is of no use to another machine.
struct Header {
  char magic[8] = {'h', 'f', 'o', 'p', 't', 'j', 'n', '1'};
  int64_t iteration = 0;
};
struct EntryHead {
  uint64_t message_bytes = 0;
  uint64_t vector_bytes = 0;
};

// A hash of a question, put together part by part.
class Question {
 public:
  enum class Kind : uint64_t { kLosses, kGradient, kProduct };

  explicit Question(Kind kind) {
    XXH3_64bits_reset(&state_);
    Add(kind);
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  Question& Add(const T& value) {
    XXH3_64bits_update(&state_, &value, sizeof(value));
    return *this;
  }
  template <typename Scalar>
  Question& Add(const Vector<Scalar>& vector) {
    Add(vector.size());
    XXH3_64bits_update(&state_, vector.data(), vector.size() * sizeof(Scalar));
    return *this;
  }
  Question& Add(const Sample& sample) {
    Add(sample.data);
    for (const Window& window : sample.windows) Add(window.begin).Add(window.count);
    return *this;
  }
  uint64_t hash() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

absl::Status WriteAll(int descriptor, const void* data, size_t size) {
  for (const char* p = static_cast<const char*>(data); size > 0;) {
    const ssize_t written = write(descriptor, p, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, "cannot be written");
    p += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

// False at the end of the file, too.
bool ReadAll(int descriptor, void* data, size_t size, uint64_t position) {
  for (char* p = static_cast<char*>(data); size > 0;) {
    const ssize_t got = pread(descriptor, p, size, static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    p += got;
    position += static_cast<uint64_t>(got);
    size -= static_cast<size_t>(got);
  }
  return true;
}

template <typename Scalar>
absl::Span<const char> BytesOf(const Vector<Scalar>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(Scalar)};
}
template <typename Scalar>
absl::Span<char> BytesOf(Vector<Scalar>& v) {
  return {reinterpret_cast<char*>(v.data()), v.size() * sizeof(Scalar)};
}

}  // namespace

Journal::Journal(Options options, int64_t iteration) : options_(std::move(options)), iteration_(iteration) { Open(/*keep=*/true); }

Journal::~Journal() {
  if (descriptor_ >= 0) close(descriptor_);
}

void Journal::Begin(int64_t iteration) {
  if (descriptor_ >= 0) close(descriptor_);
  iteration_ = iteration;
  Open(/*keep=*/false);
}

void Journal::Open(bool keep) {
  replayed_ = 0;
  replaying_ = false;
  synced_ = options_.now();
  position_ = sizeof(Header);
  descriptor_ = open(options_.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (descriptor_ < 0) return GiveUp(absl::ErrnoToStatus(errno, "cannot be opened"));
  Header header;
  if (keep && ReadAll(descriptor_, &header, sizeof(header), 0) && std::memcmp(header.magic, Header().magic, sizeof(header.magic)) == 0 &&
      header.iteration == iteration_) {
    replaying_ = true;
    return;
  }
  header = {.iteration = iteration_};
  if (ftruncate(descriptor_, 0) != 0 || lseek(descriptor_, 0, SEEK_SET) != 0) return GiveUp(absl::ErrnoToStatus(errno, "cannot be emptied"));
  if (absl::Status written = WriteAll(descriptor_, &header, sizeof(header)); !written.ok()) GiveUp(written);
}

void Journal::GiveUp(const absl::Status& why) {
  options_.log(absl::StrCat("the journal ", options_.path, " ", why.message(), "; if the server ends now, the whole iteration is done again"));
  if (descriptor_ >= 0) {
    // Half an entry is not whole, and is passed over; the room that it takes is given back.
    if (ftruncate(descriptor_, 0) != 0) errno = 0;
    close(descriptor_);
  }
  descriptor_ = -1;
  replaying_ = false;
}

void Journal::EndReplay() {
  replaying_ = false;
  if (ftruncate(descriptor_, static_cast<off_t>(position_)) != 0 || lseek(descriptor_, static_cast<off_t>(position_), SEEK_SET) < 0) {
    GiveUp(absl::ErrnoToStatus(errno, "cannot be cut"));
  }
}

std::optional<v1::JournalEntry> Journal::Next(uint64_t question,
                                              absl::FunctionRef<std::vector<absl::Span<char>>(const v1::JournalEntry&)> vectors) {
  if (!replaying_) return std::nullopt;
  constexpr uint64_t kMostMessageBytes = uint64_t{1} << 24;
  EntryHead head;
  v1::JournalEntry entry;
  std::string message;
  uint64_t checksum = 0, position = position_ + sizeof(head);
  const bool whole = [&] {
    struct stat file {};
    if (fstat(descriptor_, &file) != 0 || !ReadAll(descriptor_, &head, sizeof(head), position_) || head.message_bytes > kMostMessageBytes ||
        head.vector_bytes > static_cast<uint64_t>(file.st_size)) {
      return false;
    }
    message.resize(head.message_bytes);
    if (!ReadAll(descriptor_, message.data(), message.size(), position) || !entry.ParseFromString(message) || entry.question() != question) return false;
    position += message.size();
    uint64_t bytes = 0;
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, message.data(), message.size());
    for (const absl::Span<char> vector : vectors(entry)) {
      if ((bytes += vector.size()) > head.vector_bytes || !ReadAll(descriptor_, vector.data(), vector.size(), position)) return false;
      XXH3_64bits_update(&state, vector.data(), vector.size());
      position += vector.size();
    }
    return bytes == head.vector_bytes && ReadAll(descriptor_, &checksum, sizeof(checksum), position) && checksum == XXH3_64bits_digest(&state);
  }();
  if (!whole) {
    EndReplay();
    return std::nullopt;
  }
  position_ = position + sizeof(checksum);
  ++replayed_;
  return entry;
}

void Journal::Append(const v1::JournalEntry& entry, absl::Span<const absl::Span<const char>> vectors) {
  if (descriptor_ < 0) return;
  const std::string message = entry.SerializeAsString();
  EntryHead head{.message_bytes = message.size()};
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, message.data(), message.size());
  for (const absl::Span<const char> vector : vectors) {
    head.vector_bytes += vector.size();
    XXH3_64bits_update(&state, vector.data(), vector.size());
  }
  const uint64_t checksum = XXH3_64bits_digest(&state);
  const absl::Status written = [&]() -> absl::Status {
    HFOPT_RETURN_IF_ERROR(WriteAll(descriptor_, &head, sizeof(head)));
    HFOPT_RETURN_IF_ERROR(WriteAll(descriptor_, message.data(), message.size()));
    HFOPT_FAILPOINT_OR_RETURN("journal.write");
    for (const absl::Span<const char> vector : vectors) HFOPT_RETURN_IF_ERROR(WriteAll(descriptor_, vector.data(), vector.size()));
    HFOPT_RETURN_IF_ERROR(WriteAll(descriptor_, &checksum, sizeof(checksum)));
    if (const absl::Time now = options_.now(); now - synced_ >= options_.sync_interval) {
      HFOPT_FAILPOINT_OR_RETURN("journal.sync");
      if (fdatasync(descriptor_) != 0) return absl::ErrnoToStatus(errno, "cannot be synced");
      synced_ = now;
    }
    return absl::OkStatus();
  }();
  if (!written.ok()) GiveUp(written);
}

template <typename Scalar>
absl::StatusOr<std::vector<LossAnswer>> JournaledObjective<Scalar>::Losses(const Vector<Scalar>& theta, absl::Span<const Trial<Scalar>> trials,
                                                                           const Sample& sample) {
  Question question(Question::Kind::kLosses);
  question.Add(theta).Add(sample).Add(trials.size());
  for (const Trial<Scalar>& trial : trials) {
    question.Add(trial.step).Add(trial.direction != nullptr);
    if (trial.direction != nullptr) question.Add(*trial.direction);
  }
  if (const auto entry = journal_.Next(question.hash(), [](const auto&) { return std::vector<absl::Span<char>>(); }); entry.has_value()) {
    std::vector<LossAnswer> answers;
    for (const v1::JournalLoss& loss : entry->losses()) {
      answers.push_back({.loss = loss.loss(), .weight = loss.weight(), .metrics = {loss.metrics().begin(), loss.metrics().end()}});
    }
    return answers;
  }
  HFOPT_ASSIGN_OR_RETURN(std::vector<LossAnswer> answers, objective_.Losses(theta, trials, sample));
  v1::JournalEntry entry;
  entry.set_question(question.hash());
  for (const LossAnswer& answer : answers) {
    v1::JournalLoss& loss = *entry.add_losses();
    loss.set_loss(answer.loss);
    loss.set_weight(answer.weight);
    loss.mutable_metrics()->insert(answer.metrics.begin(), answer.metrics.end());
  }
  journal_.Append(entry, {});
  return answers;
}

template <typename Scalar>
absl::StatusOr<GradientAnswer<Scalar>> JournaledObjective<Scalar>::Gradient(const Vector<Scalar>& theta, const Sample& sample,
                                                                            const GradientExtras& extras) {
  const uint64_t question =
      Question(Question::Kind::kGradient).Add(theta).Add(sample).Add(extras.sub_batches).Add(extras.second_moment).hash();
  GradientAnswer<Scalar> kept;
  const auto entry = journal_.Next(question, [&](const v1::JournalEntry& e) {
    // No more than can be: the file may be damaged, and its checksum comes behind the vectors.
    const auto size = [&](int i) { return i < e.vector_sizes_size() && e.vector_sizes(i) == static_cast<uint64_t>(theta.size()) ? theta.size() : 0; };
    kept.gradient.resize(size(0));
    kept.second_moment.resize(size(1));
    return std::vector<absl::Span<char>>{BytesOf(kept.gradient), BytesOf(kept.second_moment)};
  });
  if (entry.has_value()) {
    kept.loss = entry->loss();
    kept.weight = entry->weight();
    kept.noise = entry->noise();
    return kept;
  }
  HFOPT_ASSIGN_OR_RETURN(GradientAnswer<Scalar> answer, objective_.Gradient(theta, sample, extras));
  v1::JournalEntry fresh;
  fresh.set_question(question);
  fresh.set_loss(answer.loss);
  fresh.set_weight(answer.weight);
  fresh.set_noise(answer.noise);
  fresh.add_vector_sizes(answer.gradient.size());
  fresh.add_vector_sizes(answer.second_moment.size());
  journal_.Append(fresh, {BytesOf(std::as_const(answer.gradient)), BytesOf(std::as_const(answer.second_moment))});
  return answer;
}

template <typename Scalar>
class JournaledObjective<Scalar>::Product final : public CurvatureProduct<Scalar> {
 public:
  Product(std::unique_ptr<CurvatureProduct<Scalar>> product, Question at, Journal& journal)
      : product_(std::move(product)), at_(at), journal_(journal) {}

  absl::Status Apply(const Vector<Scalar>& v, Vector<Scalar>& product) override {
    const uint64_t question = Question(at_).Add(v).hash();
    const auto entry = journal_.Next(question, [&](const v1::JournalEntry& e) {
      product.resize(e.vector_sizes_size() == 1 && e.vector_sizes(0) == static_cast<uint64_t>(v.size()) ? v.size() : 0);
      return std::vector<absl::Span<char>>{BytesOf(product)};
    });
    if (entry.has_value()) return absl::OkStatus();
    HFOPT_RETURN_IF_ERROR(product_->Apply(v, product));
    v1::JournalEntry fresh;
    fresh.set_question(question);
    fresh.add_vector_sizes(product.size());
    journal_.Append(fresh, {BytesOf(std::as_const(product))});
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<CurvatureProduct<Scalar>> product_;
  const Question at_;
  Journal& journal_;
};

template <typename Scalar>
absl::StatusOr<std::unique_ptr<CurvatureProduct<Scalar>>> JournaledObjective<Scalar>::GaussNewtonAt(const Vector<Scalar>& theta,
                                                                                                    const Sample& sample) {
  HFOPT_ASSIGN_OR_RETURN(auto product, objective_.GaussNewtonAt(theta, sample));
  return std::make_unique<Product>(std::move(product), Question(Question::Kind::kProduct).Add(theta).Add(sample), journal_);
}

template class JournaledObjective<float>;
template class JournaledObjective<double>;

}  // namespace hfopt::server
