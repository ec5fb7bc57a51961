#ifndef QUADRATIC_H_
#define QUADRATIC_H_

#include <memory>
#include <string>
#include <utility>

#include "client/cpp/model.h"

namespace hc = hfopt::client;
using In = const hc::ConstVectorRef<double>&;
using Out = hc::VectorRef<double>;

// loss = sum over examples i of (theta_i - i)^2 / 2.
struct Quadratic : hc::Model<double> {
  int64_t num_parameters() const override { return 4; }
  int64_t num_examples(hc::DataSet) const override { return 4; }
  std::string signature() const override { return "quadratic"; }

  absl::StatusOr<hc::LossSum> Loss(In theta, const hc::Examples& examples) override {
    hc::Vector<double> ignored(4);
    return Gradient(theta, examples, ignored);
  }
  absl::StatusOr<hc::LossSum> Gradient(In theta, const hc::Examples& examples, Out gradient) override {
    hc::LossSum sum;
    gradient.setZero();
    for (const hc::IndexRange& range : examples.ranges) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        gradient[i] = theta[i] - static_cast<double>(i);
        sum.loss += gradient[i] * gradient[i] / 2;
        sum.weight += 1;
      }
    }
    return sum;
  }

  struct Identity : hc::Linearization<double> {
    explicit Identity(hc::Examples e) : examples(std::move(e)) {}
    absl::Status GaussNewtonProduct(In v, Out product) override {
      product.setZero();
      for (const hc::IndexRange& range : examples.ranges) {
        for (int64_t i = range.begin; i < range.end; ++i) product[i] = v[i];
      }
      return absl::OkStatus();
    }
    double weight() const override { return static_cast<double>(examples.size()); }
    hc::Examples examples;
  };
  absl::StatusOr<std::unique_ptr<hc::Linearization<double>>> Linearize(In, const hc::Examples& examples) override {
    return std::make_unique<Identity>(examples);
  }
};

#endif  // QUADRATIC_H_
