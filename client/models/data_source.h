#ifndef HFOPT_CLIENT_MODELS_DATA_SOURCE_H_
#define HFOPT_CLIENT_MODELS_DATA_SOURCE_H_

#include <cstdint>
#include <string>

#include "Eigen/Core"
#include "absl/types/span.h"
#include "client/cpp/model.h"

namespace hfopt::models {

template <typename Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;  // a column for each example

// Where a network gets its examples from, in their fixed, shuffled order: a source keeps its data as small as it likes
// (bytes, frames without their context) and spreads out one block of columns at a time. Calls are cheap against the
// network's arithmetic and are repeated for every evaluation. All functions are pure; 0 <= begin, begin + number of
// columns <= num_examples(data).
template <typename Scalar>
class DataSource {
 public:
  virtual ~DataSource() = default;

  virtual int64_t num_examples(client::DataSet data) const = 0;
  virtual int64_t input_size() const = 0;
  virtual int64_t num_classes() const { return 0; }  // 0: the examples have no labels
  virtual int64_t target_size() const { return 0; }  // 0: the examples have no target values
  // Part of the model's signature: what workers of one run must have in common.
  virtual std::string signature() const = 0;

  // Column j of `inputs` (input_size() rows) becomes the input of example begin + j.
  virtual void Inputs(client::DataSet data, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const = 0;
  // labels[j] becomes the class of example begin + j, in [0, num_classes()). Only where there are labels.
  virtual void Labels(client::DataSet, int64_t /*begin*/, absl::Span<int32_t> /*labels*/) const {}
  // Column j of `targets` (target_size() rows) becomes the target of example begin + j. Only where there are target
  // values.
  virtual void Targets(client::DataSet, int64_t /*begin*/, Eigen::Ref<Matrix<Scalar>> /*targets*/) const {}
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_DATA_SOURCE_H_
