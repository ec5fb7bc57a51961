"""hfopt.losses: values against plain formulas and the libraries' own, H against second differences, in PyTorch and in
JAX."""

import unittest

import numpy as np

import hfopt.losses as losses

RANDOM = np.random.default_rng(1)
Z = RANDOM.standard_normal((5, 4, 3))
LABELS = RANDOM.integers(3, size=(5, 4))
LABELS[0, 1] = LABELS[2, 3] = -100
WEIGHTS = RANDOM.random((5, 4))
T = RANDOM.random((5, 4, 3))


class Torch:

    def __init__(self):
        import torch

        self.torch, self.array = torch, torch.from_numpy

    def hessian(self, f, z):
        return self.torch.autograd.functional.hessian(f, z).reshape(z.numel(), z.numel()).numpy()

    def gradient(self, f, z):
        return self.torch.autograd.functional.jacobian(f, z).numpy()

    def exact(self):
        import contextlib

        return contextlib.nullcontext()


class Jax:

    def __init__(self):
        import hfopt.jax
        import jax

        self.jax, self.exact = jax, lambda: hfopt.jax._enable_x64(True)
        self.array = jax.numpy.asarray

    def hessian(self, f, z):
        return np.asarray(self.jax.hessian(f)(z)).reshape(z.size, z.size)

    def gradient(self, f, z):
        return np.asarray(self.jax.grad(f)(z))


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class LossesTest:
    """The tests, for one library."""

    Library = None

    def setUp(self):
        try:
            self.library = self.Library()
        except ImportError as error:
            self.skipTest(f"{self.Library.__name__.lower()} is not installed ({error})")
        precision = self.library.exact()
        precision.__enter__()
        self.addCleanup(precision.__exit__, None, None, None)

    def check(self, loss, z, targets, values, weights, metrics):
        """Terms of each example; the product with H, column by column, against the Hessian of the loss."""
        z = self.library.array(z)
        targets = (
            tuple(self.library.array(t) for t in targets) if isinstance(targets, tuple) else self.library.array(targets)
        )
        terms = loss.terms(z, targets)
        np.testing.assert_allclose(terms[0], values, rtol=1e-12)
        np.testing.assert_allclose(terms[1], weights, rtol=1e-12)
        self.assertEqual(set(terms[2]), set(metrics))
        for name, expected in metrics.items():
            np.testing.assert_allclose(terms[2][name], expected, rtol=1e-12)
        total = lambda x: loss.terms(x, targets)[0].sum()
        size = int(np.prod(z.shape))
        product = np.stack(
            [
                np.asarray(loss.curvature(z, targets, self.library.array(e.reshape(z.shape)))).ravel()
                for e in np.eye(size)
            ],
            axis=1,
        )
        np.testing.assert_allclose(product, self.library.hessian(total, z), atol=1e-12)
        self.assertGreaterEqual(np.linalg.eigvalsh(product).min(), -1e-12)

    def test_cross_entropy(self):
        taken = LABELS != -100
        nll = -np.take_along_axis(log_softmax(Z), np.where(taken, LABELS, 0)[..., None], axis=-1)[..., 0]
        wrong = Z.argmax(axis=-1) != LABELS
        self.check(
            losses.cross_entropy(),
            Z,
            LABELS,
            (taken * nll).sum(axis=1),
            taken.sum(axis=1),
            {"errors": (taken * wrong).sum(axis=1)},
        )
        w = taken * WEIGHTS
        self.check(
            losses.cross_entropy(weighted=True),
            Z,
            (LABELS, WEIGHTS),
            (w * nll).sum(axis=1),
            w.sum(axis=1),
            {"errors": (w * wrong).sum(axis=1)},
        )
        c = taken * np.array([1, 2, 0.5])[np.where(taken, LABELS, 0)]
        self.check(
            losses.cross_entropy(class_weights=(1, 2, 0.5)),
            Z,
            LABELS,
            (c * nll).sum(axis=1),
            c.sum(axis=1),
            {"errors": (c * wrong).sum(axis=1)},
        )
        self.check(
            losses.cross_entropy(axis=1),
            Z.swapaxes(1, 2),
            LABELS,
            (taken * nll).sum(axis=1),
            taken.sum(axis=1),
            {"errors": (taken * wrong).sum(axis=1)},
        )
        self.check(
            losses.cross_entropy(ignore_index=1),
            Z[:, 0],
            LABELS[:, 2],
            np.where(LABELS[:, 2] == 1, 0, -log_softmax(Z[:, 0])[np.arange(5), LABELS[:, 2]]),
            LABELS[:, 2] != 1,
            {"errors": (LABELS[:, 2] != 1) & (Z[:, 0].argmax(axis=1) != LABELS[:, 2])},
        )

    def test_binary_cross_entropy(self):
        p = sigmoid(Z)
        each = -T * np.log(p) - (1 - T) * np.log(1 - p)
        metrics = {"errors": (Z > 0) != (T > 0.5), "squared_error": (p - T) ** 2}
        total = lambda x: x.reshape(5, -1).sum(axis=1)
        self.check(
            losses.binary_cross_entropy(), Z, T, total(each), np.ones(5), {k: total(m) for k, m in metrics.items()}
        )
        self.check(
            losses.binary_cross_entropy(mean=True),
            Z,
            T,
            total(each) / 12,
            np.ones(5),
            {k: total(m) / 12 for k, m in metrics.items()},
        )
        w = WEIGHTS[:, 0]
        self.check(
            losses.binary_cross_entropy(weighted=True),
            Z,
            (T, w),
            w * total(each),
            w,
            {k: w * total(m) for k, m in metrics.items()},
        )

    def test_squared_error(self):
        square = lambda w=1: (w * (Z - T) ** 2).reshape(5, -1).sum(axis=1)
        self.check(losses.squared_error(), Z, T, square() / 2, np.ones(5), {"squared_error": square()})
        self.check(losses.squared_error(mean=True), Z, T, square() / 24, np.ones(5), {"squared_error": square() / 12})
        w = square(WEIGHTS[..., None])
        self.check(
            losses.squared_error(weighted=True), Z, (T, WEIGHTS), w / 2, WEIGHTS.sum(axis=1), {"squared_error": w}
        )

    def test_custom(self):
        value = lambda z, t: ((z - t) ** 4).sum((1, 2))  # convex
        self.check(losses.custom(value, "hessian"), Z, T, ((Z - T) ** 4).sum(axis=(1, 2)), np.ones(5), {})
        self.check(
            losses.custom(value, lambda z, t, d: 12 * (z - t) ** 2 * d),
            Z,
            T,
            ((Z - T) ** 4).sum(axis=(1, 2)),
            np.ones(5),
            {},
        )
        whole = lambda z, t: (value(z, t), t[:, 0, 0], {"top": z[:, 0, 0]})
        self.check(
            losses.custom(whole, "hessian"), Z, T, ((Z - T) ** 4).sum(axis=(1, 2)), T[:, 0, 0], {"top": Z[:, 0, 0]}
        )

    def test_residuals(self):
        loss = losses.residuals(np.sin)
        self.assertIs(loss.function, np.sin)
        self.check(loss, Z, T, (Z**2).sum(axis=(1, 2)) / 2, np.ones(5), {"squared_error": (Z**2).sum(axis=(1, 2))})
        both = loss.terms((self.library.array(Z), self.library.array(T)), None)[0]
        np.testing.assert_allclose(both, ((Z**2).sum(axis=(1, 2)) + (T**2).sum(axis=(1, 2))) / 2)

    def test_refuses_shapes_that_do_not_fit(self):
        z, t = self.library.array(Z), self.library.array(T)
        with self.assertRaisesRegex(
            ValueError, r"SquaredError: outputs of shape \(5, 4, 3\) and targets of shape \(4, 3\)"
        ):
            losses.squared_error().terms(z, t[0])
        with self.assertRaisesRegex(
            ValueError, r"outputs \(5, 4, 3\) with classes on axis -1 need labels of shape \(5, 4\), not \(5, 3\)"
        ):
            losses.cross_entropy().terms(z, self.library.array(LABELS[:, :3]))
        with self.assertRaisesRegex(
            ValueError, r"the loss has shape \(5, 4\); give one value for each of the 5 examples"
        ):
            losses.custom(lambda z, t: z.sum(-1), "hessian").terms(z, t)


