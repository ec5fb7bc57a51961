"""What the tests of the adapters share: derivatives checked against finite differences and a dense J'HJ."""

import importlib
import unittest

import numpy as np


def check_gradient(test, model, theta, indices, held_out=False, directions=3):
    """gradient is the derivative of loss; both report the same loss and weight."""
    loss, weight, gradient, _ = model.gradient(theta, held_out, indices, False)
    test.assertAlmostEqual(loss, model.loss(theta, held_out, indices)[0], delta=1e-9 * abs(loss))
    test.assertEqual(weight, model.loss(theta, held_out, indices)[1])
    random, h = np.random.default_rng(1), 1e-6
    for _ in range(directions):
        v = random.standard_normal(len(theta))
        up, down = (model.loss(theta + s * h * v, held_out, indices)[0] for s in (1, -1))
        test.assertAlmostEqual(
            (up - down) / (2 * h), gradient @ v, delta=1e-6 * np.linalg.norm(gradient) * np.linalg.norm(v) + 1e-7
        )


def dense_product(product, n):
    """The matrix of a linear function of n numbers."""
    return np.stack([product(e) for e in np.eye(n)], axis=1)


def numerical_jacobian(function, theta, h=1e-6):
    """Central differences of function, which returns an array of any shape: (size, n)."""
    return np.stack(
        [(function(theta + h * e) - function(theta - h * e)).ravel() / (2 * h) for e in np.eye(len(theta))], axis=1
    )


def check_squares(test, model, theta, indices):
    """The sum of squared gradients of the examples is that of gradients one by one."""
    squares = model.gradient(theta, False, indices, True)[3]
    single = [model.gradient(theta, False, np.array([i]), False)[2] ** 2 for i in indices]
    np.testing.assert_allclose(squares, sum(single), rtol=1e-9, atol=1e-12)


def check_pure(test, model, theta, indices):
    """Equal arguments give equal bits, whatever was asked in between."""
    v = np.random.default_rng(2).standard_normal(len(theta)).astype(theta.dtype)
    for array in theta, v:
        array.flags.writeable = False
    other = (1.5 * theta).astype(theta.dtype)
    first = (
        model.loss(theta, False, indices),
        model.gradient(theta, False, indices, True),
        model.linearize(theta, False, indices),
    )
    product = first[2](v)
    model.gradient(other, True, indices[:1], False), model.linearize(other, True, indices[:1])(v)
    test.assertEqual(first[0], model.loss(theta, False, indices))
    for a, b in zip(first[1], model.gradient(theta, False, indices, True)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(product, first[2](v))
    test.assertEqual(first[2].weight, first[0][1])
    np.testing.assert_array_equal(product, model.linearize(theta, False, indices)(v))
    test.assertEqual((product.dtype, first[1][2].dtype), (theta.dtype, theta.dtype))


def check_batching(test, make_model, theta, indices):
    """The batch size changes rounding alone; so does whether activations are kept."""
    v = np.random.default_rng(3).standard_normal(len(theta))
    expected = None
    for options in {"batch_size": 100}, {"batch_size": 3}, {"batch_size": 1}, {"batch_size": 3, "max_kept_bytes": 0}:
        model = make_model(**options)
        loss, weight, gradient, squares = model.gradient(theta, False, indices, True)
        answer = [loss, weight, gradient, squares, model.linearize(theta, False, indices)(v)]
        expected = expected or answer
        for a, b in zip(expected, answer):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def check_empty(test, model, theta):
    """Sums over no examples are 0."""
    none = np.array([], dtype=np.int64)
    loss, weight, gradient, squares = model.gradient(theta, False, none, True)
    test.assertEqual((loss, weight, np.abs(gradient).max(), np.abs(squares).max()), (0, 0, 0, 0))
    test.assertEqual(np.abs(model.linearize(theta, False, none)(theta)).max(), 0)


def require(name, remedy, importer):
    """The module `name`. Without it the test file that imports this is skipped: exit status 77, if it is the program
    that runs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"skipped: {name} is not installed ({remedy})"
        if importer != "__main__":
            raise unittest.SkipTest(reason) from error
        print(reason)
        raise SystemExit(77)
