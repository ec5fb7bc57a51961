#include "client/cpp/sub_batches.h"

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
absl::StatusOr<LossSum> GradientBySubBatches(Model<Scalar>& model, const std::type_identity_t<ConstVectorRef<Scalar>>& theta,
                                             const Examples& examples, int parts,
                                             std::type_identity_t<VectorRef<Scalar>> gradient,
                                             std::vector<SubBatch>& sub_batches) {
  sub_batches.clear();
  if (parts == 0) return model.Gradient(theta, examples, gradient);

  LossSum total;
  gradient.setZero();
  Vector<Scalar> part_gradient(gradient.size());
  for (int p = 0; p < parts; ++p) {
    const Examples part = examples.Part(PartBegin(examples.size(), p, parts), PartBegin(examples.size(), p + 1, parts));
    sub_batches.emplace_back();
    if (part.size() == 0) continue;
    const absl::StatusOr<LossSum> loss = model.Gradient(theta, part, part_gradient);
    if (!loss.ok()) return loss.status();
    gradient += part_gradient;
    sub_batches.back() = {.squared_norm = SquaredNorm(part_gradient), .weight = loss->weight};
    total.loss += loss->loss;
    total.weight += loss->weight;
    for (const auto& [name, sum] : loss->metrics) total.metrics[name] += sum;
  }
  return total;
}

#define HFOPT_INSTANTIATE(Scalar)                                                                                   \
  template absl::StatusOr<LossSum> GradientBySubBatches<Scalar>(Model<Scalar>&, const ConstVectorRef<Scalar>&,      \
                                                                const Examples&, int, VectorRef<Scalar>,            \
                                                                std::vector<SubBatch>&);
HFOPT_INSTANTIATE(float)
HFOPT_INSTANTIATE(double)
#undef HFOPT_INSTANTIATE

}  // namespace hfopt::client