class TorchLossesTest(LossesTest, unittest.TestCase):
    Library = Torch

    def test_criteria_are_those_of_torch(self):
        torch, z = self.library.torch, torch_array(Z)
        labels, t = torch_array(LABELS), torch_array(T)
        classes = z.transpose(1, 2)
        weights = torch.tensor([1, 2, 0.5], dtype=torch.float64)
        for criterion, outputs, targets in (
            (torch.nn.CrossEntropyLoss(), classes, labels),
            (torch.nn.CrossEntropyLoss(), z[:, 0], labels[:, 0]),
            (torch.nn.CrossEntropyLoss(weight=weights, ignore_index=1), z[:, 0], labels[:, 2]),
            (torch.nn.MSELoss(), z, t),
            (torch.nn.BCEWithLogitsLoss(), z, t),
        ):
            loss = losses.as_loss(criterion)
            values, counts, _ = loss.terms(outputs, targets)
            self.assertAlmostEqual(float(values.sum() / counts.sum()), float(criterion(outputs, targets)), places=12)
            direction = torch.ones_like(outputs).cumsum(-1)
            total = lambda x: loss.terms(x, targets)[0].sum()
            expected = self.library.hessian(total, outputs) @ direction.numpy().ravel()
            np.testing.assert_allclose(
                loss.curvature(outputs, targets, direction).numpy().ravel(), expected, atol=1e-12
            )
        for criterion in (
            torch.nn.L1Loss(),
            torch.nn.CrossEntropyLoss(label_smoothing=0.1),
            torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)),
            torch.nn.CTCLoss(),
            torch.nn.MSELoss(reduction="none"),
        ):
            with self.assertRaisesRegex(ValueError, f"{type(criterion).__name__}"):
                losses.as_loss(criterion)

    def test_ctc(self):
        torch = self.library.torch
        z, labels = torch_array(RANDOM.standard_normal((3, 4, 3))), torch.tensor([[1, 2], [1, 1], [2, 0]])
        targets = labels, torch.tensor([4, 3, 2]), torch.tensor([2, 2, 1])
        loss = losses.ctc()
        values, weights, _ = loss.terms(z, targets)
        log_p = log_softmax(z.numpy())
        for i, (frames, length) in enumerate(zip((4, 3, 2), (2, 2, 1))):  # over all paths
            total = 0.0
            for path in np.ndindex(*(3,) * frames):
                collapsed = [p for k, p in enumerate(path) if p and (k == 0 or path[k - 1] != p)]
                if collapsed == labels[i, :length].tolist():
                    total += np.exp(sum(log_p[i, t, p] for t, p in enumerate(path)))
            self.assertAlmostEqual(float(values[i]), -np.log(total), places=12)
        self.assertEqual(weights.tolist(), [1, 1, 1])
        product = np.stack(
            [loss.curvature(z, targets, torch_array(e.reshape(z.shape))).numpy().ravel() for e in np.eye(z.numel())],
            axis=1,
        )
        dense = np.zeros_like(product)
        for i, frames in enumerate((4, 3, 2)):
            for t in range(frames):
                p, at = np.exp(log_p[i, t]), 3 * (4 * i + t)
                dense[at : at + 3, at : at + 3] = np.diag(p) - np.outer(p, p)
        np.testing.assert_allclose(product, dense, atol=1e-12)
        # Never less than the Hessian: as a model of the loss it promises no more than there is.
        total, h = lambda x: loss.terms(x, targets)[0].sum(), 1e-5
        gradient = lambda x: self.library.gradient(total, x).ravel()
        hessian = np.stack(
            [
                (gradient(z + h * d) - gradient(z - h * d)) / (2 * h)
                for d in (torch_array(e.reshape(z.shape)) for e in np.eye(z.numel()))
            ]
        )
        self.assertGreater(np.linalg.eigvalsh(product - (hessian + hessian.T) / 2).min(), -1e-8)
        self.assertLess(np.linalg.eigvalsh((hessian + hessian.T) / 2).min(), -0.01)  # which the Hessian itself is not
        shifted = z - z.logsumexp(-1, keepdim=True)  # log-probabilities instead of logits
        np.testing.assert_allclose(loss.terms(shifted, targets)[0], values)


