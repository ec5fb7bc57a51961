"""hfopt.jax: derivatives against finite differences and a dense J'HJ, padding, data sets, refusals."""

import contextlib
import functools
import os
import pathlib
import unittest
from unittest import mock

import numpy as np

import gauss_newton as check

jax = check.require("jax", "pip install jax; the distribution has none", __name__)
import digits
import hfopt
import hfopt.jax
import hfopt.losses as losses
import jax.numpy as jnp

jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of this test's time

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])
INDICES = np.array([3, 0, 7, 7, 5, 1])
RANDOM = np.random.default_rng(1)


def layers(*widths):
    return [
        {"weights": RANDOM.standard_normal((i, o)) / np.sqrt(i), "biases": RANDOM.standard_normal(o) / 2}
        for i, o in zip(widths, widths[1:])
    ]


def mlp(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weights"] + layer["biases"])
    return x @ params[-1]["weights"] + params[-1]["biases"]


def convnet(params, x):
    x = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID")
    return jax.nn.relu(x).reshape(len(x), -1) @ params["weights"]


def tied(params, x):
    return jnp.tanh(x @ params["weights"]) @ params["weights"].T


def words(params, inputs):
    """Embedding and classes for each frame."""
    return jnp.cumsum(params["embedding"][inputs["words"]] * inputs["mask"][..., None], axis=1) @ params["out"]


def wave(u, batch):
    """u_tt - 4 u_xx for points in rows, and a value; derivatives of second order."""
    along = lambda d: jax.jvp(
        lambda p: jax.jvp(u, (p,), (jnp.broadcast_to(d, p.shape),))[1], (batch,), (jnp.broadcast_to(d, batch.shape),)
    )[1]
    x, t = jnp.array([1.0, 0.0], batch.dtype), jnp.array([0.0, 1.0], batch.dtype)
    return (along(t) - 4 * along(x))[:, 0], u(batch)


X, Y = RANDOM.standard_normal((8, 4)), RANDOM.integers(3, size=8)
CASES = {
    "mlp": (mlp, layers(4, 5, 3), losses.cross_entropy(), (X, Y)),
    "squared error": (mlp, layers(4, 5, 3), losses.squared_error(), (X, RANDOM.standard_normal((8, 3)))),
    "bernoulli": (
        mlp,
        layers(4, 5, 3),
        losses.binary_cross_entropy(),
        (X, RANDOM.integers(2, size=(8, 3)).astype(float)),
    ),
    "convnet": (
        convnet,
        {"kernel": RANDOM.standard_normal((2, 1, 3, 3)), "weights": RANDOM.standard_normal((8, 3))},
        losses.cross_entropy(),
        (RANDOM.standard_normal((8, 1, 4, 4)), Y),
    ),
    "tied": (tied, {"weights": RANDOM.standard_normal((4, 3))}, losses.squared_error(), (X, X)),
    "words": (
        words,
        {"embedding": RANDOM.standard_normal((6, 3)), "out": RANDOM.standard_normal((3, 3))},
        losses.cross_entropy(ignore_index=2),
        (
            {"words": RANDOM.integers(6, size=(8, 5)), "mask": RANDOM.integers(2, size=(8, 5))},
            RANDOM.integers(3, size=(8, 5)),
        ),
    ),
    "wave": (mlp, layers(2, 5, 1), losses.residuals(wave), RANDOM.standard_normal((8, 2))),
}


@functools.lru_cache(None)
def make(name, **options):
    apply, params, loss, data = CASES[name]
    return hfopt.jax.as_model(apply, params, loss, data, data, shuffle=None, **options)


class DerivativesTest(unittest.TestCase):

    def each(self):
        for name in CASES:
            with self.subTest(name):
                model = make(name)
                yield name, model, model.initial_parameters(1, np.float64)

    def test_gradient_is_the_derivative_of_the_loss(self):
        for _, model, theta in self.each():
            check.check_gradient(self, model, theta, INDICES)

    def test_product_is_dense_gauss_newton(self):
        """J by central differences of the outputs, H by automatic differentiation of the loss."""
        for name, model, theta in self.each():
            apply, _, loss, data = CASES[name]
            batch = jax.tree_util.tree_map(lambda x: x[INDICES], data)
            with hfopt.jax._enable_x64(True):

                @jax.jit
                def outputs(vector):
                    params = jax.tree_util.tree_unflatten(
                        jax.tree_util.tree_structure(model._params),
                        jnp.split(vector, np.cumsum([p.size for p in jax.tree_util.tree_leaves(model._params)])[:-1]),
                    )
                    params = jax.tree_util.tree_map(lambda p, like: p.reshape(like.shape), params, model._params)
                    if loss.function:
                        return jnp.concatenate([r.ravel() for r in loss.function(lambda x: apply(params, x), batch)])
                    return apply(params, batch[0])

                jacobian, z = check.numerical_jacobian(lambda v: np.asarray(outputs(v)), theta), outputs(theta)
                value = lambda x: loss.terms(x.reshape(z.shape), batch[1])[0].sum()
                hessian = np.eye(z.size) if loss.function else np.asarray(jax.hessian(value)(z.ravel()))
            dense = jacobian.T @ hessian @ jacobian
            product = model.linearize(theta, False, INDICES)
            np.testing.assert_allclose(
                check.dense_product(product, len(theta)), dense, rtol=1e-6, atol=1e-7 * np.abs(dense).max()
            )

    def test_sums_squared_gradients_of_examples(self):
        for _, model, theta in self.each():
            check.check_squares(self, model, theta, INDICES)

    def test_is_pure(self):
        for name in "words", "wave":
            model = make(name)
            for dtype in np.float32, np.float64:
                with self.subTest(name, dtype=dtype):
                    check.check_pure(self, model, model.initial_parameters(1, dtype), INDICES)

    def test_the_batch_size_changes_rounding_alone(self):
        for name in "words", "wave":
            with self.subTest(name):
                check.check_batching(
                    self, functools.partial(make, name), make(name).initial_parameters(1, np.float64), INDICES
                )

    def test_nothing_of_nothing(self):
        for _, model, theta in self.each():
            check.check_empty(self, model, theta)

    def test_float32_is_float64_to_rounding(self):
        for name in "words", "wave":
            model = make(name)
            theta = model.initial_parameters(1, np.float64)
            single = theta.astype(np.float32)
            a, b = (model.gradient(t, False, INDICES, False)[2] for t in (single, single.astype(np.float64)))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
            a, b = (model.linearize(t, False, INDICES)(t) for t in (single, single.astype(np.float64)))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        self.assertFalse(jax.config.jax_enable_x64)

    def test_says_so_where_float64_comes_out_as_float32(self):
        data = RANDOM.standard_normal((6, 3)), RANDOM.standard_normal((6, 2))
        params = {"w": RANDOM.standard_normal((3, 2))}
        casting = lambda p, x: (x @ p["w"]).astype(jnp.float32)
        model = hfopt.jax.as_model(casting, params, losses.squared_error(), data, data)
        theta = model.initial_parameters(1, np.float64)
        with self.assertRaisesRegex(TypeError, "float64 was asked for, but .* computes float32: something in it casts"):
            model.loss(theta, False, np.arange(6))
        self.assertTrue(np.isfinite(model.loss(theta.astype(np.float32), False, np.arange(6))[0]))
        with self.assertRaisesRegex(hfopt.Error, "something in it casts"):
            hfopt.fit(model, preset="deterministic", progress=False)

        never = mock.patch("hfopt.jax._enable_x64", lambda on: contextlib.nullcontext())
        hfopt.jax._has_float64.cache_clear()
        self.addCleanup(hfopt.jax._has_float64.cache_clear)
        with never, self.assertRaisesRegex(TypeError, "computes in float32: set JAX_ENABLE_X64=1"):
            model.loss(theta, False, np.arange(6))

    def test_regularization_is_of_the_mean_loss(self):
        plain, regular = make("words"), make("words", regularization=0.25)
        theta = plain.initial_parameters(1, np.float64)
        loss, weight, gradient, _ = plain.gradient(theta, False, INDICES, True)
        self.assertEqual(weight, np.count_nonzero(CASES["words"][3][1][INDICES] != 2))
        answer = regular.gradient(theta, False, INDICES, True)
        self.assertAlmostEqual(answer[0], loss + weight * 0.125 * theta @ theta)
        np.testing.assert_allclose(answer[2], gradient + weight * 0.25 * theta)
        np.testing.assert_allclose(
            regular.linearize(theta, False, INDICES)(theta),
            plain.linearize(theta, False, INDICES)(theta) + weight * 0.25 * theta,
        )
        check.check_gradient(self, regular, theta, INDICES)
        check.check_squares(self, regular, theta, INDICES)

    def test_agrees_with_the_digits_example(self):
        example = digits.DigitsModel(SOURCE / "client/models/digits")

        def apply(params, x):
            (w1, b1), (w2, b2) = params
            return jnp.tanh(x @ w1 + b1) @ w2 + b2

        theta = example.initial_parameters(1, np.float64)
        model = hfopt.jax.as_model(
            apply, example._split(theta), losses.cross_entropy(), *example.data, shuffle=None, batch_size=128
        )
        np.testing.assert_array_equal(model.initial_parameters(5), theta)
        indices, v = np.arange(100, 300), np.random.default_rng(1).standard_normal(len(theta))
        for held_out in False, True:
            for a, b in zip(
                model.gradient(theta, held_out, indices, True), example.gradient(theta, held_out, indices, True)
            ):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
            self.assertEqual(model.loss(theta, held_out, indices)[2], example.loss(theta, held_out, indices)[2])
            np.testing.assert_allclose(
                model.linearize(theta, held_out, indices)(v),
                example.linearize(theta, held_out, indices)(v),
                rtol=1e-9,
                atol=1e-12,
            )


class ModelTest(unittest.TestCase):

    def test_compiles_few_sizes(self):
        sizes = []

        def apply(params, x):
            sizes.append(len(x))  # runs when JAX traces, not when the compiled code runs
            return x @ params

        data = RANDOM.standard_normal((300, 2)), RANDOM.standard_normal((300, 1))
        model = hfopt.jax.as_model(
            apply, np.ones((2, 1), np.float32), losses.squared_error(), data, data, batch_size=128
        )
        theta = model.initial_parameters(1)
        for count in range(1, 301):
            self.assertEqual(model.loss(theta, False, np.arange(count))[1], count)
        self.assertEqual(sorted(sizes), [16, 32, 64, 128])

    def test_unflattens_what_it_flattens(self):
        model = make("convnet")
        theta = model.initial_parameters(1, np.float64)
        params = model.unflatten(theta)
        np.testing.assert_array_equal(params["kernel"], CASES["convnet"][1]["kernel"])
        np.testing.assert_array_equal(model.flatten(params), theta)
        np.testing.assert_array_equal(
            theta,
            (
                np.asarray(jax.flatten_util.ravel_pytree(params)[0]).astype(np.float64)
                if jax.config.jax_enable_x64
                else np.concatenate([params["kernel"].ravel(), params["weights"].ravel()])
            ),
        )

    def test_parameters_of_float64_are_trained_in_it_where_jax_keeps_them(self):
        apply, params, loss, data = CASES["mlp"]
        cast = lambda dtype: jax.tree_util.tree_map(lambda x: np.asarray(x, dtype), params)
        for dtype, enabled, expected in (
            (np.float64, True, "float64"), (np.float64, False, "float32"), (np.float32, True, "float32")
        ):
            with self.subTest(dtype=dtype, enabled=enabled), hfopt.jax._enable_x64(enabled):
                model = hfopt.jax.as_model(apply, cast(dtype), loss, data, data)
                result = hfopt.fit(model, max_iterations=1, progress=False)
                self.assertEqual(result.parameters.dtype, expected)

    def test_initializes_by_seed(self):
        model = make("tied", initialize=lambda key: {"weights": jax.random.normal(key, (4, 3))})
        a, b, c = (model.initial_parameters(seed, np.float64) for seed in (1, 1, 2))
        np.testing.assert_array_equal(a, b)
        self.assertGreater(np.abs(a - c).max(), 0.01)

    def test_the_signature_tells_models_and_data_apart(self):
        apply, params, loss, data = CASES["mlp"]
        make_signature = lambda p=params, l=loss, d=data, **options: hfopt.jax.as_model(
            apply, p, l, d, d, **options
        ).signature
        self.assertEqual(make_signature(), make_signature())
        others = [
            make_signature(),
            make_signature(layers(4, 3, 3)),
            make_signature(l=losses.cross_entropy(axis=1)),
            make_signature(d=(2 * X, Y)),
            make_signature(d=(X[:7], Y[:7])),
            make_signature(regularization=1),
            make_signature(frozen="b"),
        ]
        self.assertEqual(len(set(others)), len(others))
        self.assertEqual(make_signature(signature="mine"), "mine")

    def test_refuses_with_reasons(self):
        apply, params, loss, data = CASES["mlp"]
        for error, message, arguments, options in (
            (TypeError, "train_data is ndarray; give a pair", (apply, params, loss, X, data), {}),
            (ValueError, "train_data: arrays of 7 and 8 examples", (apply, params, loss, (X[:7], Y), data), {}),
            (ValueError, "heldout_data is empty", (apply, params, loss, data, (X[:0], Y[:0])), {}),
            (
                ValueError,
                r"params\['steps'\] is int64; trainable",
                (apply, {"steps": np.arange(3)}, loss, data, data),
                {},
            ),
            (ValueError, "batch_size is 0", (apply, params, loss, data, data), {"batch_size": 0}),
            (ValueError, "regularization is -1", (apply, params, loss, data, data), {"regularization": -1}),
            (ValueError, "a loss of your own needs output_curvature", (apply, params, lambda z, t: z, data, data), {}),
            (NotImplementedError, "ctc is for PyTorch", (apply, params, losses.ctc(), data, data), {}),
            (TypeError, "heldout_data is missing", (apply, params, losses.squared_error(), data, None), {}),
            (TypeError, "train_data holds a list of numbers",
             (apply, params, losses.squared_error(), tuple(np.asarray(x).tolist() for x in data), data), {}),
        ):
            with self.assertRaisesRegex(error, message):
                hfopt.jax.as_model(*arguments, **options)
        model = make("mlp")
        theta = model.initial_parameters(1)
        with self.assertRaisesRegex(IndexError, "examples 0 .. 8 of 8"):
            model.loss(theta, False, np.array([0, 8]))
        with self.assertRaisesRegex(ValueError, r"a vector of shape \(5,\) for a model of 43 trainable parameters"):
            model.loss(theta[:5], False, np.array([0]))
        with self.assertRaisesRegex(TypeError, "a vector of float16; give float32 or float64"):
            model.loss(theta.astype(np.float16), False, np.array([0]))


if __name__ == "__main__":
    unittest.main()
