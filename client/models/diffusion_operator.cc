#include "client/models/diffusion_operator.h"

#include <algorithm>
#include <cmath>

#include "Eigen/OrderingMethods"

namespace hfopt::models {
namespace {

using Permutation = Eigen::PermutationMatrix<Eigen::Dynamic, Eigen::Dynamic, int>;

// The cells in an order of elimination that keeps L sparse.
Permutation EliminationOrder(int64_t grid) {
  std::vector<Eigen::Triplet<double>> neighbours;
  for (int cell = 0; cell < grid * grid; ++cell) {
    neighbours.emplace_back(cell, cell, 4);
    if ((cell + 1) % grid != 0) neighbours.emplace_back(cell, cell + 1, -1);
    if (cell + grid < grid * grid) neighbours.emplace_back(cell, cell + grid, -1);
  }
  Eigen::SparseMatrix<double> upper(grid * grid, grid * grid);
  upper.setFromTriplets(neighbours.begin(), neighbours.end());
  Permutation order;
  const Eigen::SparseMatrix<double> matrix = upper.selfadjointView<Eigen::Upper>();
  Eigen::AMDOrdering<int>()(matrix, order);
  return order;
}

}  // namespace

DiffusionOperator::DiffusionOperator(int64_t grid) : column_(grid * grid), upper_(grid * grid, grid * grid) {
  const Permutation order = EliminationOrder(grid);
  for (int position = 0; position < num_cells(); ++position) column_[order.indices()(position)] = position;
  for (int64_t y = 0; y < grid; ++y) {
    for (int64_t x = 0; x < grid; ++x) {
      const int here = column_[x + grid * y];
      if (x + 1 < grid) faces_.push_back({here, column_[x + 1 + grid * y]});
      if (y + 1 < grid) faces_.push_back({here, column_[x + grid * (y + 1)]});
      for (const bool at_boundary : {x == 0, x + 1 == grid, y == 0, y + 1 == grid}) {
        if (at_boundary) boundary_.push_back(here);
      }
    }
  }

  std::vector<Eigen::Triplet<double>> pattern;
  for (int j = 0; j < num_cells(); ++j) pattern.emplace_back(j, j, 0);
  for (const auto [a, b] : faces_) pattern.emplace_back(std::min(a, b), std::max(a, b), 0);
  upper_.setFromTriplets(pattern.begin(), pattern.end());
  solver_.analyzePattern(upper_);
  // Only a factorization tells the rows of L's entries. Every one puts them in the same places.
  const std::optional<Factor> unused = Factorize(Eigen::VectorXd::Zero(num_cells()));
  const auto& lower = solver_.matrixL().nestedExpression();
  lower_begin_.assign(lower.outerIndexPtr(), lower.outerIndexPtr() + num_cells() + 1);
  lower_row_.assign(lower.innerIndexPtr(), lower.innerIndexPtr() + lower_begin_.back());
}

std::optional<DiffusionOperator::Factor> DiffusionOperator::Factorize(const Eigen::VectorXd& m) {
  const auto positive = [](const Eigen::ArrayXd& x) { return (x > 0 && x.isFinite()).all(); };
  const Eigen::ArrayXd at = Permuted(m);
  const int64_t inner = static_cast<int64_t>(faces_.size());
  Factor factor{.conductance = Eigen::ArrayXd(num_faces()), .share = Eigen::ArrayXd(inner)};
  for (int64_t f = 0; f < inner; ++f) {
    const auto [a, b] = faces_[f];
    factor.conductance(f) = 2 / (std::exp(-at(a)) + std::exp(-at(b)));
    factor.share(f) = 1 / (1 + std::exp(at(a) - at(b)));
  }
  for (int64_t f = inner; f < num_faces(); ++f) factor.conductance(f) = 2 * std::exp(at(boundary_[f - inner]));
  if (!positive(factor.conductance)) return std::nullopt;

  Eigen::Map<Eigen::ArrayXd>(upper_.valuePtr(), upper_.nonZeros()).setZero();
  for (int64_t f = 0; f < inner; ++f) {
    const auto [a, b] = faces_[f];
    upper_.coeffRef(std::min(a, b), std::max(a, b)) = -factor.conductance(f);
    upper_.coeffRef(a, a) += factor.conductance(f);
    upper_.coeffRef(b, b) += factor.conductance(f);
  }
  for (int64_t f = inner; f < num_faces(); ++f) {
    upper_.coeffRef(boundary_[f - inner], boundary_[f - inner]) += factor.conductance(f);
  }
  solver_.factorize(upper_);
  if (solver_.info() != Eigen::Success || !positive(solver_.vectorD())) return std::nullopt;
  const auto& lower = solver_.matrixL().nestedExpression();
  factor.lower = Eigen::Map<const Eigen::ArrayXd>(lower.valuePtr(), lower.outerIndexPtr()[num_cells()]);
  factor.inverse_pivots = solver_.vectorD().array().inverse();
  return factor;
}

void DiffusionOperator::Solve(const Factor& factor, Fields& x) const {
  const int n = static_cast<int>(num_cells());
  for (int j = 0; j < n; ++j) {  // x <- L^-1 x
    const Eigen::Array<double, kLanes, 1> x_j = x.col(j);
    for (int p = lower_begin_[j]; p < lower_begin_[j + 1]; ++p) x.col(lower_row_[p]) -= factor.lower(p) * x_j;
  }
  for (int j = n - 1; j >= 0; --j) {  // x <- L'^-1 D^-1 x
    Eigen::Array<double, kLanes, 1> x_j = x.col(j) * factor.inverse_pivots(j);
    for (int p = lower_begin_[j]; p < lower_begin_[j + 1]; ++p) x_j -= factor.lower(p) * x.col(lower_row_[p]);
    x.col(j) = x_j;
  }
}

Eigen::ArrayXd DiffusionOperator::ConductanceChange(const Factor& factor, const Eigen::VectorXd& v) const {
  const Eigen::ArrayXd change = Permuted(v);
  const int64_t inner = static_cast<int64_t>(faces_.size());
  Eigen::ArrayXd result = factor.conductance;
  for (int64_t f = 0; f < inner; ++f) {
    const double share = factor.share(f);
    result(f) *= share * change(faces_[f].a) + (1 - share) * change(faces_[f].b);
  }
  for (int64_t f = inner; f < num_faces(); ++f) result(f) *= change(boundary_[f - inner]);
  return result;
}

Eigen::VectorXd DiffusionOperator::TransposedConductanceChange(const Factor& factor,
                                                               const Eigen::ArrayXd& faces) const {
  const int64_t inner = static_cast<int64_t>(faces_.size());
  Eigen::ArrayXd sums = Eigen::ArrayXd::Zero(num_cells());
  for (int64_t f = 0; f < inner; ++f) {
    const double change = factor.conductance(f) * faces(f);
    sums(faces_[f].a) += factor.share(f) * change;
    sums(faces_[f].b) += (1 - factor.share(f)) * change;
  }
  for (int64_t f = inner; f < num_faces(); ++f) sums(boundary_[f - inner]) += factor.conductance(f) * faces(f);
  Eigen::VectorXd result(num_cells());
  for (int64_t cell = 0; cell < num_cells(); ++cell) result(cell) = sums(column_[cell]);
  return result;
}

void DiffusionOperator::Multiply(const Eigen::ArrayXd& conductance, const Fields& u, Fields& result) const {
  const int64_t inner = static_cast<int64_t>(faces_.size());
  result.setZero(kLanes, num_cells());
  for (int64_t f = 0; f < inner; ++f) {
    const auto [a, b] = faces_[f];
    const Eigen::Array<double, kLanes, 1> flux = conductance(f) * (u.col(a) - u.col(b));
    result.col(a) += flux;
    result.col(b) -= flux;
  }
  for (int64_t f = inner; f < num_faces(); ++f) {
    result.col(boundary_[f - inner]) += conductance(f) * u.col(boundary_[f - inner]);
  }
}

void DiffusionOperator::AddFaceProducts(const Fields& w, const Fields& u, Eigen::ArrayXd& faces) const {
  const int64_t inner = static_cast<int64_t>(faces_.size());
  for (int64_t f = 0; f < inner; ++f) {
    const auto [a, b] = faces_[f];
    faces(f) += ((w.col(a) - w.col(b)) * (u.col(a) - u.col(b))).sum();
  }
  for (int64_t f = inner; f < num_faces(); ++f) {
    faces(f) += (w.col(boundary_[f - inner]) * u.col(boundary_[f - inner])).sum();
  }
}

Eigen::ArrayXd DiffusionOperator::Permuted(const Eigen::VectorXd& m) const {
  Eigen::ArrayXd permuted(num_cells());
  for (int64_t cell = 0; cell < num_cells(); ++cell) permuted(column_[cell]) = m(cell);
  return permuted;
}

}  // namespace hfopt::models
