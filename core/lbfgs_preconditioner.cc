#include "core/lbfgs_preconditioner.h"

#include <algorithm>
#include <utility>

namespace hfopt {

template <typename Scalar>
Vector<Scalar> DampedDiagonal(const Vector<Scalar>& second_moment, double damping, double exponent) {
  return (second_moment.array() + static_cast<Scalar>(damping)).pow(static_cast<Scalar>(exponent));
}

template <typename Scalar>
LbfgsPreconditioner<Scalar>::LbfgsPreconditioner(double damping, double min_curvature, const Vector<Scalar>& diagonal)
    : damping_(damping), min_curvature_(min_curvature), inverse_diagonal_(diagonal.cwiseInverse()) {}

template <typename Scalar>
std::unique_ptr<typename LbfgsPreconditioner<Scalar>::Term> LbfgsPreconditioner<Scalar>::MakeTerm(
    std::shared_ptr<const CurvaturePair<Scalar>> pair) const {
  auto term = std::make_unique<Term>();
  const Vector<Scalar>& s = pair->p;
  term->y = pair->Gp;
  Axpy(damping_, s, term->y);
  const double sy = Dot(s, term->y);
  if (!(sy > min_curvature_ * Norm(s) * Norm(term->y))) return nullptr;  // NaN is no curvature either
  double yHy = Dot(term->y, term->y);
  if (inverse_diagonal_.size() > 0) {
    const Vector<Scalar> Hy = inverse_diagonal_.cwiseProduct(term->y);
    yHy = Dot(term->y, Hy);
  }
  term->inverse_sy = 1 / sy;
  term->gamma = sy / yHy;
  term->pair = std::move(pair);
  return term;
}

template <typename Scalar>
void LbfgsPreconditioner<Scalar>::SetPairs(const PairList<Scalar>& pairs) {
  std::vector<std::unique_ptr<Term>> previous = std::exchange(terms_, {});
  num_skipped_ = 0;
  for (const auto& pair : pairs) {
    const auto known = std::find_if(previous.begin(), previous.end(),
                                    [&](const auto& term) { return term != nullptr && term->pair == pair; });
    std::unique_ptr<Term> term = known != previous.end() ? std::move(*known) : MakeTerm(pair);
    if (term == nullptr) {
      ++num_skipped_;
    } else {
      terms_.push_back(std::move(term));
    }
  }
}

template <typename Scalar>
void LbfgsPreconditioner<Scalar>::Apply(const Vector<Scalar>& r, Vector<Scalar>& z) {
  Scale(1, r, z);
  // Each step takes what it adds and the product that the next step needs in one pass.
  const size_t m = terms_.size();
  double sz = m > 0 ? Dot(terms_.back()->pair->p, z) : 0;
  for (size_t i = m; i-- > 0;) {
    Term& t = *terms_[i];
    t.projection = t.inverse_sy * sz;
    if (i > 0) {
      sz = AxpyDot(-t.projection, t.y, z, terms_[i - 1]->pair->p);
    } else {
      Axpy(-t.projection, t.y, z);
    }
  }
  if (inverse_diagonal_.size() > 0) z = z.cwiseProduct(inverse_diagonal_);
  if (m == 0) return;
  Scale(terms_.back()->gamma, z, z);
  double yz = Dot(terms_.front()->y, z);
  for (size_t i = 0; i < m; ++i) {
    const Term& t = *terms_[i];
    const double coefficient = t.projection - t.inverse_sy * yz;
    if (i + 1 < m) {
      yz = AxpyDot(coefficient, t.pair->p, z, terms_[i + 1]->y);
    } else {
      Axpy(coefficient, t.pair->p, z);
    }
  }
}

template Vector<float> DampedDiagonal<float>(const Vector<float>&, double, double);
template Vector<double> DampedDiagonal<double>(const Vector<double>&, double, double);
template class LbfgsPreconditioner<float>;
template class LbfgsPreconditioner<double>;

}  // namespace hfopt
