#ifndef HFOPT_CLIENT_MODELS_DIFFUSION_OPERATOR_H_
#define HFOPT_CLIENT_MODELS_DIFFUSION_OPERATOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "Eigen/Core"
#include "Eigen/SparseCholesky"
#include "Eigen/SparseCore"

namespace hfopt::models {

// -div(exp(m) grad u) = q on the unit square with u = 0 on its boundary, by finite volumes on grid x grid square cells:
//     A(m) u = b,   b = the integrals of q over the cells,   m and u constant in each.
// A face between cells a and b carries the flux k (u_a - u_b), k = 2 / (exp(-m_a) + exp(-m_b)) being that of two half
// cells in series; a face on the boundary is half a cell away and carries k u_a, k = 2 exp(m_a). A is symmetric and
// positive definite; u converges with the square of a cell's width, away from point sources.
//
// Outside, cells are numbered row by row: cell x + grid * y. Fields keep theirs in the order in which they are
// eliminated, which saves permuting them; Column tells where.
//
// Pure functions of their arguments. Not thread-safe, because Factorize works in buffers of the operator.
class DiffusionOperator {
 public:
  // Fields that are solved for together: a row for each, a column for each cell, so that the innermost loop of a
  // triangular solve is a few vector instructions on a column. Measured at grid 96 for 64 fields on one AVX-512 core:
  // 8, 16, 32 and 64 rows take 4.1, 2.6, 2.4 and 2.4 ms; Eigen's SimplicialLDLT, field by field, 32 ms. Rows that are
  // not needed cost as much as others.
  static constexpr int kLanes = 16;
  using Fields = Eigen::Array<double, kLanes, Eigen::Dynamic>;

  // A at one m: conductances k of the faces and the factors L, D of A = L D L'.
  struct Factor {
    Eigen::ArrayXd conductance;  // of faces between cells, then of those on the boundary
    Eigen::ArrayXd share;        // of a face between cells: dk/dm_a = share k, dk/dm_b = (1 - share) k
    Eigen::ArrayXd lower;        // L below its diagonal of ones; where: lower_begin_, lower_row_
    Eigen::ArrayXd inverse_pivots;
  };

  explicit DiffusionOperator(int64_t grid);  // grid >= 2

  int64_t num_cells() const { return static_cast<int64_t>(column_.size()); }
  int64_t num_factor_entries() const { return static_cast<int64_t>(lower_row_.size()); }
  // The column of `cell` in Fields.
  int Column(int64_t cell) const { return column_[cell]; }

  // Nothing where a conductance is not finite and positive, or A not so in the arithmetic of doubles.
  std::optional<Factor> Factorize(const Eigen::VectorXd& m);
  // x <- A^-1 x, row by row: a row's bits do not depend on the others.
  void Solve(const Factor& factor, Fields& x) const;

  // The derivative of the faces' conductances in direction v.
  Eigen::ArrayXd ConductanceChange(const Factor& factor, const Eigen::VectorXd& v) const;
  // Its transpose: the gradient with respect to m, from that with respect to the conductances.
  Eigen::VectorXd TransposedConductanceChange(const Factor& factor, const Eigen::ArrayXd& faces) const;
  // result = A u, for conductances of any sign.
  void Multiply(const Eigen::ArrayXd& conductance, const Fields& u, Fields& result) const;
  // faces += the derivative of the sum over rows of w' A u with respect to the conductances.
  void AddFaceProducts(const Fields& w, const Fields& u, Eigen::ArrayXd& faces) const;

 private:
  struct Face {
    int a, b;
  };

  int64_t num_faces() const { return static_cast<int64_t>(faces_.size() + boundary_.size()); }
  // m in the order of elimination.
  Eigen::ArrayXd Permuted(const Eigen::VectorXd& m) const;

  std::vector<int> column_;    // of each cell
  std::vector<Face> faces_;    // columns of the cells on both sides
  std::vector<int> boundary_;  // columns of the cells behind the faces on the boundary: those of corners twice

  Eigen::SparseMatrix<double> upper_;  // of A, refilled for each m
  Eigen::SimplicialLDLT<Eigen::SparseMatrix<double>, Eigen::Upper, Eigen::NaturalOrdering<int>> solver_;
  std::vector<int> lower_begin_, lower_row_;  // column j of L: entries lower_begin_[j] .. lower_begin_[j + 1] - 1
};

}  // namespace hfopt::models

#endif  // HFOPT_CLIENT_MODELS_DIFFUSION_OPERATOR_H_
