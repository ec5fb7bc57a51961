"""hfopt.least_squares and hfopt.numpy with the real server, against closed forms."""
import contextlib
import importlib.util
import io
import os
import pathlib
import re
import unittest

import numpy as np

import hfopt

HAS_SCIPY = importlib.util.find_spec("scipy") is not None


def ill_conditioned(m=40, n=12, condition=1e4):
    """A of this condition number, b outside its range, and the solution of min |A x - b|."""
    random = np.random.default_rng(1)
    u, _ = np.linalg.qr(random.standard_normal((m, n)))
    v, _ = np.linalg.qr(random.standard_normal((n, n)))
    singular = np.logspace(0, -np.log10(condition), n)
    solution = random.standard_normal(n)
    outside = random.standard_normal(m)
    outside -= u @ (u.T @ outside)
    A = u * singular @ v.T
    return A, A @ solution + outside, v @ (u.T @ (A @ solution + outside) / singular)


class LeastSquaresTest(unittest.TestCase):
    def test_solves_an_ill_conditioned_problem(self):
        A, b, solution = ill_conditioned()
        result = hfopt.least_squares(lambda x: A @ x - b, np.zeros(12), lambda x: A, gtol=1e-13)
        self.assertTrue(result.success, result)
        # The least curvature is 1e-8, so that rounding errors of 1e-16 in a cost of 10 are errors of 1e-4 in x, and
        # less in the gradient.
        np.testing.assert_allclose(result.x, solution, rtol=0, atol=1e-3)
        self.assertAlmostEqual(result.cost, 0.5 * np.sum((A @ solution - b)**2), places=12)
        np.testing.assert_allclose(result.fun, A @ result.x - b)
        self.assertGreater(result.njev, 0)
        self.assertIsInstance(result.message, str)

    def test_takes_every_form_of_jacobian(self):
        # Rosenbrock's function, whose minimum is at (1, 1).
        def fun(x, scale):
            return np.array([scale * (x[1] - x[0]**2), 1 - x[0]])

        def jac(x, scale):
            return np.array([[-2 * scale * x[0], scale], [-1, 0]])

        forms = {"dense": jac, "2-point": "2-point",
                 "products": (lambda x, v, scale: jac(x, scale) @ v, lambda x, u, scale: jac(x, scale).T @ u)}
        forms["list of products"] = list(forms["products"])
        if HAS_SCIPY:
            import scipy.sparse
            import scipy.sparse.linalg
            forms["sparse"] = lambda x, scale: scipy.sparse.csr_matrix(jac(x, scale))
            forms["operator"] = lambda x, scale: scipy.sparse.linalg.aslinearoperator(jac(x, scale))
        for name, form in forms.items():
            with self.subTest(name):
                result = hfopt.least_squares(fun, [-1.2, 1], form, args=(10.0,), gtol=1e-10)
                self.assertTrue(result.success, result)
                self.assertEqual(result.reason, "converged")
                np.testing.assert_allclose(result.x, [1, 1], atol=1e-6)

    @unittest.skipUnless(HAS_SCIPY, "scipy is not installed: sparse Jacobians and LinearOperators are not tested")
    def test_scipy_is_there(self):
        import scipy.optimize
        A, b, _ = ill_conditioned(condition=10)
        theirs = scipy.optimize.least_squares(lambda x: A @ x - b, np.zeros(12), lambda x: A)
        ours = hfopt.least_squares(lambda x: A @ x - b, np.zeros(12), lambda x: A, gtol=1e-10)
        np.testing.assert_allclose(ours.x, theirs.x, atol=1e-8)

    def test_the_readme_shows_what_happens(self):
        text = (pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/python/README.md").read_text()
        program = re.search(r"```python\n(.*?)```", text, re.S).group(1)
        names = {}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, names)
        self.assertRegex(out.getvalue(),
                         r"<hfopt.Result: converged \(gradient norm .* <= 1e-08\); .*> \[2.49998826 1.30097811\]")
        self.assertIn("[2.49998826 1.30097811]", program)

    def test_says_what_is_wrong(self):
        def fun(x):
            return x[:2] * 2

        for jac, error, message in (
            (None, TypeError, "least_squares needs jac"),
            ("3-point", ValueError, "jac is \"3-point\"; allowed"),
            (np.eye(3), TypeError, "jac is ndarray; allowed: a function of x.*for a constant A: lambda x: A"),
            ((np.eye(3), np.eye(3)), TypeError, r"jac is tuple; allowed.*a pair of functions \(jvp, vjp\)"),
            (lambda x: np.eye(2), hfopt.Error, r"jac answered the shape \(2, 2\); 2 residuals of 3 parameters need"),
            ((lambda x, v: v, lambda x, u: u), hfopt.Error, r"vjp answered the shape \(2,\); it must be \(3,\)"),
        ):
            with self.subTest(message), self.assertRaisesRegex(error, message):
                hfopt.least_squares(fun, np.zeros(3), jac)
        with self.assertRaisesRegex(TypeError, "fun is ndarray; give a function of x"):
            hfopt.least_squares(np.ones(3), np.zeros(3), "2-point")
        with self.assertRaisesRegex(ValueError, r"fun answered the shape \(2, 2\)"):
            hfopt.least_squares(lambda x: np.eye(2), np.zeros(3), "2-point")
        with self.assertRaisesRegex(ValueError, r"fun answered the shape \(0,\); it must be one vector, not empty"):
            hfopt.least_squares(lambda x: x[:0], np.zeros(3), "2-point")
        with self.assertRaisesRegex(ValueError, r"fun answered complex128; residuals must be real: np.concatenate"):
            hfopt.least_squares(lambda x: x * 1j, np.zeros(3), "2-point")


