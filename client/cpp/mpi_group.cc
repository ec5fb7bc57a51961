#include "client/cpp/mpi_group.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hfopt::client {
namespace {

enum class Operation : int32_t { kLoss, kGradient, kLinearize, kProduct, kSecondMoment, kRelease, kEnd };

// What rank 0 tells the others first. Ranges of examples follow where there are some, then theta if it is another one, or the direction.
struct Command {
  Operation operation = Operation::kEnd;
  int32_t data = 0;
  uint64_t linearization = 0;
  uint64_t ranges = 0;
  int32_t theta_is_new = 0;
};

template <typename Scalar>
MPI_Datatype TypeOf() {
  return sizeof(Scalar) == 4 ? MPI_FLOAT : MPI_DOUBLE;
}

// In parts of what a count of MPI can say.
template <typename Call>
void InParts(int64_t n, const Call& call) {
  constexpr int64_t kPart = 1 << 28;
  for (int64_t begin = 0; begin < n; begin += kPart) call(begin, static_cast<int>(std::min(kPart, n - begin)));
}

// One rank's view of the group, and its part of every request. All ranks make the same calls in the same order.
template <typename Scalar>
class Rank {
 public:
  Rank(Model<Scalar>& model, MPI_Comm group) : model_(model), group_(group) {
    MPI_Comm_rank(group, &rank_);
    MPI_Comm_size(group, &size_);
  }
  bool is_first() const { return rank_ == 0; }

  // Rank 0's values against this rank's own.
  absl::Status CheckSameModel() {
    const std::string own = absl::StrCat(model_.signature(), ", ", model_.num_parameters(), " parameters, ", model_.num_examples(DataSet::kTraining), " + ",
                                         model_.num_examples(DataSet::kHeldOut), " examples");
    const std::string first = Broadcast(own, 0);
    return Agree(own == first ? absl::OkStatus()
                              : absl::FailedPreconditionError(absl::StrCat("its model is ", own, ", that of rank 0 is ", first,
                                                                           "; start all ranks with the same options and data")));
  }

  // Rank 0 tells, the others are told. The others sleep meanwhile: most implementations of MPI would spend a core on waiting.
  void Tell(Command& command, std::vector<IndexRange>& ranges) {
    MPI_Request request;
    MPI_Ibcast(&command, sizeof(command), MPI_BYTE, 0, group_, &request);
    auto pause = std::chrono::microseconds(0);
    for (int done = 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE), done == 0;) {
      std::this_thread::sleep_for(pause);
      pause = std::min(pause + std::chrono::microseconds(5), std::chrono::microseconds(1000));
    }
    ranges.resize(command.ranges);
    MPI_Bcast(ranges.data(), static_cast<int>(ranges.size() * sizeof(IndexRange)), MPI_BYTE, 0, group_);
  }

  void Broadcast(VectorRef<Scalar> vector) {
    InParts(vector.size(), [&](int64_t begin, int count) { MPI_Bcast(vector.data() + begin, count, TypeOf<Scalar>(), 0, group_); });
  }

  // This rank's share: equal ones, in the order of the ranks.
  Examples Share(const Examples& examples) const {
    const int64_t n = examples.size();
    return examples.Part(rank_ * n / size_, (rank_ + 1) * n / size_);
  }

  // --- A request's answer; on rank 0 it is that of the whole group.

  absl::StatusOr<LossSum> Loss(const ConstVectorRef<Scalar>& theta, const Examples& examples) {
    const Examples share = Share(examples);
    absl::StatusOr<LossSum> sum = share.size() > 0 ? model_.Loss(theta, share) : LossSum();
    if (absl::Status agreed = Agree(sum.status()); !agreed.ok()) return agreed;
    return Add(*std::move(sum));
  }

  absl::StatusOr<LossSum> Gradient(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> gradient) {
    const Examples share = Share(examples);
    if (share.size() == 0) gradient.setZero();
    absl::StatusOr<LossSum> sum = share.size() > 0 ? model_.Gradient(theta, share, gradient) : LossSum();
    if (absl::Status agreed = Agree(sum.status()); !agreed.ok()) return agreed;
    Add(gradient);
    return Add(*std::move(sum));
  }

  absl::Status SecondMoment(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> second_moment) {
    const Examples share = Share(examples);
    if (share.size() == 0) second_moment.setZero();
    if (absl::Status agreed = Agree(share.size() > 0 ? model_.SecondMoment(theta, share, second_moment) : absl::OkStatus()); !agreed.ok()) return agreed;
    Add(second_moment);
    return absl::OkStatus();
  }

