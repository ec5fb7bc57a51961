#ifndef HFOPT_CORE_COST_H_
#define HFOPT_CORE_COST_H_

#include <cstdint>

namespace hfopt {

// Evaluations asked of the objective, and the examples they were about. Several points in one Losses call count each.
struct Cost {
  int64_t gradients = 0;
  int64_t gradient_examples = 0;
  int64_t linearizations = 0;  // forward passes kept for the products of one solve
  int64_t linearization_examples = 0;
  int64_t products = 0;
  int64_t product_examples = 0;
  int64_t losses = 0;
  int64_t loss_examples = 0;
  int64_t exchanges = 0;  // synchronisations: calls that all clients must answer before the next; several losses are one

  // The unit in which methods are compared: forward or loss 1, gradient 3, Gauss-Newton product 4, over the number of
  // training examples.
  double ExamplePasses(int64_t training_examples) const {
    return (3.0 * gradient_examples + linearization_examples + 4.0 * product_examples + loss_examples) /
           training_examples;
  }

  friend bool operator==(const Cost&, const Cost&) = default;
};

}  // namespace hfopt

#endif  // HFOPT_CORE_COST_H_
