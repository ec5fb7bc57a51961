"""The physics-informed examples, in PyTorch and JAX: their residuals against the exact solution, a shortened training,
and its rivals."""

import contextlib
import importlib.util
import io
import os
import sys
import unittest

import numpy as np

import gauss_newton as check
import hfopt
import pinn_rivals

SPEED = 30


class PinnTest:
    """The tests, for one example."""

    def make(self, whole=False):
        """Model, of a small network or the whole one; function from theta to relative error; residuals of u*."""

    def test_the_exact_solution_has_no_residuals(self):
        model, _, residuals = self.make()
        for r in residuals():
            self.assertLess(np.abs(r).max(), 1e-11)
        self.assertEqual(model.num_examples, (4, 4))

    def test_derivatives(self):
        model, _, _ = self.make()
        theta = model.initial_parameters(1, np.float64)
        check.check_gradient(self, model, theta, np.arange(4), directions=1)

    def test_trains(self):
        model, error, _ = self.make()
        theta = model.initial_parameters(1, np.float64)
        before = model.loss(theta, False, np.arange(4))[0] / 4
        self.assertGreater(error(theta), 0.9)
        result = hfopt.fit(model, preset="deterministic", seed=1, max_iterations=8, progress=False)
        self.assertEqual(result.parameters.dtype, np.float64)
        after = model.loss(result.parameters, False, np.arange(4))[0] / 4
        self.assertLess(after, before / 2)
        self.assertLess(after, 0.5)  # the loss of u = 0

    def test_rivals_begin_where_it_began_and_descend(self):
        model, error, _ = self.make()
        theta = model.initial_parameters(1, np.float64)
        before = model.loss(theta, False, np.arange(4))[0] / 4
        seconds = 0.5
        result = hfopt.Result(theta, 1, before, "", "", hfopt.History(), seconds, "", model)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            pinn_rivals.compare(model, error, result, seed=1)
        _, hfopt_row, *rows = said.getvalue().splitlines()
        self.assertRegex(hfopt_row, "^hfopt ")
        self.assertRegex(rows[0], f"^Adam, best rate 0.*of {len(pinn_rivals.RATES)}")
        has_scipy = importlib.util.find_spec("scipy") is not None
        self.assertRegex(rows[1], "^L-BFGS-B of SciPy" if has_scipy else "^L-BFGS-B: left out.*pip install scipy")
        for row in rows[:1 + has_scipy]:
            self.assertLess(float(row.split()[-2]), before / 2)

    def test_rivals_stop_in_time_and_keep_the_best(self):
        model, _, _ = self.make()
        theta = model.initial_parameters(1, np.float64)
        objective = pinn_rivals.Objective(model, theta, 0.2)
        loss, gradient = objective(theta)
        sums = model.gradient(theta, False, np.arange(4))
        self.assertEqual(loss, sums[0] / sums[1])
        np.testing.assert_array_equal(gradient, sums[2] / sums[1])
        objective(theta + 1)
        np.testing.assert_array_equal(objective.theta, theta)
        with self.assertRaises(pinn_rivals.OutOfTime):
            pinn_rivals.adam(objective, theta, 1e-2)
        self.assertLess(objective.loss, loss)

    def test_is_right_to_two_percent(self):
        if not os.environ.get("HFOPT_LONG_TESTS"):
            self.skipTest("takes a minute; tests/python runs it")
        model, error, _ = self.make(whole=True)
        seen = []

        def stop(report, run):
            seen.append(error(run.parameters()))
            if seen[-1] < 0.02:
                run.stop()

        hfopt.fit(model, preset="deterministic", seed=1, max_seconds=600, callbacks=[stop], progress=False)
        self.assertLess(min(seen), 0.02)


class TorchPinnTest(PinnTest, unittest.TestCase):

    def make(self, whole=False):
        try:
            import torch
        except ImportError:
            self.skipTest("torch is not installed: apt-get install python3-torch, or pip install torch")
        import hfopt.torch
        import pinn_convection_torch as example

        module = example.network() if whole else example.network((10, 10))
        exact = lambda p: torch.sin(p[..., :1] - SPEED * p[..., 1:])
        batch = {name: torch.from_numpy(x) for name, x in example.points().items()}
        return (
            example.make_model(module),
            lambda theta: example.relative_error(hfopt.torch.load(module, theta)),
            lambda: [r.numpy() for r in example.residuals(exact, batch)],
        )


class JaxPinnTest(PinnTest, unittest.TestCase):

    def make(self, whole=False):
        try:
            import jax
        except ImportError:
            self.skipTest("jax is not installed: pip install jax")
        import hfopt.jax
        import jax.numpy as jnp
        import pinn_convection_jax as example

        model = example.make_model() if whole else example.make_model((2, 10, 10, 1))

        def residuals():
            with hfopt.jax._enable_x64(True):
                return [
                    np.asarray(r)
                    for r in example.residuals(
                        lambda p: jnp.sin(p[..., 0] - SPEED * p[..., 1]),
                        {name: jnp.asarray(x) for name, x in example.points().items()},
                    )
                ]

        return model, lambda theta: example.relative_error(model.unflatten(theta)), residuals


if __name__ == "__main__":
    program = unittest.main(exit=False)
    result = program.result
    # 77, by which ctest knows a test that was skipped, when nothing was run.
    everything_skipped = result.testsRun > 0 and len(result.skipped) == result.testsRun
    sys.exit(1 if not result.wasSuccessful() else 77 if everything_skipped else 0)