  // The weight; what it is of is kept under `id`.
  absl::StatusOr<double> Linearize(const ConstVectorRef<Scalar>& theta, const Examples& examples, uint64_t id) {
    const Examples share = Share(examples);
    absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> own = nullptr;
    if (share.size() > 0) own = model_.Linearize(theta, share);
    if (absl::Status agreed = Agree(own.status()); !agreed.ok()) return agreed;
    double weight = *own != nullptr ? (*own)->weight() : 0;
    linearizations_[id] = *std::move(own);
    MPI_Allreduce(MPI_IN_PLACE, &weight, 1, MPI_DOUBLE, MPI_SUM, group_);
    return weight;
  }

  absl::Status Product(uint64_t id, const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) {
    Linearization<Scalar>* const own = linearizations_.at(id).get();
    if (own == nullptr) product.setZero();
    if (absl::Status agreed = Agree(own != nullptr ? own->GaussNewtonProduct(v, product) : absl::OkStatus()); !agreed.ok()) return agreed;
    Add(product);
    return absl::OkStatus();
  }

  void Release(uint64_t id) { linearizations_.erase(id); }

 private:
  std::string Broadcast(std::string text, int from) {
    int64_t size = static_cast<int64_t>(text.size());
    MPI_Bcast(&size, 1, MPI_INT64_T, from, group_);
    text.resize(size);
    MPI_Bcast(text.data(), static_cast<int>(size), MPI_BYTE, from, group_);
    return text;
  }

  // OK if all are; otherwise the failure of the first rank that has one, for everybody.
  absl::Status Agree(const absl::Status& own) {
    int first = own.ok() ? size_ : rank_;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, group_);
    if (first == size_) return absl::OkStatus();
    int code = own.raw_code();
    MPI_Bcast(&code, 1, MPI_INT, first, group_);
    return absl::Status(static_cast<absl::StatusCode>(code), absl::StrCat("rank ", first, " of ", size_, ": ", Broadcast(std::string(own.message()), first)));
  }

  void Add(VectorRef<Scalar> vector) {
    InParts(vector.size(), [&](int64_t begin, int count) {
      Scalar* const part = vector.data() + begin;
      MPI_Reduce(is_first() ? MPI_IN_PLACE : part, part, count, TypeOf<Scalar>(), MPI_SUM, 0, group_);
    });
  }

  // The names of metrics are those of the first rank that has some: others may have had no example.
  LossSum Add(LossSum own) {
    int first = own.metrics.empty() ? size_ : rank_;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, group_);
    std::vector<double> sums = {own.loss, own.weight};
    std::string names;
    if (first < size_) {
      for (const auto& [name, sum] : own.metrics) names += name + '\n';
      names = Broadcast(names, first);
      for (size_t begin = 0; begin < names.size();) {
        const size_t end = names.find('\n', begin);
        const auto metric = own.metrics.find(names.substr(begin, end - begin));
        sums.push_back(metric == own.metrics.end() ? 0 : metric->second);
        begin = end + 1;
      }
    }
    MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, group_);
    LossSum total{.loss = sums[0], .weight = sums[1], .metrics = {}};
    for (size_t begin = 0, i = 2; begin < names.size(); ++i) {
      const size_t end = names.find('\n', begin);
      total.metrics[names.substr(begin, end - begin)] = sums[i];
      begin = end + 1;
    }
    return total;
  }

  Model<Scalar>& model_;
  const MPI_Comm group_;
  int rank_ = 0, size_ = 1;
  std::map<uint64_t, std::unique_ptr<Linearization<Scalar>>> linearizations_;
};

}  // namespace

template <typename Scalar>
class MpiModel<Scalar>::Impl {
 public:
  Impl(Model<Scalar>& model, MPI_Comm group) : rank(model, group) {}
  ~Impl() { Tell({.operation = Operation::kEnd}, {}); }

  void Tell(Command command, std::vector<IndexRange> ranges) {
    command.ranges = ranges.size();
    rank.Tell(command, ranges);
  }
  // An operation at a point, which is sent if it is another one than before.
  void Tell(Operation operation, const ConstVectorRef<Scalar>& theta, const Examples& examples, uint64_t id = 0) {
    const bool is_new = theta_.size() != theta.size() || std::memcmp(theta_.data(), theta.data(), theta.size() * sizeof(Scalar)) != 0;
    Tell({.operation = operation, .data = static_cast<int32_t>(examples.data), .linearization = id, .theta_is_new = is_new ? 1 : 0}, examples.ranges);
    if (!is_new) return;
    theta_ = theta;
    rank.Broadcast(theta_);
  }

  Rank<Scalar> rank;
  uint64_t next_linearization = 1;
  Vector<Scalar> direction;

 private:
  Vector<Scalar> theta_;  // as the others have it
};

