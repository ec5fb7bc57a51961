#ifndef HFOPT_TESTS_CLIENT_MODELS_DENSE_SOURCE_H_
#define HFOPT_TESTS_CLIENT_MODELS_DENSE_SOURCE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "client/models/data_source.h"

namespace hfopt::models {

// Training and held-out examples alike are the columns of these matrices.
template <typename Scalar>
class DenseSource final : public DataSource<Scalar> {
 public:
  DenseSource(const Eigen::MatrixXd& inputs, const Eigen::MatrixXd& targets, std::vector<int32_t> labels,
              int64_t num_classes)
      : inputs_(inputs.cast<Scalar>()),
        targets_(targets.cast<Scalar>()),
        labels_(std::move(labels)),
        num_classes_(num_classes) {}

  int64_t num_examples(client::DataSet) const override { return inputs_.cols(); }
  int64_t input_size() const override { return inputs_.rows(); }
  int64_t num_classes() const override { return num_classes_; }
  int64_t target_size() const override { return targets_.rows(); }
  std::string signature() const override { return "dense"; }

  void Inputs(client::DataSet, int64_t begin, Eigen::Ref<Matrix<Scalar>> inputs) const override {
    inputs = inputs_.middleCols(begin, inputs.cols());
  }
  void Labels(client::DataSet, int64_t begin, absl::Span<int32_t> labels) const override {
    for (size_t j = 0; j < labels.size(); ++j) labels[j] = labels_[begin + j];
  }
  void Targets(client::DataSet, int64_t begin, Eigen::Ref<Matrix<Scalar>> targets) const override {
    targets = targets_.middleCols(begin, targets.cols());
  }

 private:
  Matrix<Scalar> inputs_;
  Matrix<Scalar> targets_;
  std::vector<int32_t> labels_;
  int64_t num_classes_;
};

}  // namespace hfopt::models

#endif  // HFOPT_TESTS_CLIENT_MODELS_DENSE_SOURCE_H_
