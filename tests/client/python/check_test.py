"""hfopt.check: right models pass, and each mistake is found by the check that is meant for it."""
import itertools
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


class Network:
    """tanh(x W + b) V, of theta = (W, b, V), by its formulas: for each example a loss of (outputs, target) with its
    gradient e and Hessian H, and the product of the sum of G(J, e, H)."""

    num_examples = 24, 0
    has_second_moment = False
    signature = "network"

    def __init__(self, outputs, loss, l2=0.0, slope=lambda h: 1 - h * h, G=lambda J, e, H: J.T @ H @ J, sizes=(5, 6)):
        self.inputs, self.hidden, self.outputs = *sizes, outputs
        self.num_parameters = (self.inputs + 1 + outputs) * self.hidden
        self.at, self.l2, self.slope, self.G = loss, l2, slope, G
        self.data = np.random.default_rng(3).standard_normal((24, self.inputs + outputs))

    def initial_parameters(self, seed, dtype):
        return (0.4 * np.random.default_rng(seed).standard_normal(self.num_parameters)).astype(dtype)

    def weight(self, held_out, indices):
        return len(indices)

    def examples(self, theta, indices, slope):
        theta, first = theta.astype(np.float64), (self.inputs + 1) * self.hidden
        W, V = theta[:first].reshape(-1, self.hidden), theta[first:].reshape(self.hidden, self.outputs)
        for row in self.data[indices]:
            x = np.append(row[:self.inputs], 1)
            h = np.tanh(x @ W)
            by_first = np.einsum("i,jk->kij", x, slope(h)[:, None] * V).reshape(self.outputs, -1)
            J = np.hstack([by_first, np.kron(h, np.eye(self.outputs))])
            yield J, *self.at(h @ V, row[self.inputs:])

    def loss(self, theta, held_out, indices):
        loss, weight, _, _ = self.gradient(theta, held_out, indices)
        return loss, weight, {}

    def gradient(self, theta, held_out, indices, squares=False):
        loss, g = 0.0, np.zeros(self.num_parameters)
        for J, value, e, _ in self.examples(theta, indices, lambda h: 1 - h * h):
            loss, g = loss + value + self.l2 / 2 * float(theta @ theta), g + J.T @ e + self.l2 * theta
        return loss, len(indices), g.astype(theta.dtype), None

    def linearize(self, theta, held_out, indices):
        G = sum(self.G(J, e, H) for J, _, e, H in self.examples(theta, indices, self.slope))
        G = (G + len(indices) * self.l2 * np.eye(self.num_parameters)).astype(theta.dtype)
        return lambda v: G @ v


def squared(z, t):
    return (z - t) @ (z - t) / 2, z - t, np.eye(len(z))


def softmax(z, t):
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    label = t.argmax()
    return -np.log(p[label]), p - np.eye(len(z))[label], np.diag(p) - np.outer(p, p)


def logistic(z, t):
    p, t = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-t))
    return -(t @ np.log(p) + (1 - t) @ np.log(1 - p)), p - t, np.diag(p * (1 - p))


def huber(z, t):
    r = 2 * (z - t)
    return np.where(abs(r) < 1, r * r / 2, abs(r) - 0.5).sum() / 4, r.clip(-1, 1) / 2, np.diag(1.0 * (abs(r) < 1))


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

    def test_finds_a_product_that_is_not_of_the_gradients_jacobian(self):
        def blocks(J, e, H):
            G = J.T @ H @ J
            G[:36, 36:] = G[36:, :36] = 0
            return G

        mistakes = {
            "range": [dict(slope=lambda h: 1 - h), dict(slope=lambda h: 0.5 * (1 - h * h)), dict(slope=np.ones_like)],
            "blocks": [dict(G=blocks), dict(G=lambda J, e, H: np.diag(np.diag(J.T @ H @ J)))],
            "fisher": [dict(G=lambda J, e, H: np.outer(J.T @ e, J.T @ e))]}
        for name, several in mistakes.items():
            for outputs, loss, l2 in (3, softmax, 0.02), (2, squared, 0), (1, logistic, 0.01):
                for mistake, dtype in itertools.product(several, ("float32", "float64")):
                    with self.subTest((name, loss.__name__, dtype)):
                        report = hfopt.check(Network(outputs, loss, l2, **mistake), dtype=dtype, probes=1)
                        self.assertEqual(report.failed, [name], report)

    def test_a_right_jacobian_raises_no_alarm(self):
        models = [(1, 0, (5, 6)), (3, 0.3, (5, 6)), (8, 0, (1, 1)), (25, 0, (2, 3))]  # the last two with many outputs
        for (outputs, l2, sizes), loss, dtype in itertools.product(
                models, (softmax, squared, logistic, huber), ("float32", "float64")):
            with self.subTest((outputs, loss.__name__, dtype)):
                report = hfopt.check(Network(outputs, loss, l2, sizes=sizes), dtype=dtype, probes=1)
                self.assertTrue(report.passed, report)

    def test_a_layer_of_zeros_hides_no_mistake_and_raises_no_alarm(self):
        theta = np.zeros(54)
        self.assertTrue(hfopt.check(Network(3, softmax), theta).passed)
        self.assertEqual(hfopt.check(Network(3, softmax, slope=lambda h: 0.5 * (1 - h * h)), theta).failed, ["range"])

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