template <typename Scalar>
class MpiModel<Scalar>::GroupLinearization final : public Linearization<Scalar> {
 public:
  GroupLinearization(std::shared_ptr<Impl> group, uint64_t id, double weight) : group_(std::move(group)), id_(id), weight_(weight) {}
  ~GroupLinearization() override {
    group_->Tell({.operation = Operation::kRelease, .linearization = id_}, {});
    group_->rank.Release(id_);
  }
  absl::Status GaussNewtonProduct(const ConstVectorRef<Scalar>& v, VectorRef<Scalar> product) override {
    group_->Tell({.operation = Operation::kProduct, .linearization = id_}, {});
    group_->direction = v;
    group_->rank.Broadcast(group_->direction);
    return group_->rank.Product(id_, v, product);
  }
  double weight() const override { return weight_; }

 private:
  const std::shared_ptr<Impl> group_;
  const uint64_t id_;
  const double weight_;
};

template <typename Scalar>
MpiModel<Scalar>::MpiModel(Model<Scalar>& model, std::unique_ptr<Impl> impl) : model_(model), impl_(std::move(impl)) {}

template <typename Scalar>
MpiModel<Scalar>::~MpiModel() = default;

template <typename Scalar>
absl::StatusOr<std::unique_ptr<MpiModel<Scalar>>> MpiModel<Scalar>::Create(Model<Scalar>& model, MPI_Comm group) {
  if (absl::Status same = Rank<Scalar>(model, group).CheckSameModel(); !same.ok()) return same;
  return std::unique_ptr<MpiModel>(new MpiModel(model, std::make_unique<Impl>(model, group)));
}

template <typename Scalar>
absl::StatusOr<LossSum> MpiModel<Scalar>::Loss(const ConstVectorRef<Scalar>& theta, const Examples& examples) {
  impl_->Tell(Operation::kLoss, theta, examples);
  return impl_->rank.Loss(theta, examples);
}

template <typename Scalar>
absl::StatusOr<LossSum> MpiModel<Scalar>::Gradient(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> gradient) {
  impl_->Tell(Operation::kGradient, theta, examples);
  return impl_->rank.Gradient(theta, examples, gradient);
}

template <typename Scalar>
absl::Status MpiModel<Scalar>::SecondMoment(const ConstVectorRef<Scalar>& theta, const Examples& examples, VectorRef<Scalar> second_moment) {
  impl_->Tell(Operation::kSecondMoment, theta, examples);
  return impl_->rank.SecondMoment(theta, examples, second_moment);
}

template <typename Scalar>
absl::StatusOr<std::unique_ptr<Linearization<Scalar>>> MpiModel<Scalar>::Linearize(const ConstVectorRef<Scalar>& theta, const Examples& examples) {
  const uint64_t id = impl_->next_linearization++;
  impl_->Tell(Operation::kLinearize, theta, examples, id);
  const absl::StatusOr<double> weight = impl_->rank.Linearize(theta, examples, id);
  if (!weight.ok()) return weight.status();
  return std::make_unique<GroupLinearization>(impl_, id, *weight);
}

template <typename Scalar>
absl::Status FollowMpiGroup(Model<Scalar>& model, MPI_Comm group) {
  Rank<Scalar> rank(model, group);
  if (absl::Status same = rank.CheckSameModel(); !same.ok()) return same;
  const int64_t n = model.num_parameters();
  // A linearization looks at the theta that it was made for.
  std::shared_ptr<Vector<Scalar>> theta;
  std::map<uint64_t, std::shared_ptr<Vector<Scalar>>> kept;
  Vector<Scalar> direction(n), answer(n);
  while (true) {
    Command command;
    Examples examples;
    rank.Tell(command, examples.ranges);
    examples.data = static_cast<DataSet>(command.data);
    if (command.theta_is_new != 0) {
      theta = std::make_shared<Vector<Scalar>>(n);
      rank.Broadcast(*theta);
    }
    // What comes of it, failures too, is rank 0's.
    switch (command.operation) {
      case Operation::kLoss:
        rank.Loss(*theta, examples).IgnoreError();
        break;
      case Operation::kGradient:
        rank.Gradient(*theta, examples, answer).IgnoreError();
        break;
      case Operation::kSecondMoment:
        rank.SecondMoment(*theta, examples, answer).IgnoreError();
        break;
      case Operation::kLinearize:
        if (rank.Linearize(*theta, examples, command.linearization).ok()) kept[command.linearization] = theta;
        break;
      case Operation::kProduct:
        rank.Broadcast(direction);
        rank.Product(command.linearization, direction, answer).IgnoreError();
        break;
      case Operation::kRelease:
        rank.Release(command.linearization);
        kept.erase(command.linearization);
        break;
      case Operation::kEnd:
        return absl::OkStatus();
    }
  }
}

template class MpiModel<float>;
template class MpiModel<double>;
template absl::Status FollowMpiGroup<float>(Model<float>&, MPI_Comm);
template absl::Status FollowMpiGroup<double>(Model<double>&, MPI_Comm);

}  // namespace hfopt::client
