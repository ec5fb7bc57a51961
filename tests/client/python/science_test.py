"""The scientific examples, shortened: derivatives against differences and dense matrices, solutions against SciPy's;
and the code of client/python/science.md runs as it is printed."""

import contextlib
import io
import os
import pathlib
import re
import unittest

import numpy as np

import gauss_newton as check
import hfopt

check.require("scipy", "apt-get install python3-scipy, or pip install scipy", __name__)

import scipy.optimize

import conductivity
import reaction

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])


class ReactionTest(unittest.TestCase):

    def setUp(self):
        times, reaction.TIMES = reaction.TIMES, np.logspace(-5, 3, 17)
        self.addCleanup(setattr, reaction, "TIMES", times)
        self.addCleanup(reaction._solve.cache_clear)
        reaction._solve.cache_clear()
        self.residuals, self.jacobian = reaction.problem(reaction.measure())
        self.start = reaction.TRUTH + np.log(1.5) * np.array([1, -1, 1])

    def test_sensitivities(self):
        np.testing.assert_allclose(self.jacobian(self.start),
                                   check.numerical_jacobian(self.residuals, self.start, h=1e-3), rtol=0, atol=1e-3)
        hfopt.check(hfopt.numpy.least_squares_model(self.residuals, self.start, self.jacobian)).raise_if_failed()

    def test_finds_the_constants_that_scipy_finds(self):
        ours = hfopt.least_squares(self.residuals, self.start, self.jacobian, ftol=1e-8)
        theirs = scipy.optimize.least_squares(self.residuals, self.start, self.jacobian)
        self.assertTrue(ours.success, ours)
        self.assertAlmostEqual(ours.cost, theirs.cost, delta=1e-6 * theirs.cost)
        J = self.jacobian(ours.x)
        errors = np.sqrt(np.diag(np.linalg.inv(J.T @ J)))
        np.testing.assert_array_less(np.abs(ours.x - theirs.x), 1e-2 * errors)
        np.testing.assert_array_less(np.abs(ours.x - reaction.TRUTH), 4 * errors)


class ConductivityTest(unittest.TestCase):

    def setUp(self):
        self.plate = conductivity.Plate(grid=8, sources=4, receivers=12)
        self.m = 0.3 * np.random.default_rng(1).standard_normal(64)
        self.sources = np.array([0, 2, 3])

    def test_the_fields_solve_the_equation(self):
        # With a constant conductivity A is that of the five-point formula, whose lowest eigenvalue is known: the lowest
        # mode has half a cell to each edge.
        grid, s = 8, np.sin(np.pi * (np.arange(8) + 0.5) / 8)
        solve, _ = self.plate.fields(np.full(64, np.log(2.0)), self.sources)
        mode = np.outer(s, s).ravel()
        eigenvalue = 2 * 2 * (2 - 2 * np.cos(np.pi / grid))  # conductivity 2, two directions
        np.testing.assert_allclose(solve(mode[:, None])[:, 0], mode / eigenvalue, rtol=1e-12)

    def test_products_are_those_of_the_jacobian(self):
        forward, backward = self.plate.jacobian(self.m, self.sources)
        J = check.numerical_jacobian(lambda m: self.plate.residuals(m, self.sources), self.m, h=1e-5)
        scale = np.abs(J).max()
        np.testing.assert_allclose(check.dense_product(forward, 64), J, rtol=0, atol=1e-7 * scale)
        np.testing.assert_allclose(np.stack([backward(e) for e in np.eye(len(J))]), J, rtol=0, atol=1e-7 * scale)

    def test_answers_are_sums_over_sources(self):
        hfopt.check(self.plate.model()).raise_if_failed()
        hfopt.check(self.plate.model(), self.m, held_out=True).raise_if_failed()

    def test_all_methods_find_the_same(self):
        costs = {}
        for name, solve in conductivity.METHODS.items():
            trace = conductivity.Trace(self.plate)
            m = solve(self.plate, trace)
            costs[name] = self.plate.loss(m, False, np.arange(4))
            self.assertGreater(self.plate.solves, 0)
            self.assertRegex(trace.until(1.01 * costs[name]), r"^\d+ solves, \d+\.\d s$")
            self.assertEqual(trace.until(0.5 * costs[name]), "never")
        least = min(costs.values())
        for name, cost in costs.items():
            self.assertLess(cost, (1 + 1e-4) * least, name)


class PageTest(unittest.TestCase):

    def setUp(self):
        self.page = (SOURCE / "client/python/science.md").read_text()

    def test_the_code_runs(self):
        ode, pde = re.findall(r"```python\n(.*?)```", self.page, re.DOTALL)
        variables, printed = {}, io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ode, "science.md", "exec"), variables)
            np.testing.assert_allclose(np.exp(variables["result"].x), np.exp(reaction.TRUTH), rtol=0.1)
            exec(compile(pde, "science.md", "exec"), variables)
        self.assertNotIn("FAILED", printed.getvalue())
        history = variables["result"].history
        self.assertLess(history[-1]["held_out_loss"], history[0]["held_out_loss"] / 2)

    def test_shows_the_lines_of_the_example(self):
        lines, = re.findall(r"```py\n(.*?)```", self.page, re.DOTALL)
        self.assertIn(lines, (SOURCE / "client/python/examples/conductivity.py").read_text())


if __name__ == "__main__":
    unittest.main()
