// Letters as in client/models/diffusion.cc. Derivatives are compared with central differences of step h = 1e-5, whose
// error is of the order h^2 = 1e-10 times third derivatives; residuals are in units of the noise, hundreds at m = 0.

#include "client/models/diffusion.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "Eigen/Dense"
#include "client/cpp/shuffle.h"
#include "client/models/initialization.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/models/matchers.h"

namespace hfopt::models {
namespace {

using absl::StatusCode;
using client::DataSet;
using client::Examples;
using client::LossSum;
using client::Vector;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kStep = 1e-5;

// 20 sources: one whole group of rows and a part of one.
constexpr int64_t kGrid = 7, kSources = 20, kReceivers = 9;

template <typename Scalar>
struct Problem {
  explicit Problem(const DiffusionOptions& options = {.grid = kGrid, .sources = kSources, .receivers = kReceivers})
      : options(options), model(*DiffusionInversion<Scalar>::Create(options)) {
    client::SplitMix64 generator(7);
    const auto random = [&] {
      Vector<Scalar> x(model->num_parameters());
      for (Scalar& value : x) value = static_cast<Scalar>(0.5 * Normal(generator));
      return x;
    };
    theta = random();
    v = random();
    all = {DataSet::kTraining, {{0, options.sources}}};
  }

  LossSum Loss(const Vector<Scalar>& at, const Examples& examples) { return *model->Loss(at, examples); }
  Vector<Scalar> Gradient(const Vector<Scalar>& at, const Examples& examples) {
    Vector<Scalar> gradient(model->num_parameters());
    EXPECT_THAT(model->Gradient(at, examples, gradient), IsOk());
    return gradient;
  }
  Vector<Scalar> Product(const Vector<Scalar>& at, const Vector<Scalar>& direction, const Examples& examples) {
    Vector<Scalar> product(model->num_parameters());
    EXPECT_THAT((*model->Linearize(at, examples))->GaussNewtonProduct(direction, product), IsOk());
    return product;
  }
  Vector<Scalar> Truth() const { return model->truth().template cast<Scalar>(); }

  DiffusionOptions options;
  std::unique_ptr<DiffusionInversion<Scalar>> model;
  Vector<Scalar> theta, v;
  Examples all;
};

// Neighbours' differences, a row for each face between cells.
Eigen::MatrixXd Differences(int64_t grid) {
  Eigen::MatrixXd D = Eigen::MatrixXd::Zero(2 * grid * (grid - 1), grid * grid);
  int64_t face = 0;
  for (int64_t a = 0; a < grid * grid; ++a) {
    for (int64_t b = a + 1; b < grid * grid; ++b) {
      const int64_t distance = std::abs(a % grid - b % grid) + std::abs(a / grid - b / grid);
      if (distance != 1) continue;
      D(face, a) = -1;
      D(face++, b) = 1;
    }
  }
  return D;
}

TEST(DiffusionInversion, LossIsTheMisfitAndTheRegulariser) {
  Problem<double> p;
  const Eigen::MatrixXd e = (*p.model->Outputs(p.theta) - p.model->measurements()) / p.model->sigma();
  const double regulariser = p.options.beta / 2 * (Differences(kGrid) * p.theta).squaredNorm();

  const LossSum sum = p.Loss(p.theta, p.all);

  EXPECT_EQ(sum.weight, kSources);
  EXPECT_NEAR(sum.loss, e.squaredNorm() / (2 * kReceivers) + kSources * regulariser, 1e-12 * sum.loss);
}

TEST(DiffusionInversion, OutputsAreTheFieldsOfPointSources) {
  Problem<double> p;
  DiffusionOperator op(kGrid);
  const auto factor = *op.Factorize(p.theta);
  const Eigen::MatrixXd outputs = *p.model->Outputs(p.theta);
  for (int64_t s = 0; s < kSources; ++s) {
    DiffusionOperator::Fields u = DiffusionOperator::Fields::Zero(DiffusionOperator::kLanes, kGrid * kGrid);
    u(0, op.Column(p.model->sources()[s])) = 1;
    op.Solve(factor, u);
    for (int64_t r = 0; r < kReceivers; ++r) {
      EXPECT_EQ(outputs(r, s), u(0, op.Column(p.model->receivers()[r]))) << r << " " << s;
    }
  }
}

TEST(DiffusionInversion, GradientIsThatOfTheLoss) {
  Problem<double> p;
  for (const Examples& examples : {p.all, p.all.Part(3, 4), p.all.Part(14, 19)}) {
    Vector<double> gradient(p.model->num_parameters());
    const auto sum = p.model->Gradient(p.theta, examples, gradient);

    ASSERT_THAT(sum, IsOk());
    EXPECT_EQ(sum->loss, p.Loss(p.theta, examples).loss);
    EXPECT_EQ(sum->weight, examples.size());
    const double tolerance = 1e-8 * gradient.norm();
    for (int64_t i = 0; i < p.theta.size(); ++i) {
      const Vector<double> h = kStep * Vector<double>::Unit(p.theta.size(), i);
      const double difference = p.Loss(p.theta + h, examples).loss - p.Loss(p.theta - h, examples).loss;
      EXPECT_NEAR(gradient(i), difference / (2 * kStep), tolerance) << i;
    }
  }
}

TEST(DiffusionInversion, ProductIsThatOfTheDenseMatrix) {
  Problem<double> p;
  const int64_t n = p.theta.size();
  Eigen::MatrixXd J(kReceivers * kSources, n);  // of the outputs, source by source
  for (int64_t i = 0; i < n; ++i) {
    const Vector<double> h = kStep * Vector<double>::Unit(n, i);
    J.col(i) = (*p.model->Outputs(p.theta + h) - *p.model->Outputs(p.theta - h)).reshaped() / (2 * kStep);
  }
  const double H = 1 / (p.model->sigma() * p.model->sigma() * kReceivers);
  const Eigen::MatrixXd D = Differences(kGrid);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, kSources}, {3, 4}, {14, 19}}) {
    const Eigen::MatrixXd part = J.middleRows(begin * kReceivers, (end - begin) * kReceivers);
    const Eigen::MatrixXd G =
        H * part.transpose() * part + static_cast<double>(end - begin) * p.options.beta * D.transpose() * D;

    const auto linearization = *p.model->Linearize(p.theta, p.all.Part(begin, end));

    EXPECT_EQ(linearization->weight(), end - begin);
    Eigen::MatrixXd products(n, n);
    Vector<double> product(p.model->num_parameters());
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_THAT(linearization->GaussNewtonProduct(Vector<double>::Unit(n, i), product), IsOk());
      products.col(i) = product;
    }
    EXPECT_LT((products - G).norm(), 1e-8 * G.norm());
    EXPECT_LT((products - products.transpose()).norm(), 1e-13 * G.norm());
    const Eigen::VectorXd eigenvalues = products.selfadjointView<Eigen::Lower>().eigenvalues();
    EXPECT_GT(eigenvalues.minCoeff(), -1e-13 * eigenvalues.maxCoeff());
    ASSERT_THAT(linearization->GaussNewtonProduct(p.v, product), IsOk());
    EXPECT_LT((product - products * p.v).norm(), 1e-12 * product.norm());
  }
}

