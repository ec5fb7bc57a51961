"""hfopt.torch on a GPU: what it computes there is what it computes on the CPU, and the same bits each time. Skipped where there is none;
HFOPT_TEST_DEVICE=cpu runs it without."""

import os
import unittest

import numpy as np

import gauss_newton as check

torch = check.require("torch", "apt-get install python3-torch, or pip install torch", __name__)
DEVICE = os.environ.get("HFOPT_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    print("skipped: PyTorch finds no GPU here")
    raise SystemExit(77)

import hfopt
import hfopt.losses as losses
import hfopt.torch
from torch_test import CASES, INDICES, METHODS, ONLY_DOUBLE_BACKWARD, make, random, labels

TOLERANCE = {np.float64: 1e-9, np.float32: 2e-4}


class CudaTest(unittest.TestCase):

    def each(self):
        for name in CASES:
            for dtype in TOLERANCE:
                with self.subTest(name, dtype=dtype):
                    model = make(name, device=DEVICE)
                    yield name, model, model.initial_parameters(1, dtype), TOLERANCE[dtype]

    def close(self, a, b, tolerance):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())

    def test_computes_what_the_cpu_computes(self):
        for name, model, theta, tolerance in self.each():
            cpu = make(name, device="cpu")
            for got, expected in zip(model.gradient(theta, False, INDICES, True), cpu.gradient(theta, False, INDICES, True)):
                self.close(got, expected, tolerance)
            self.close(model.loss(theta, True, INDICES)[0], cpu.loss(theta, True, INDICES)[0], tolerance)
            v = np.random.default_rng(3).standard_normal(len(theta)).astype(theta.dtype)
            for method in METHODS if name not in ONLY_DOUBLE_BACKWARD else METHODS[:1]:
                product = make(name, device=DEVICE, product=method).linearize(theta, False, INDICES)(v)
                self.close(product, cpu.linearize(theta, False, INDICES)(v), tolerance)
                self.assertEqual((product.dtype, product.shape), (theta.dtype, theta.shape))

    def test_is_pure(self):
        for _, model, theta, _ in self.each():
            check.check_pure(self, model, theta, INDICES)

    def test_keeping_activations_changes_no_bit(self):
        for name, _, theta, _ in self.each():
            a, b = (make(name, device=DEVICE, batch_size=3, max_kept_bytes=size).linearize(theta, False, INDICES)(theta)
                    for size in (1 << 30, 0))
            np.testing.assert_array_equal(a, b)

    def test_a_large_product_is_symmetric_and_repeatable(self):
        module = torch.nn.Sequential(torch.nn.Linear(784, 1000), torch.nn.Tanh(), torch.nn.Linear(1000, 1000), torch.nn.Tanh(),
                                     torch.nn.Linear(1000, 10))
        data = (random(4096, 784).float(), labels(10, 4096))
        model = hfopt.torch.as_model(module, losses.cross_entropy(), data, data, device=DEVICE, batch_size=1000)
        theta, indices = model.initial_parameters(1, np.float32), np.arange(4096)
        u, v = np.random.default_rng(4).standard_normal((2, len(theta))).astype(np.float32)
        product = model.linearize(theta, False, indices)
        Gu, Gv = product(u), product(v)
        self.assertAlmostEqual(float(v @ Gu), float(u @ Gv), delta=1e-4 * np.linalg.norm(u) * np.linalg.norm(Gv))
        self.assertGreater(float(v @ Gv), 0)
        for _ in range(5):
            np.testing.assert_array_equal(product(v), Gv)

    def test_check_finds_nothing(self):
        for dtype in "float32", "float64":
            report = hfopt.check(make("convnet", device=DEVICE), dtype=dtype)
            self.assertTrue(report.passed, report)

    def test_fit_ends_where_the_cpu_ends(self):
        def fit(device):
            return hfopt.fit(make("mlp", device=device), dtype="float64", max_iterations=6, progress=False,
                             options={"preset": "deterministic"})

        gpu, again, cpu = fit(DEVICE), fit(DEVICE), fit("cpu")
        np.testing.assert_array_equal(gpu.parameters, again.parameters)
        np.testing.assert_allclose(gpu.parameters, cpu.parameters, rtol=1e-6, atol=1e-6)

    def test_data_on_either_device(self):
        x, y = random(8, 4), labels(3, 8)
        module = CASES["mlp"][0]()
        theta = None
        answers = []
        for device in "cpu", DEVICE:
            model = hfopt.torch.as_model(module, losses.cross_entropy(), (x.to(device), y.to(device)), (x, y), device=DEVICE)
            theta = model.initial_parameters(1, np.float64)
            answers.append(model.gradient(theta, False, INDICES, False)[2])
        np.testing.assert_array_equal(*answers)


if __name__ == "__main__":
    unittest.main()
