// A model on many ranks against the same model in one process. All ranks go through the scenarios in one order: rank 0 asks and compares, the others
// follow.

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "client/cpp/mpi_group.h"
#include "client/models/model_factory.h"

namespace hfopt::client {
namespace {

int failures = 0;

void Expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

template <typename Scalar>
void ExpectNear(const Vector<Scalar>& a, const Vector<Scalar>& b, const std::string& what) {
  const double error = (a - b).template cast<double>().norm() / b.template cast<double>().norm();
  Expect(error <= 100 * std::numeric_limits<Scalar>::epsilon(), what + ": relative difference " + std::to_string(error));
}

template <typename Scalar>
void ExpectNear(double a, double b, const std::string& what) {
  Expect(std::abs(a - b) <= 100 * std::numeric_limits<Scalar>::epsilon() * std::abs(b), what + ": " + std::to_string(a) + " and " + std::to_string(b));
}

template <typename Scalar>
std::unique_ptr<Model<Scalar>> Digits() {
  return models::MakeModel<Scalar>({.task = "digits", .data = HFOPT_DIGITS_DATA, .layers = "64-12-10", .l2 = 1e-3}).value();
}

// All of it fails, or is called something else.
class Wrong : public Model<double> {
 public:
  Wrong(bool fails, std::string name) : fails_(fails), name_(std::move(name)) {}
  int64_t num_parameters() const override { return 2; }
  int64_t num_examples(DataSet) const override { return 12; }
  std::string signature() const override { return name_; }
  absl::StatusOr<LossSum> Loss(const ConstVectorRef<double>&, const Examples& examples) override {
    if (fails_) return absl::ResourceExhaustedError("out of memory");
    return LossSum{1, static_cast<double>(examples.size()), {}};
  }
  absl::StatusOr<LossSum> Gradient(const ConstVectorRef<double>& theta, const Examples& examples, VectorRef<double> gradient) override {
    gradient.setOnes();
    return Loss(theta, examples);
  }
  absl::StatusOr<std::unique_ptr<Linearization<double>>> Linearize(const ConstVectorRef<double>&, const Examples&) override {
    return absl::InternalError("no linearization");
  }

 private:
  const bool fails_;
  const std::string name_;
};

template <typename Scalar>
void ComparesWithOneProcess(int rank) {
  const std::unique_ptr<Model<Scalar>> model = Digits<Scalar>();
  if (rank > 0) return Expect(FollowMpiGroup<Scalar>(*model, MPI_COMM_WORLD).ok(), "Follow");
  auto group = MpiModel<Scalar>::Create(*model, MPI_COMM_WORLD);
  if (!group.ok()) return Expect(false, group.status().ToString());
  const int64_t n = model->num_parameters();
  const Vector<Scalar> theta = *model->InitialParameters(1), other = *model->InitialParameters(2);
  const Vector<Scalar> v = Vector<Scalar>::LinSpaced(n, -1, 1);
  Vector<Scalar> a(n), b(n);
  // Many examples, windows that wrap, fewer examples than ranks.
  for (const Examples& examples : {Examples{DataSet::kTraining, {{0, 1400}}}, Examples{DataSet::kTraining, {{1300, 1400}, {0, 77}}},
                                   Examples{DataSet::kHeldOut, {{3, 5}}}, Examples{DataSet::kTraining, {{9, 10}}}}) {
    const std::string where = " of " + std::to_string(examples.size()) + " examples";
    const auto loss = (*group)->Loss(theta, examples), alone = model->Loss(theta, examples);
    if (!loss.ok()) return Expect(false, loss.status().ToString());
    ExpectNear<Scalar>(loss->loss, alone->loss, "loss" + where);
    Expect(loss->weight == alone->weight, "weight" + where);
    Expect(loss->metrics == alone->metrics, "metrics" + where);

    const auto gradient = (*group)->Gradient(theta, examples, a);
    ExpectNear<Scalar>(gradient->loss, model->Gradient(theta, examples, b)->loss, "loss with the gradient" + where);
    ExpectNear<Scalar>(a, b, "gradient" + where);
    Vector<Scalar> again(n);
    Expect((*group)->Gradient(theta, examples, again).ok() && again == a, "the same bits" + where);

    // Two points at a time.
    const auto at_theta = (*group)->Linearize(theta, examples);
    auto at_other = (*group)->Linearize(other, examples);
    Expect((*at_theta)->weight() == alone->weight, "weight of a linearization" + where);
    Expect((*at_other)->GaussNewtonProduct(v, a).ok() && (*model->Linearize(other, examples))->GaussNewtonProduct(v, b).ok(), "product" + where);
    ExpectNear<Scalar>(a, b, "product" + where);
    at_other->reset();
    Expect((*at_theta)->GaussNewtonProduct(v, a).ok() && (*model->Linearize(theta, examples))->GaussNewtonProduct(v, b).ok(), "product" + where);
    ExpectNear<Scalar>(a, b, "product at the first point" + where);

    if (!model->has_second_moment()) continue;
    Expect((*group)->SecondMoment(theta, examples, a).ok() && model->SecondMoment(theta, examples, b).ok(), "second moment" + where);
    ExpectNear<Scalar>(a, b, "second moment" + where);
  }
}

void NamesTheRankThatFails(int rank, int size) {
  Wrong model(rank == size - 1, "wrong");
  if (rank > 0) return Expect(FollowMpiGroup<double>(model, MPI_COMM_WORLD).ok(), "Follow");
  const auto group = MpiModel<double>::Create(model, MPI_COMM_WORLD);
  const std::string name = "rank " + std::to_string(size - 1) + " of " + std::to_string(size) + ": ";
  const Vector<double> theta = Vector<double>::Ones(2);
  Vector<double> gradient(2);
  const absl::Status loss = (*group)->Loss(theta, {DataSet::kTraining, {{0, 12}}}).status();
  Expect(loss == absl::ResourceExhaustedError(name + "out of memory"), loss.ToString());
  const absl::Status failed = (*group)->Gradient(theta, {DataSet::kTraining, {{0, 12}}}, gradient).status();
  Expect(absl::StrContains(failed.message(), name), failed.ToString());
  const absl::Status linearization = (*group)->Linearize(theta, {DataSet::kTraining, {{0, 12}}}).status();
  Expect(linearization == absl::InternalError("rank 0 of " + std::to_string(size) + ": no linearization"), linearization.ToString());
  // The group goes on: with so few examples the last rank has none.
  Expect((*group)->Loss(theta, {DataSet::kTraining, {}}).ok(), "a loss of nothing");
}

void RefusesDifferentModels(int rank) {
  Wrong model(false, rank == 1 ? "another" : "right");
  const absl::Status status = rank == 0 ? MpiModel<double>::Create(model, MPI_COMM_WORLD).status() : FollowMpiGroup<double>(model, MPI_COMM_WORLD);
  Expect(status.code() == absl::StatusCode::kFailedPrecondition && absl::StrContains(status.message(), "rank 1 of ") &&
             absl::StrContains(status.message(), "another, 2 parameters") && absl::StrContains(status.message(), "right, 2 parameters"),
         "different models: " + status.ToString());
}

int Main() {
  int level = 0, rank = 0, size = 1;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  Expect(size > 1, "one rank is no group");
  ComparesWithOneProcess<double>(rank);
  ComparesWithOneProcess<float>(rank);
  NamesTheRankThatFails(rank, size);
  RefusesDifferentModels(rank);
  MPI_Allreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hfopt::client

int main() { return hfopt::client::Main(); }
