"""hfopt.check: right models pass, and each mistake is found by the check that is meant for it."""
import os
import pathlib
import unittest

import numpy as np

import digits
import hfopt

DIGITS = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/models/digits"


class Wrong:
    """A model with some functions replaced by others, which get the right one first."""

    def __init__(self, model, **functions):
        self._model, self._functions = model, functions

    def __getattr__(self, name):
        right = getattr(self._model, name)
        wrong = self._functions.get(name)
        return right if wrong is None else lambda *arguments, **keywords: wrong(right, *arguments, **keywords)


def products(change):
    """linearize with `change(v, G v, theta)` for the product."""
    def linearize(right, theta, *arguments):
        product = right(theta, *arguments)
        return lambda v: change(v, product(v), theta)
    return linearize


class CheckTest(unittest.TestCase):
    def setUp(self):
        self.model = digits.DigitsModel(DIGITS)
        self.random = np.random.default_rng(1)

    def check(self, **functions):
        return hfopt.check(Wrong(self.model, **functions), probes=2)

    def test_a_right_model_passes(self):
        theta = 0.3 * self.random.standard_normal(2410)
        for arguments in {}, {"dtype": "float32"}, {"held_out": True}, {"theta": theta}, {"examples": 1}:
            with self.subTest(arguments):
                report = hfopt.check(self.model, **arguments)
                self.assertTrue(report.passed, report)

    def assert_finds(self, name, **functions):
        report = self.check(**functions)
        self.assertIn(name, report.failed, report)
        with self.assertRaisesRegex(AssertionError, f"(?s)checks failed.*{name} +FAILED"):
            report.raise_if_failed()

    def test_finds_a_wrong_gradient(self):
        def scaled(right, *arguments):
            loss, weight, g, squares = right(*arguments)
            return loss, weight, 1.01 * g, squares

        def one_element(right, *arguments):
            loss, weight, g, squares = right(*arguments)
            g[7] += 0.5
            return loss, weight, g, squares

        def mean(right, *arguments):
            loss, weight, g, squares = right(*arguments)
            return loss, weight, g / weight, squares

        self.assert_finds("gradient", gradient=scaled)
        self.assert_finds("gradient", gradient=one_element)
        self.assert_finds("samples", gradient=mean)
        self.assert_finds("gradient", gradient=mean)

    def test_finds_a_product_that_is_none_of_gauss_newton(self):
        S = self.random.standard_normal(2410)
        self.assert_finds("symmetry", linearize=products(lambda v, Gv, _: Gv + S * v.sum()))
        self.assert_finds("semidefinite", linearize=products(lambda v, Gv, _: -Gv))
        self.assert_finds("semidefinite", linearize=products(lambda v, Gv, theta: Gv - 1000 * theta * (theta @ v)))
        self.assert_finds("linearity", linearize=products(lambda v, Gv, _: Gv + 1e-3 * v * np.abs(v)))
        self.assert_finds("samples", linearize=products(lambda v, Gv, _: Gv + v))  # a regulariser that is not weighted

    def test_finds_a_product_with_another_jacobian(self):
        first = np.arange(2410) < 64 * 32 + 32  # the hidden layer

        def scaled(right, theta, held_out, indices):  # S J'HJ S
            product = right(theta, held_out, indices)
            scale = np.where(first, 0.5, 1).astype(theta.dtype)
            return lambda v: scale * product(scale * v)

        def apart(right, theta, held_out, indices):
            product = right(theta, held_out, indices)
            return lambda v: np.where(first, product(np.where(first, v, 0)), product(np.where(first, 0, v)))

        def fisher(right, theta, held_out, indices):
            gradients = [self.model.gradient(theta, held_out, indices[i:i + 1], False)[2] for i in range(len(indices))]
            return lambda v: sum(g * np.dot(g, v) for g in gradients).astype(theta.dtype)

        for dtype in "float64", "float32":
            for name, wrong in ("range", scaled), ("blocks", apart), ("fisher", fisher):
                with self.subTest(name, dtype=dtype):
                    model = Wrong(self.model, linearize=wrong)
                    self.assertEqual(hfopt.check(model, dtype=dtype, examples=8).failed, [name])

    def test_no_alarm_where_single_examples_say_nothing(self):
        """Huber's loss in its straight part; more outputs than parameters; one parameter; separate outputs."""
        a = self.random.standard_normal((20, 3, 40))

        def model(a, bend):
            residuals = lambda theta, i: a[i] @ theta - 1.0
            clipped = lambda r: np.clip(r, -bend, bend)
            huber = lambda r: np.where(abs(r) <= bend, r * r / 2, bend * (abs(r) - bend / 2))

            def linearize(theta, held_out, i):
                J, H = a[i].reshape(-1, a.shape[2]), (abs(residuals(theta, i)) <= bend).ravel()
                return lambda v: J.T @ (H * (J @ v))

            return hfopt.numpy.as_model(
                lambda theta, held_out, i: huber(residuals(theta, i)).sum(),
                lambda theta, held_out, i: np.einsum("ikj,ik->j", a[i], clipped(residuals(theta, i))),
                x0=np.zeros(a.shape[2]), linearize=linearize, num_examples=(len(a), len(a)))

        apart = a.copy()
        apart[:, 0, :20] = apart[:, 1:, 20:] = 0
        for name, arguments in {"huber": (a, 0.5), "many": (a[:, :, :2], 9.0), "one": (a[:, :, :1], 9.0),
                                "apart": (apart, 1e9), "right": (a, 1e9)}.items():
            with self.subTest(name):
                report = hfopt.check(model(*arguments))
                self.assertTrue(report.passed, report)

    def test_finds_answers_that_change(self):
        def dropout(right, theta, *arguments):
            return right(theta * (self.random.random(len(theta)) > 0.1), *arguments)

        self.assert_finds("determinism", loss=dropout)
        self.assert_finds("determinism", gradient=dropout)
        self.assert_finds("determinism", linearize=products(lambda v, Gv, _: Gv * (1 + 1e-12 * self.random.random())))

    def test_finds_a_buffer_that_is_used_again(self):
        buffer = np.empty(2410)

        def in_place(v, Gv, _):
            buffer[:] = Gv
            return buffer

        self.assert_finds("purity", linearize=products(in_place))

    def test_finds_wrong_weights_types_and_squares(self):
        def half_weight(right, *arguments):
            loss, weight, metrics = right(*arguments)
            return loss, weight / 2, metrics

        def wrong_squares(right, theta, held_out, indices, squares=False):
            loss, weight, g, s = right(theta, held_out, indices, squares)
            return loss, weight, g, g * g if squares else s

        self.assert_finds("samples", loss=half_weight)
        self.assert_finds("shapes", linearize=products(lambda v, Gv, _: Gv.astype(np.float32)))
        self.assert_finds("squares", gradient=wrong_squares)
        self.assert_finds("loss", loss=lambda right, *a: (right(*a)[0] + 1, *right(*a)[1:]))

    def test_not_a_number_never_passes(self):
        self.assert_finds("gradient", gradient=lambda right, *a: (*right(*a)[:2], np.full(2410, np.nan), right(*a)[3]))
        self.assert_finds("semidefinite", linearize=products(lambda v, Gv, _: Gv * np.nan))

    def test_prints_a_table(self):
        text = str(hfopt.check(self.model))
        self.assertRegex(text, "(?m)^CHECK +RESULT +ERROR +LIMIT +WHAT IS COMPARED")
        self.assertRegex(text, "(?m)^symmetry +passed +[0-9.]+e-[0-9]+ +1e-08  u'Gv against v'Gu")
        self.assertIn("<td", hfopt.check(self.model)._repr_html_())

    def test_refuses_what_it_cannot_check(self):
        with self.assertRaisesRegex(TypeError, "check: function is no hfopt.Model; .*hfopt.torch.as_model"):
            hfopt.check(lambda x: x)
        for name in "examples", "probes":
            with self.assertRaisesRegex(ValueError, f"{name} is 0; it must be at least 1"):
                hfopt.check(self.model, **{name: 0})

    def test_theta_is_read_only(self):
        def write(right, theta, *arguments):
            theta[0] = 1
            return right(theta, *arguments)

        with self.assertRaisesRegex(ValueError, "read-only"):
            self.check(loss=write)


if __name__ == "__main__":
    unittest.main()