class JaxLossesTest(LossesTest, unittest.TestCase):
    Library = Jax


class AsLossTest(unittest.TestCase):

    def test_takes_what_it_knows(self):
        own = losses.squared_error()
        self.assertIs(losses.as_loss(own), own)
        self.assertEqual(losses.as_loss(losses.squared_error), own)
        self.assertEqual(losses.as_loss(losses.SquaredError), own)
        self.assertEqual(losses.as_loss(losses.CrossEntropy), losses.cross_entropy())
        self.assertEqual(losses.as_loss(np.sin, "hessian"), losses.custom(np.sin, "hessian"))
        for arguments, error, message in (
            ((own, "hessian"), ValueError, "SquaredError brings its own curvature"),
            ((np.sin,), ValueError, "a loss of your own needs output_curvature"),
            ((3,), TypeError, "loss is 3; give one of hfopt.losses"),
            ((losses.Residuals,), TypeError, "loss is <class 'hfopt.losses.Residuals'>; give one of hfopt.losses"),
            ((np.sin, "newton"), TypeError, "curvature is 'newton'; give a function"),
        ):
            with self.assertRaisesRegex(error, message):
                losses.as_loss(*arguments)
        with self.assertRaisesRegex(TypeError, "value is 3; give a function"):
            losses.custom(3, "hessian")


def torch_array(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x))


if __name__ == "__main__":
    unittest.main()
