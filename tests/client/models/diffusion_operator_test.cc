#include "client/models/diffusion_operator.h"

#include <cmath>
#include <limits>

#include "Eigen/Dense"
#include "client/cpp/shuffle.h"
#include "client/models/initialization.h"
#include "gtest/gtest.h"

namespace hfopt::models {
namespace {

constexpr double kPi = 3.14159265358979323846;
using Fields = DiffusionOperator::Fields;

Eigen::VectorXd RandomVector(int64_t size, uint64_t seed) {
  client::SplitMix64 generator(seed);
  Eigen::VectorXd v(size);
  for (double& x : v) x = Normal(generator);
  return v;
}

// Fields of random numbers, as columns of cells in their outer order and as Fields.
struct RandomFields {
  RandomFields(const DiffusionOperator& op, uint64_t seed)
      : dense(RandomVector(op.num_cells() * DiffusionOperator::kLanes, seed)
                  .reshaped(op.num_cells(), DiffusionOperator::kLanes)),
        fields(DiffusionOperator::kLanes, op.num_cells()) {
    for (int64_t cell = 0; cell < op.num_cells(); ++cell) fields.col(op.Column(cell)) = dense.row(cell).transpose();
  }
  Eigen::MatrixXd dense;
  Fields fields;
};

Eigen::MatrixXd ToDense(const DiffusionOperator& op, const Fields& fields) {
  Eigen::MatrixXd dense(op.num_cells(), fields.rows());
  for (int64_t cell = 0; cell < op.num_cells(); ++cell) dense.row(cell) = fields.col(op.Column(cell)).transpose();
  return dense;
}

// A(m) cell by cell: the flux out of each of its four sides is (difference to the other side) / (resistance of the way
// there), the way being half of this cell and half of the next, if there is one.
Eigen::MatrixXd DenseMatrix(int64_t grid, const Eigen::VectorXd& m) {
  Eigen::MatrixXd A = Eigen::MatrixXd::Zero(grid * grid, grid * grid);
  for (int64_t y = 0; y < grid; ++y) {
    for (int64_t x = 0; x < grid; ++x) {
      const int64_t here = x + grid * y;
      for (const auto& [dx, dy] : {std::pair{1, 0}, {-1, 0}, {0, 1}, {0, -1}}) {
        const int64_t to_x = x + dx, to_y = y + dy;
        double resistance = 0.5 / std::exp(m(here));
        if (to_x >= 0 && to_x < grid && to_y >= 0 && to_y < grid) {
          resistance += 0.5 / std::exp(m(to_x + grid * to_y));
          A(here, to_x + grid * to_y) -= 1 / resistance;
        }
        A(here, here) += 1 / resistance;
      }
    }
  }
  return A;
}

TEST(DiffusionOperator, IsTheMatrixOfTheFluxes) {
  for (const int64_t grid : {2, 3, 8}) {
    DiffusionOperator op(grid);
    const Eigen::VectorXd m = RandomVector(grid * grid, 1);
    const RandomFields u(op, 2);
    const auto factor = op.Factorize(m);
    ASSERT_TRUE(factor.has_value());

    Fields result;
    op.Multiply(factor->conductance, u.fields, result);

    const Eigen::MatrixXd expected = DenseMatrix(grid, m) * u.dense;
    EXPECT_LT((ToDense(op, result) - expected).norm(), 1e-13 * expected.norm()) << grid;
  }
}

TEST(DiffusionOperator, SolvesWithItsFactor) {
  for (const int64_t grid : {2, 3, 8}) {
    DiffusionOperator op(grid);
    const Eigen::VectorXd m = RandomVector(grid * grid, 1);
    const RandomFields b(op, 2);
    const auto factor = op.Factorize(m);
    ASSERT_TRUE(factor.has_value());

    Fields x = b.fields;
    op.Solve(*factor, x);

    const Eigen::MatrixXd expected = DenseMatrix(grid, m).ldlt().solve(b.dense);
    EXPECT_LT((ToDense(op, x) - expected).norm(), 1e-12 * expected.norm()) << grid;
  }
}

TEST(DiffusionOperator, ASolutionDoesNotDependOnThoseBesideIt) {
  DiffusionOperator op(8);
  const auto factor = op.Factorize(RandomVector(64, 1));
  Fields together = RandomFields(op, 2).fields, alone = Fields::Zero(together.rows(), together.cols());
  alone.row(3) = together.row(3);

  op.Solve(*factor, together);
  op.Solve(*factor, alone);

  EXPECT_TRUE((alone.row(3) == together.row(3)).all());
}

// u = sin(pi x) sin(pi y), m = x + y / 2: q = exp(m) (2 pi^2 u - du/dx - du/dy / 2).
double ErrorOfManufacturedSolution(int64_t grid) {
  DiffusionOperator op(grid);
  const double width = 1 / static_cast<double>(grid);
  Eigen::VectorXd m(grid * grid);
  Eigen::ArrayXd exact(grid * grid);
  Fields u = Fields::Zero(DiffusionOperator::kLanes, grid * grid);
  for (int64_t cell = 0; cell < grid * grid; ++cell) {
    const double x = (static_cast<double>(cell % grid) + 0.5) * width;
    const double y = (static_cast<double>(cell / grid) + 0.5) * width;
    m(cell) = x + y / 2;
    exact(cell) = std::sin(kPi * x) * std::sin(kPi * y);
    const double du_dx = kPi * std::cos(kPi * x) * std::sin(kPi * y);
    const double du_dy = kPi * std::sin(kPi * x) * std::cos(kPi * y);
    u(0, op.Column(cell)) = std::exp(m(cell)) * (2 * kPi * kPi * exact(cell) - du_dx - du_dy / 2) * width * width;
  }
  op.Solve(*op.Factorize(m), u);
  return (ToDense(op, u).col(0).array() - exact).abs().maxCoeff();
}

TEST(DiffusionOperator, ConvergesWithTheSquareOfTheCellWidth) {
  const double coarse = ErrorOfManufacturedSolution(16), fine = ErrorOfManufacturedSolution(32);

  EXPECT_LT(coarse, 0.01);
  EXPECT_NEAR(coarse / fine, 4, 0.4);
}

TEST(DiffusionOperator, ConductanceChangeIsTheDerivative) {
  DiffusionOperator op(5);
  const Eigen::VectorXd m = RandomVector(25, 1), v = RandomVector(25, 2);
  const double step = 1e-6;

  const Eigen::ArrayXd change = op.ConductanceChange(*op.Factorize(m), v);

  const Eigen::ArrayXd difference =
      (op.Factorize(m + step * v)->conductance - op.Factorize(m - step * v)->conductance) / (2 * step);
  EXPECT_LT((change - difference).abs().maxCoeff(), 1e-8);
}

TEST(DiffusionOperator, TransposesAreTransposes) {
  DiffusionOperator op(5);
  const auto factor = op.Factorize(RandomVector(25, 1));
  const Eigen::VectorXd v = RandomVector(25, 2);
  const Eigen::ArrayXd change = op.ConductanceChange(*factor, v);
  const Eigen::ArrayXd faces = RandomVector(change.size(), 3).array();
  EXPECT_NEAR((change * faces).sum(), op.TransposedConductanceChange(*factor, faces).dot(v), 1e-12);

  // w' A(k) u is linear in k, so its gradient times k is its value.
  const RandomFields w(op, 4), u(op, 5);
  Fields Au;
  op.Multiply(change, u.fields, Au);
  Eigen::ArrayXd gradient = Eigen::ArrayXd::Zero(change.size());
  op.AddFaceProducts(w.fields, u.fields, gradient);
  EXPECT_NEAR((gradient * change).sum(), (w.fields * Au).sum(), 1e-10);
}

TEST(DiffusionOperator, HasNoFactorWhereConductivitiesAreNotPositiveAndFinite) {
  DiffusionOperator op(4);
  const Eigen::VectorXd m = RandomVector(16, 1);
  for (const double bad :
       {1000.0, -1000.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t cell : {0, 5}) {
      Eigen::VectorXd at = m;
      at(cell) = bad;
      const auto factor = op.Factorize(at);
      // A cell that conducts perfectly is no fault inside, where half a cell of its neighbour limits the flux.
      EXPECT_EQ(factor.has_value(), cell == 5 && bad >= 1000) << bad << " in cell " << cell;
    }
  }
  EXPECT_TRUE(op.Factorize(m).has_value()) << "a failure must not spoil what follows";
}

}  // namespace
}  // namespace hfopt::models
