#include "client/cpp/sub_batches.h"

#include "absl/strings/str_cat.h"

namespace hfopt::client {
namespace {

template <typename Scalar>
double SquaredNorm(const Vector<Scalar>& v) {
  double sum = 0;
  for (const Scalar x : v) sum += static_cast<double>(x) * x;
  return sum;
}

}  // namespace

int64_t PartBegin(int64_t count, int64_t part, int64_t parts) {
  // With count = q parts + r: floor(part count / parts) = part q + floor(part r / parts), and part r < parts^2.
  const uint64_t remainder = static_cast<uint64_t>(count % parts) * part;
  return part * (count / parts) + remainder / parts;
}

template <typename Scalar>
absl::StatusOr<LossSum> GradientBySubBatches(Model<Scalar>& model, const Vector<Scalar>& theta,
                                             const Examples& examples, int parts, Vector<Scalar>& gradient,
                                             std::vector<SubBatch>& sub_batches) {
  const int64_t n = model.num_parameters();
  const auto ask = [&](const Examples& some, Vector<Scalar>& answer) -> absl::StatusOr<LossSum> {
    answer.resize(n);
    absl::StatusOr<LossSum> loss = model.Gradient(theta, some, answer);
    if (loss.ok() && answer.size() != n) {
      return absl::InternalError(
          absl::StrCat("the model's gradient has ", answer.size(), " elements, but the model has ", n, " parameters"));
    }
    return loss;
  };
  sub_batches.clear();
  if (parts == 0) return ask(examples, gradient);

  LossSum total;
  gradient.setZero(n);
  Vector<Scalar> part_gradient;
  for (int p = 0; p < parts; ++p) {
    const Examples part = examples.Part(PartBegin(examples.size(), p, parts), PartBegin(examples.size(), p + 1, parts));
    sub_batches.emplace_back();
    if (part.size() == 0) continue;
    const absl::StatusOr<LossSum> loss = ask(part, part_gradient);
    if (!loss.ok()) return loss.status();
    gradient += part_gradient;
    sub_batches.back() = {.squared_norm = SquaredNorm(part_gradient), .weight = loss->weight};
    total.loss += loss->loss;
    total.weight += loss->weight;
    for (const auto& [name, sum] : loss->metrics) total.metrics[name] += sum;
  }
  return total;
}

template absl::StatusOr<LossSum> GradientBySubBatches(Model<float>&, const Vector<float>&, const Examples&, int,
                                                      Vector<float>&, std::vector<SubBatch>&);
template absl::StatusOr<LossSum> GradientBySubBatches(Model<double>&, const Vector<double>&, const Examples&, int,
                                                      Vector<double>&, std::vector<SubBatch>&);

}  // namespace hfopt::client
