#include "client/cpp/model.h"

#include <algorithm>

namespace hfopt::client {

Examples Examples::Part(int64_t begin, int64_t end) const {
  Examples part{.data = data};
  int64_t offset = 0;  // position of the current range's first example
  for (const IndexRange& r : ranges) {
    const int64_t size = r.end - r.begin;
    const int64_t lo = std::clamp<int64_t>(begin - offset, 0, size);
    const int64_t hi = std::clamp<int64_t>(end - offset, 0, size);
    if (lo < hi) part.ranges.push_back({r.begin + lo, r.begin + hi});
    offset += size;
  }
  return part;
}

template <typename Scalar>
absl::Status Model<Scalar>::SecondMoment(const ConstVectorRef<Scalar>&, const Examples&, VectorRef<Scalar>) {
  return absl::UnimplementedError("this model has no second moment; override Model::SecondMoment");
}

template <typename Scalar>
absl::StatusOr<Vector<Scalar>> Model<Scalar>::InitialParameters(uint64_t) {
  return absl::UnimplementedError("this model has no initial parameters; override Model::InitialParameters");
}

template class Model<float>;
template class Model<double>;

}  // namespace hfopt::client