TEST(DiffusionInversion, AnswersAreSumsOfTheirParts) {
  Problem<double> p;
  const Examples window{DataSet::kHeldOut, {{13, 20}, {0, 4}}};
  const LossSum whole = p.Loss(p.theta, window);
  const Vector<double> gradient = p.Gradient(p.theta, window), product = p.Product(p.theta, p.v, window);
  for (int64_t cut = 0; cut <= window.size(); ++cut) {
    const Examples a = window.Part(0, cut), b = window.Part(cut, window.size());
    EXPECT_NEAR(whole.loss, p.Loss(p.theta, a).loss + p.Loss(p.theta, b).loss, 1e-12 * whole.loss);
    EXPECT_EQ(whole.weight, p.Loss(p.theta, a).weight + p.Loss(p.theta, b).weight);
    EXPECT_LT((gradient - p.Gradient(p.theta, a) - p.Gradient(p.theta, b)).norm(), 1e-12 * gradient.norm());
    EXPECT_LT((product - p.Product(p.theta, p.v, a) - p.Product(p.theta, p.v, b)).norm(), 1e-12 * product.norm());
  }
}

TEST(DiffusionInversion, AnExampleThatIsAskedForTwiceCountsTwice) {
  Problem<double> p;
  const Examples once = p.all.Part(3, 5), twice{DataSet::kTraining, {{3, 5}, {3, 5}}};

  EXPECT_EQ(p.Loss(p.theta, twice).weight, 4);
  EXPECT_NEAR(p.Loss(p.theta, twice).loss, 2 * p.Loss(p.theta, once).loss, 1e-12 * p.Loss(p.theta, twice).loss);
  EXPECT_LT((p.Gradient(p.theta, twice) - 2 * p.Gradient(p.theta, once)).norm(),
            1e-12 * p.Gradient(p.theta, twice).norm());
}

TEST(DiffusionInversion, NoExamplesAreZeroSums) {
  Problem<double> p;
  const Examples none{DataSet::kTraining, {}};

  EXPECT_EQ(p.Loss(p.theta, none).loss, 0);
  EXPECT_EQ(p.Loss(p.theta, none).weight, 0);
  EXPECT_EQ(p.Gradient(p.theta, none), 0 * p.theta);
  EXPECT_EQ(p.Product(p.theta, p.v, none), 0 * p.theta);
}

