"""hfopt.LeastSquaresRegressor: against closed forms, and with scikit-learn where it can be imported."""

import importlib.util
import pickle
import unittest

import numpy as np

import hfopt


def growth(x, X):
    return x[0] * np.exp(x[1] * X[:, 0])


def slopes(x, X):
    e = np.exp(x[1] * X[:, 0])
    return np.stack([e, x[0] * X[:, 0] * e], axis=1)


def linear(x, X):
    return X @ x


def linear_slopes(x, X):
    return X


def growth_data(samples=40, noise=0.05):
    random = np.random.default_rng(1)
    X = random.uniform(0, 2, (samples, 1))
    return X, growth([1.5, 0.7], X) + noise * random.standard_normal(samples)


class EstimatorTest(unittest.TestCase):

    def test_fits_predicts_and_scores(self):
        X, y = growth_data(noise=0)
        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes)
        self.assertIs(model.fit(X, y), model)
        np.testing.assert_allclose(model.x_, [1.5, 0.7], rtol=1e-6)
        np.testing.assert_allclose(model.predict([[0.0]] * np.ones((2, 1))), [1.5, 1.5], rtol=1e-6)
        self.assertAlmostEqual(model.score(X, y), 1, places=10)
        self.assertEqual((model.reason_, model.n_features_in_), ("converged", 1))
        self.assertEqual(model.n_iter_, len(model.history_))
        self.assertLess(model.cost_, 1e-10)

    def test_solves_weighted_ridge_regression(self):
        random = np.random.default_rng(2)
        X, w, alpha = random.standard_normal((30, 4)), random.uniform(0, 2, 30), 0.7
        y = X @ np.arange(4.0) + random.standard_normal(30)
        exact = np.linalg.solve(X.T @ (w[:, None] * X) + alpha * np.eye(4), X.T @ (w * y))
        pair = lambda x, v, X: X @ v, lambda x, u, X: X.T @ u
        for jac in linear_slopes, pair, "2-point":
            with self.subTest(str(jac)):
                model = hfopt.LeastSquaresRegressor(linear, np.zeros(4), jac, alpha=alpha, gtol=1e-6).fit(X, y, w)
                np.testing.assert_allclose(model.x_, exact, atol=1e-6)
                cost = np.sum(w * (X @ exact - y)**2) / 2 + alpha * exact @ exact / 2
                self.assertAlmostEqual(model.cost_, cost, places=10)
        mean = np.sum(w * y) / np.sum(w)
        self.assertAlmostEqual(model.score(X, y, w),
                               1 - np.sum(w * (X @ model.x_ - y)**2) / np.sum(w * (y - mean)**2), places=12)

    def test_has_outputs_side_by_side(self):
        # y = X B with B of the shape (2, 3): x is B, row by row.
        random = np.random.default_rng(3)
        X, B = random.standard_normal((12, 2)), np.arange(6.0).reshape(2, 3)
        model = hfopt.LeastSquaresRegressor(lambda x, X: X @ x.reshape(2, 3), np.zeros(6),
                                            lambda x, X: np.kron(X, np.eye(3)))
        model.fit(X, X @ B)
        np.testing.assert_allclose(model.x_, B.ravel(), atol=1e-7)
        self.assertEqual(model.predict(X).shape, (12, 3))
        # A constant output that is met counts 1, one that is not 0; the others as usual.
        y = X @ B + np.array([1, 0, 0])
        y[:, 2] = 3
        expected = [1 - 12 / np.sum((y[:, 0] - y[:, 0].mean())**2), 1, 0]
        self.assertAlmostEqual(model.score(X, y), np.mean(expected), places=6)

    def test_parameters(self):
        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes, alpha=0.5)
        self.assertEqual(list(model.get_params()), ["fun", "x0", "jac", "alpha", "gtol", "ftol", "max_iterations",
                                                    "options", "server"])
        self.assertIs(model.set_params(alpha=2, gtol=1e-3), model)
        self.assertEqual((model.alpha, model.get_params()["gtol"]), (2, 1e-3))
        self.assertEqual(repr(model),
                         "LeastSquaresRegressor(fun=growth, x0=[1.0, 0.0], jac=slopes, alpha=2, gtol=0.001)")
        with self.assertRaisesRegex(ValueError, "has no parameter 'beta'; it has fun, x0, jac, alpha"):
            model.set_params(beta=1)

    def test_is_pickled_with_what_it_learnt(self):
        X, y = growth_data()
        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes).fit(X, y)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))

    def test_says_what_is_wrong(self):
        X, y = growth_data(5)
        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes)
        with self.assertRaisesRegex(ValueError, "not fitted yet; call fit before"):
            model.score(X, y)
        with self.assertRaisesRegex(ValueError, r"fun answered the shape \(5,\); y has \(5, 1\)"):
            model.fit(X, y[:, None])
        with self.assertRaisesRegex(ValueError, r"sample_weight must be 5 numbers of 0 or more"):
            model.fit(X, y, -np.ones(5))
        with self.assertRaisesRegex(ValueError, r"y has the shape \(\)"):
            model.fit(X, 1.0)
        with self.assertRaisesRegex(ValueError, "alpha is -1; give 0 or more"):
            hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes, alpha=-1).fit(X, y)
        with self.assertRaisesRegex(hfopt.Error, r"jac answered the shape \(5, 3\); 5 residuals of 2 parameters"):
            hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], lambda x, X: np.ones((5, 3))).fit(X, y)


