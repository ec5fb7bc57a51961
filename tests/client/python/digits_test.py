"""The Python example's model: derivatives against finite differences and a dense J'HJ, order of the examples."""
import json
import os
import pathlib
import unittest

import numpy as np

import digits
import hfopt
from hfopt.samples import window_indices

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])


class DigitsModelTest(unittest.TestCase):
    def setUp(self):
        self.model = digits.DigitsModel(SOURCE / "client/models/digits")
        self.theta = self.model.initial_parameters(1, np.float64)
        self.random = np.random.default_rng(1)

    def direction(self):
        return self.random.standard_normal(self.model.num_parameters)

    def test_gradient_is_the_derivative_of_the_loss(self):
        indices = np.arange(100, 130)
        _, weight, gradient, _ = self.model.gradient(self.theta, False, indices)
        self.assertEqual(weight, 30)
        for _ in range(5):
            v, h = self.direction(), 1e-6
            up, down = (self.model.loss(self.theta + s * h * v, False, indices)[0] for s in (1, -1))
            self.assertAlmostEqual((up - down) / (2 * h), gradient @ v,
                                   delta=1e-5 * np.linalg.norm(gradient) * np.linalg.norm(v))

    def test_product_is_dense_gauss_newton(self):
        indices, h = np.array([3, 7]), 1e-6
        product = self.model.linearize(self.theta, True, indices)

        def outputs(theta):
            (w1, b1), (w2, b2) = self.model._split(theta)
            return np.tanh(self.model.data[True][0][indices] @ w1 + b1) @ w2 + b2

        v = self.direction()
        tangent = (outputs(self.theta + h * v) - outputs(self.theta - h * v)) / (2 * h)  # J v
        p = digits.softmax(outputs(self.theta))
        for _ in range(5):
            u = self.direction()
            other = (outputs(self.theta + h * u) - outputs(self.theta - h * u)) / (2 * h)
            dense = sum(o @ (np.diag(q) - np.outer(q, q)) @ t for o, q, t in zip(other, p, tangent))  # u'J'HJv
            self.assertAlmostEqual(u @ product(v), dense, delta=1e-6 * abs(dense) + 1e-6)

    def test_answers_are_sums_over_examples(self):
        a, b = np.arange(0, 10), np.arange(10, 25)
        both = np.concatenate([a, b])
        for one, two, all_ in zip(*(self.model.gradient(self.theta, False, i, squares=True) for i in (a, b, both))):
            np.testing.assert_allclose(one + two, all_, rtol=1e-10, atol=1e-10)
        _, _, _, squares = self.model.gradient(self.theta, False, both, squares=True)
        single = [self.model.gradient(self.theta, False, np.array([i]))[2]**2 for i in both]
        np.testing.assert_allclose(squares, sum(single), rtol=1e-10, atol=1e-12)

    def test_computes_in_the_type_of_theta(self):
        theta = self.theta.astype(np.float32)
        self.assertEqual(self.model.gradient(theta, False, np.arange(5))[2].dtype, np.float32)
        self.assertEqual(self.model.linearize(theta, False, np.arange(5))(theta).dtype, np.float32)

    def test_shuffles_as_published(self):
        vectors = json.loads((SOURCE / "proto/testdata/shuffle.json").read_text())
        for case in vectors["shuffle"]:
            self.assertEqual(hfopt.shuffled_indices(int(case["seed"]), case["n"]).tolist(), case["order"])
        for case in vectors["generator"]:
            generator = hfopt.SplitMix64(int(case["seed"]))
            self.assertEqual([str(generator.next()) for _ in case["next"]], case["next"])

    def test_windows_are_those_published(self):
        for case in json.loads((SOURCE / "proto/testdata/windows.json").read_text())["windows"]:
            where = [case[name] for name in ("examples", "shard", "shards", "begin", "count")]
            self.assertEqual(window_indices(*where).tolist(), case["indices"])


if __name__ == "__main__":
    unittest.main()