TEST(DiffusionInversion, AtTheTruthTheNoiseIsLeft) {
  Problem<double> p({.grid = 12, .sources = 40, .receivers = 50, .beta = 0});
  const double loss = p.Loss(p.Truth(), p.all).loss / 40;

  // Half a mean of 2000 squared normal numbers: standard deviation sqrt(2 / 2000) / 2 = 0.016.
  EXPECT_NEAR(loss, 0.5, 0.06);
  EXPECT_GT(p.Loss(0 * p.theta, p.all).loss / 40, 10 * loss);
  EXPECT_NEAR(p.model->sigma(), 0.01 * p.model->measurements().norm() / std::sqrt(2000), 1e-3 * p.model->sigma());
  EXPECT_EQ(*p.model->RelativeError(p.Truth()), 0);
  EXPECT_EQ(*p.model->RelativeError(0 * p.theta), 1);
  EXPECT_NEAR(*p.model->RelativeError(1.5 * p.Truth()), 0.5, 1e-15);
}

TEST(DiffusionInversion, AGaussNewtonStepComesNearTheMinimum) {
  Problem<double> p({.grid = 8, .sources = 16, .receivers = 16});
  const int64_t n = p.theta.size();
  Vector<double> m = Vector<double>::Zero(n), product(n);
  const double start = p.Loss(m, p.all).loss;
  for (int step = 0; step < 4; ++step) {
    const auto linearization = *p.model->Linearize(m, p.all);
    Eigen::MatrixXd G(n, n);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_THAT(linearization->GaussNewtonProduct(Vector<double>::Unit(n, i), product), IsOk());
      G.col(i) = product;
    }
    G.diagonal().array() += 1e-3 * G.diagonal().maxCoeff() / std::pow(10, step);
    m -= G.ldlt().solve(p.Gradient(m, p.all));
  }

  EXPECT_LT(p.Loss(m, p.all).loss, p.Loss(p.Truth(), p.all).loss);
  EXPECT_LT(p.Loss(m, p.all).loss, 0.01 * start);
  EXPECT_LT(*p.model->RelativeError(m), 0.6);
}

TEST(DiffusionInversion, AnswersArePureFunctionsInAnyOrder) {
  Problem<double> p;
  const Vector<double> other = 0.5 * p.theta;
  const Vector<double> gradient = p.Gradient(p.theta, p.all), product = p.Product(p.theta, p.v, p.all);
  const double loss = p.Loss(p.theta, p.all).loss, part = p.Loss(p.theta, p.all.Part(15, 18)).loss;

  Vector<double> theta = p.theta;
  Examples examples = p.all;
  const auto linearization = *p.model->Linearize(theta, examples);
  theta.setZero();  // it keeps its point and examples
  examples.ranges.clear();
  p.Gradient(other, p.all);  // takes the place of what is kept
  const auto other_linearization = *p.model->Linearize(other, p.all.Part(2, 9));

  Vector<double> again(p.model->num_parameters());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);
  EXPECT_EQ(p.Loss(p.theta, p.all.Part(15, 18)).loss, part);
  EXPECT_EQ(p.Gradient(p.theta, p.all), gradient);
  EXPECT_EQ(p.Loss(p.theta, p.all).loss, loss);
  ASSERT_THAT(other_linearization->GaussNewtonProduct(p.v, again), IsOk());
  ASSERT_THAT(linearization->GaussNewtonProduct(p.v, again), IsOk());
  EXPECT_EQ(again, product);

  Problem<double> fresh;
  EXPECT_EQ(fresh.Product(p.theta, p.v, p.all), product);
  EXPECT_EQ(fresh.Loss(p.theta, p.all).loss, loss);
}

TEST(DiffusionInversion, FloatAgreesWithDouble) {
  Problem<float> single;
  Problem<double> exact;
  const Vector<double> theta = single.theta.cast<double>(), v = single.v.cast<double>();
  const auto relative = [](const Vector<float>& a, const Vector<double>& b) {
    return (a.cast<double>() - b).norm() / b.norm();
  };

  // Only the results are rounded.
  EXPECT_EQ(single.Loss(single.theta, single.all).loss, exact.Loss(theta, exact.all).loss);
  EXPECT_LT(relative(single.Gradient(single.theta, single.all), exact.Gradient(theta, exact.all)), 1e-7);
  EXPECT_LT(relative(single.Product(single.theta, single.v, single.all), exact.Product(theta, v, exact.all)), 1e-7);
}