@unittest.skipUnless(importlib.util.find_spec("sklearn"),
                     "scikit-learn is not installed: apt-get install python3-sklearn, or pip install scikit-learn")
class ScikitLearnTest(unittest.TestCase):

    def test_clones(self):
        from sklearn.base import clone, is_regressor
        X, y = growth_data()
        model = hfopt.LeastSquaresRegressor(growth, np.array([1.0, 0.0]), slopes, alpha=0.1).fit(X, y)
        other = clone(model)
        self.assertFalse(hasattr(other, "x_"))
        self.assertEqual(other.alpha, 0.1)
        self.assertTrue(is_regressor(model))
        pair = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], (linear, linear_slopes))
        self.assertEqual(clone(pair).jac, (linear, linear_slopes))

    def test_says_in_its_words_that_it_is_not_fitted(self):
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes)
        with self.assertRaises(NotFittedError):
            model.predict(np.ones((1, 1)))
        with self.assertRaises(NotFittedError):
            check_is_fitted(model)
        check_is_fitted(model.fit(*growth_data()))

    def test_grid_search_in_a_pipeline(self):
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        random = np.random.default_rng(4)
        X = random.standard_normal((30, 8)) * np.logspace(-1, 1, 8)
        y = X[:, 0] * 3 + random.standard_normal(30)
        alphas = [0.1, 10.0, 100.0]

        def search(estimator):
            name = type(estimator).__name__.lower()
            pipeline = make_pipeline(StandardScaler(), estimator)
            return GridSearchCV(pipeline, {f"{name}__alpha": alphas}, cv=3, error_score="raise").fit(X, y)

        ours = search(hfopt.LeastSquaresRegressor(linear, np.zeros(8), linear_slopes, gtol=1e-7))
        theirs = search(Ridge(fit_intercept=False))
        scores = [search.cv_results_["mean_test_score"] for search in (ours, theirs)]
        np.testing.assert_allclose(*scores, atol=1e-6)
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-5)
        self.assertEqual(list(ours.best_params_.values()), list(theirs.best_params_.values()))
        self.assertIn("LeastSquaresRegressor(fun=linear", repr(ours.best_estimator_))

    def test_scores_as_it_does(self):
        from sklearn.metrics import r2_score
        random = np.random.default_rng(5)
        X, w = random.standard_normal((20, 2)), random.uniform(0, 1, 20)
        y = random.standard_normal((20, 3))
        model = hfopt.LeastSquaresRegressor(lambda x, X: X @ x.reshape(2, 3), np.zeros(6),
                                            lambda x, X: np.kron(X, np.eye(3))).fit(X, y, w)
        self.assertAlmostEqual(model.score(X, y, w), r2_score(y, model.predict(X), sample_weight=w), places=12)


if __name__ == "__main__":
    unittest.main()