class FunctionsTest(unittest.TestCase):
    def test_trains_functions_of_the_whole_data(self):
        # min f(x) = sum log cosh(A x - b): convex, with G = A' diag(sech^2) A, and its minimum at A x = b.
        A, _, _ = ill_conditioned(12, 12, condition=10)
        b = A @ np.arange(12.0)
        model = hfopt.numpy.as_model(
            lambda x: np.sum(np.logaddexp(A @ x - b, b - A @ x) - np.log(2)), lambda x: A.T @ np.tanh(A @ x - b),
            lambda x, v: A.T @ ((1 - np.tanh(A @ x - b)**2) * (A @ v)), x0=np.zeros(12))
        hfopt.check(model).raise_if_failed()
        result = hfopt.fit(model, preset="deterministic", options={"stop.gradient_tolerance": 1e-8}, max_iterations=100,
                           progress=False)
        self.assertEqual(result.reason, "converged")
        # The least curvature is 1e-2, so the error at most 1e-6.
        np.testing.assert_allclose(result.parameters, np.arange(12), atol=1e-6)

    def test_trains_functions_of_examples(self):
        random = np.random.default_rng(2)
        X, w = random.standard_normal((300, 5)), np.arange(1.0, 6)
        y = X @ w

        def rows(held_out, indices):
            at = indices + (200 if held_out else 0)
            return X[at], y[at]

        def loss(x, *which):
            a, t = rows(*which)
            return 0.5 * np.sum((a @ x - t)**2)

        def grad(x, *which):
            a, t = rows(*which)
            return a.T @ (a @ x - t)

        def linearize(x, *which):
            a, _ = rows(*which)
            return lambda v: a.T @ (a @ v)

        model = hfopt.numpy.as_model(loss, grad, linearize=linearize, x0=np.zeros(5), num_examples=(200, 100),
                                     element_types=("float32", "float64"))
        for dtype in "float32", "float64":
            hfopt.check(model, dtype=dtype).raise_if_failed()
        result = hfopt.fit(model, shards=3, dtype="float64", options={"samples.initial_gradient_examples": 50},
                           max_iterations=30, progress=False)
        np.testing.assert_allclose(result.parameters, w, atol=1e-6)

    def test_says_what_is_wrong(self):
        with self.assertRaisesRegex(TypeError, "gnvp or linearize, one of the two"):
            hfopt.numpy.as_model(np.sum, np.ones_like, x0=np.zeros(2))
        with self.assertRaisesRegex(ValueError, "x0 has the shape"):
            hfopt.numpy.as_model(np.sum, np.ones_like, np.dot, x0=np.zeros((2, 2)))
        model = hfopt.numpy.as_model(np.sum, lambda x: np.ones(3), np.dot, x0=np.zeros(2))
        with self.assertRaisesRegex(hfopt.Error, r"grad answered the shape \(3,\); x0 has \(2,\)"):
            hfopt.fit(model, preset="deterministic", progress=False)


if __name__ == "__main__":
    unittest.main()