TEST(DiffusionInversion, AFieldOutOfRangeMakesTheLossNonFinite) {
  Problem<double> p;
  for (const double bad : {800.0, -800.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t cell : {0, 24}) {
      Vector<double> theta = p.theta;
      theta(cell) = bad;
      if (cell == 24 && bad > 0) theta.setConstant(bad);
      EXPECT_FALSE(std::isfinite(p.Loss(theta, p.all).loss)) << bad << " in cell " << cell;
      EXPECT_FALSE(p.Gradient(theta, p.all).allFinite());
      EXPECT_FALSE(p.Product(theta, p.v, p.all).allFinite());
      EXPECT_EQ(p.Loss(theta, {}).loss, 0);
    }
  }
  EXPECT_TRUE(std::isfinite(p.Loss(p.theta, p.all).loss));
}

TEST(DiffusionInversion, DataAreAPureFunctionOfTheSeed) {
  const DiffusionOptions options{.grid = 10, .sources = 5, .receivers = 6};
  DiffusionOptions other_seed = options;
  other_seed.seed = 2;
  const Problem<double> a(options), b(options), other(other_seed);

  EXPECT_EQ(a.model->truth(), b.model->truth());
  EXPECT_EQ(a.model->measurements(), b.model->measurements());
  EXPECT_NE(a.model->truth(), other.model->truth());
  EXPECT_EQ(a.model->sources(), other.model->sources());
  EXPECT_EQ(*a.model->InitialParameters(1), Vector<double>::Zero(100));
  EXPECT_EQ(*a.model->InitialParameters(2), Vector<double>::Zero(100));
}

TEST(DiffusionInversion, SourcesAndReceiversAreApartAndAllOver) {
  const Problem<double> p({.grid = 96});
  std::vector<int64_t> cells = p.model->sources();
  cells.insert(cells.end(), p.model->receivers().begin(), p.model->receivers().end());
  int quarter[4] = {};
  for (size_t i = 0; i < cells.size(); ++i) {
    ++quarter[(cells[i] % 96 >= 48) + 2 * (cells[i] / 96 >= 48)];
    for (size_t j = 0; j < i; ++j) {
      EXPECT_GT(std::hypot(cells[i] % 96 - cells[j] % 96, cells[i] / 96 - cells[j] / 96), 3) << i << " " << j;
    }
  }
  for (const int count : quarter) EXPECT_NEAR(count, 32, 4);
}

TEST(DiffusionInversion, SignatureTellsWhatItIs) {
  EXPECT_EQ(Problem<double>().model->signature(),
            "inverse diffusion, grid 7, 20 sources, 9 receivers, noise 0.01, beta 0.001, seed 1");
}

TEST(DiffusionInversion, RefusesWhatDoesNotFit) {
  Problem<double> p;
  const Vector<double> short_theta = p.theta.head(8);
  Vector<double> out(p.model->num_parameters());
  const auto wrong_size =
      IsError(StatusCode::kInvalidArgument, AllOf(HasSubstr("theta has 8 elements"), HasSubstr("49 parameters")));
  EXPECT_THAT(p.model->Loss(short_theta, p.all), wrong_size);
  EXPECT_THAT(p.model->Gradient(short_theta, p.all, out), wrong_size);
  EXPECT_THAT(p.model->Linearize(short_theta, p.all), wrong_size);
  EXPECT_THAT(p.model->Outputs(short_theta), wrong_size);
  EXPECT_THAT(p.model->RelativeError(short_theta), wrong_size);
  EXPECT_THAT((*p.model->Linearize(p.theta, p.all))->GaussNewtonProduct(short_theta, out),
              IsError(StatusCode::kInvalidArgument, HasSubstr("direction has 8 elements")));

  for (const client::IndexRange range : {client::IndexRange{5, 21}, {-1, 3}, {6, 5}}) {
    EXPECT_THAT(p.model->Loss(p.theta, {DataSet::kHeldOut, {range}}),
                IsError(StatusCode::kOutOfRange, HasSubstr("the held-out data have 20")));
    EXPECT_THAT(p.model->Linearize(p.theta, {DataSet::kTraining, {range}}),
                IsError(StatusCode::kOutOfRange, HasSubstr("the training data have 20")));
  }
}

TEST(DiffusionInversion, RefusesBadOptions) {
  const auto error = [](const DiffusionOptions& options, const std::string& what) {
    EXPECT_THAT(DiffusionInversion<double>::Create(options), IsError(StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  error({.grid = 1}, "grid is 1; allowed is 2 to 1024");
  error({.grid = 1025}, "grid is 1025");
  error({.sources = 0}, "sources is 0");
  error({.receivers = 0}, "receivers is 0");
  error({.noise = 0}, "noise is 0; allowed is a positive number");
  error({.noise = std::numeric_limits<double>::quiet_NaN()}, "noise is nan");
  error({.beta = -1}, "beta is -1");
  error({.beta = std::numeric_limits<double>::infinity()}, "beta is inf");
}

}  // namespace
}  // namespace hfopt::models
