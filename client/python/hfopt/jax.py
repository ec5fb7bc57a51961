"""JAX functions as models of hfopt: exact Gauss-Newton products for any differentiable apply(params, inputs).

    model = hfopt.jax.as_model(apply, params, hfopt.losses.cross_entropy(), (images, labels), (new_images, new_labels))
    result = hfopt.fit(model)
    params = model.unflatten(result.parameters)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import jax
import jax.numpy as jnp
import numpy as np

from . import _adapter, losses
from .samples import shuffled_indices

_enable_x64: Any = (
    jax.enable_x64 if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64
)

Array = _adapter.Array  # of NumPy
_SMALLEST_BATCH = 16


class JaxModel(_adapter.Adapter):
    """A function and its data as hfopt wants a model: loss, gradient and Gauss-Newton product, each a sum over
    examples.

    Args:
      apply: (params, inputs) -> outputs, pure, of a batch whose first axis is the examples, each treated by itself: of
        Flax, for example, lambda p, x: module.apply({"params": p}, x). Compiled by jax.jit, for batch_size examples and
        for halves of that, at most.
      params: a pytree of floating-point arrays, all trainable; close apply over what is not, and name it in `frozen`.
        Where all are float64 and JAX's 64 bits are enabled, `fit` computes in float64 if the caller names no type.
      loss: one of hfopt.losses (but ctc), or a function (outputs, targets) -> losses of shape (examples,) together with
        output_curvature (hfopt.losses.custom). A residual function gets lambda inputs: apply(params, inputs) as its
        network.
      train_data, heldout_data: a pair (inputs, targets), or for a residual function whatever it takes; pytrees of
        arrays (NumPy's or JAX's) with the same first axis.
      batch_size: examples in one call; the memory in use grows with it, and with max_kept_bytes.
      regularization: adds regularization / 2 |theta|^2 to the mean loss.
      shuffle: seed of the examples' fixed order (samples are windows of it, so sorted data must be shuffled), the same
        on all workers; None: as they are.
      initialize: key -> params, for initial parameters that depend on a seed; default: `params`, whatever the seed.
      max_kept_bytes: activations that a linearization may keep for all its products; those of further batches are
        computed anew in each product.
      frozen: put into the signature, to tell apart what apply is closed over.
      signature: of model and data, equal on all workers of a run; default: made of the parameters' names and shapes,
        loss and some of the data.

    theta and v: shape (num_parameters,), float32 or float64, read only, in the order of jax.flatten_util.ravel_pytree.
    What is computed has the type of theta (float64 under jax.enable_x64, switched on around each call; TypeError where
    float32 comes out all the same), and so have floating-point data. Everything is a pure function of the arguments:
    equal ones give equal bits on the same machine (on GPUs that takes XLA_FLAGS=--xla_gpu_deterministic_ops=true).
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        params: Any,
        loss: Any,
        train_data: Any,
        heldout_data: Any,
        *,
        batch_size: int = 512,
        output_curvature: Union[Callable[..., Any], str, None] = None,
        regularization: float = 0.0,
        shuffle: Optional[int] = 1,
        initialize: Optional[Callable[[jax.Array], Any]] = None,
        max_kept_bytes: int = 2 << 30,
        frozen: str = "",
        signature: Optional[str] = None,
    ):
        loss = losses.as_loss(loss, output_curvature)
        if regularization < 0:
            raise ValueError(f"regularization is {regularization}; give 0 or more")
        if isinstance(loss, losses.Ctc):
            raise NotImplementedError(
                "ctc is for PyTorch; with JAX use hfopt.losses.custom with a CTC loss of your library and "
                "curvature=hfopt.losses.ctc().curvature"
            )
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            if not np.issubdtype(np.asarray(leaf).dtype, np.floating):
                raise ValueError(
                    f"params{jax.tree_util.keystr(path)} is {np.asarray(leaf).dtype}; trainable parameters have to be "
                    "floating-point numbers"
                )
        self._params = jax.tree_util.tree_map(np.asarray, params)
        self._loss, self._regularization, self._initialize, self._apply = loss, float(regularization), initialize, apply
        self._batch_size = _adapter.check_positive("batch_size", batch_size)
        self._max_kept_bytes = max_kept_bytes
        self._data = [
            _Data(name, data, loss.function is None, seed)
            for name, data, seed in zip(
                ("train_data", "heldout_data"),
                (train_data, heldout_data),
                (None, None) if shuffle is None else (shuffle, shuffle + 1),
            )
        ]
        self._terms, self._gradient, self._squares = (
            jax.jit(f) for f in (self._compute_terms, self._compute_gradient, self._compute_squares)
        )
        self._linearize, self._product = jax.jit(self._compute_linearize), jax.jit(self._compute_product)
        types = {jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in jax.tree_util.tree_leaves(self._params)}
        self.element_types = ("float64", "float32") if types == {np.dtype(np.float64)} else ("float32", "float64")
        self.num_parameters = sum(leaf.size for leaf in jax.tree_util.tree_leaves(self._params))
        self.num_examples = (self._data[0].length, self._data[1].length)
        if not self.num_parameters:
            raise ValueError("params holds no numbers")
        self.signature = signature if signature is not None else self._describe(frozen)

    def unflatten(self, theta: Array) -> Any:
        """theta, shape (n,), as a pytree like `params`, of NumPy arrays that are views of it."""
        leaves, structure = jax.tree_util.tree_flatten(self._params)
        parts = np.split(self._check(theta), np.cumsum([leaf.size for leaf in leaves])[:-1])
        return jax.tree_util.tree_unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)])

    def flatten(self, params: Any, dtype: Any = None) -> Array:
        """The inverse of `unflatten`; dtype: default float64 if all of params are, else float32."""
        leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(params)]
        dtype = dtype or (np.float64 if all(leaf.dtype == np.float64 for leaf in leaves) else np.float32)
        return np.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])

    # The protocol of a model.

    def initial_parameters(self, seed: int, dtype: Any = None) -> Array:
        if not self._initialize:
            return self.flatten(self._params, dtype)
        with _precision(dtype or np.float64):
            return self.flatten(self._initialize(jax.random.PRNGKey(seed)), dtype)

    def loss(self, theta: Array, held_out: bool, indices: Array) -> Tuple[float, float, Dict[str, float]]:
        """Loss sum, weight, metric sums."""
        theta = self._check(theta)
        with _precision(theta.dtype):
            sums = _adapter.Sums(_total)
            for batch, taken in self._batches(theta, held_out, indices):
                sums.add(self._terms(theta, batch, taken))
        loss, weight, metrics = sums.values()
        return self._regularized_loss(loss, theta, weight), weight, metrics

    def gradient(
        self, theta: Array, held_out: bool, indices: Array, squares: bool = False
    ) -> Tuple[float, float, Array, Optional[Array]]:
        """Loss sum, weight, gradient sum and, if asked for, the sum of the examples' squared gradients, the
        regularizer's part included."""
        theta = self._check(theta)
        total, moment = np.zeros_like(theta), np.zeros_like(theta)
        with _precision(theta.dtype):
            sums = _adapter.Sums(_total)
            for batch, taken in self._batches(theta, held_out, indices):
                terms, gradient = self._gradient(theta, batch, taken)
                sums.add(terms)
                total += np.asarray(gradient)
                if squares:
                    moment += np.asarray(self._squares(theta, batch, taken))
        loss, weight, _ = sums.values()
        return (
            self._regularized_loss(loss, theta, weight),
            weight,
            self._regularized(total, theta, weight),
            moment if squares else None,
        )

    def linearize(self, theta: Array, held_out: bool, indices: Array) -> _adapter.Linearization:
        """The function v -> G v = sum J' H J v + weight * regularization * v, with what it needs at theta kept for all
        products; its attribute `weight` is that of the examples."""
        theta = np.array(self._check(theta))
        sums, parts, kept_bytes = _adapter.Sums(_total), [], 0
        with _precision(theta.dtype):
            for batch, taken in self._batches(theta, held_out, indices):
                linear = self._linearize(theta, batch)
                kept_bytes += sum(x.nbytes for x in jax.tree_util.tree_leaves(linear))
                sums.add(self._terms(theta, batch, taken))
                parts.append((batch, taken, linear if kept_bytes <= self._max_kept_bytes else None))
        weight = sums.values()[1]

        def product(v: Array) -> Array:
            v = self._check(v, theta.dtype)
            total = np.zeros_like(theta)
            with _precision(theta.dtype):
                for batch, taken, linear in parts:
                    total += np.asarray(self._product(linear or self._linearize(theta, batch), batch, taken, v))
            return self._regularized(total, v, weight)

        return _adapter.Linearization(product, weight)

    # Compiled functions of one batch; taken: 1 for its examples, 0 for padding.

    def _compute_terms(self, theta: jax.Array, batch: Any, taken: jax.Array) -> losses.Terms:
        return _masked(self._loss.terms(*self._outputs(theta, batch)), taken)

    def _compute_gradient(self, theta: jax.Array, batch: Any, taken: jax.Array) -> Tuple[losses.Terms, jax.Array]:

        def total(t: jax.Array) -> Tuple[jax.Array, losses.Terms]:
            terms = _masked(self._loss.terms(*self._outputs(t, batch)), taken)
            return terms[0].sum(), terms

        gradient, terms = jax.grad(total, has_aux=True)(theta)
        return terms, gradient

    def _compute_squares(self, theta: jax.Array, batch: Any, taken: jax.Array) -> jax.Array:
        """A scan over examples: n numbers are held, not examples times n."""

        def add(total: jax.Array, example: Any) -> Tuple[jax.Array, None]:
            one, factor = example

            def loss(t: jax.Array) -> Tuple[jax.Array, jax.Array]:
                losses_, weights, _ = self._loss.terms(
                    *self._outputs(t, jax.tree_util.tree_map(lambda x: x[None], one))
                )
                return losses_[0], weights[0]

            gradient, weight = jax.grad(loss, has_aux=True)(theta)
            return total + factor * (gradient + self._regularization * weight * theta) ** 2, None

        return jax.lax.scan(add, jnp.zeros_like(theta), (batch, taken))[0]

    def _compute_linearize(self, theta: jax.Array, batch: Any) -> Any:
        """Outputs, and v -> J v with the activations it needs."""
        return jax.linearize(lambda t: self._outputs(t, batch)[0], theta)

    def _compute_product(self, linear: Any, batch: Any, taken: jax.Array, v: jax.Array) -> jax.Array:
        outputs, push = linear
        targets = None if self._loss.function else batch[1]
        curvature = self._loss.curvature(outputs, targets, push(v))
        curvature = jax.tree_util.tree_map(
            lambda c: jnp.where(taken.reshape((-1,) + (1,) * (c.ndim - 1)) > 0, c, 0), curvature
        )
        return jax.linear_transpose(push, v)(curvature)[0]

    def _outputs(self, theta: jax.Array, batch: Any) -> Tuple[Any, Any]:
        """Outputs and targets."""
        leaves, structure = jax.tree_util.tree_flatten(self._params)
        parts = jnp.split(theta, np.cumsum([leaf.size for leaf in leaves])[:-1])
        params = jax.tree_util.tree_unflatten(
            structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
        )
        if self._loss.function is not None:
            outputs = self._loss.function(lambda *inputs: self._apply(params, *inputs), batch)
        else:
            outputs = self._apply(params, batch[0])
        for leaf in jax.tree_util.tree_leaves(outputs) if theta.dtype == np.float64 else ():
            if leaf.dtype != theta.dtype:
                raise TypeError(
                    f"float64 was asked for, but from parameters and data in float64 the function computes "
                    f"{leaf.dtype}: something in it casts. Take the cast out, or ask for dtype=\"float32\""
                )
        return outputs, None if self._loss.function is not None else batch[1]

    # Pieces.

    def _batches(self, theta: Array, held_out: bool, indices: Array) -> Iterator[Tuple[Any, Array]]:
        """Of few sizes, so that few are compiled: batch_size, and for the rest the smallest half of a half ... that
        holds it. Filled up with copies of the last example, which do not count."""
        indices = _adapter.check_indices(indices, self.num_examples[held_out])
        for part in _adapter.micro_batches(indices, self._batch_size):
            size = self._batch_size
            while size // 2 >= max(len(part), _SMALLEST_BATCH):
                size //= 2
            taken = (np.arange(size) < len(part)).astype(theta.dtype)
            yield self._data[held_out].batch(
                np.concatenate([part, np.repeat(part[-1:], size - len(part))]), theta.dtype
            ), taken

    def _describe(self, frozen: str) -> str:
        shapes = " ".join(
            f"{jax.tree_util.keystr(path)}{leaf.shape}"
            for path, leaf in jax.tree_util.tree_flatten_with_path(self._params)[0]
        )
        first = [x[:2] for data in self._data for x in jax.tree_util.tree_leaves(data.tree)]
        code = _adapter.digest([np.frombuffer((shapes + frozen).encode(), np.uint8)] + first)
        return (
            f"jax {_adapter.describe(self._apply)}, {self.num_parameters} parameters, {_adapter.describe(self._loss)}, "
            f"l2 {self._regularization:g}, {self.num_examples[0]} + {self.num_examples[1]} examples, {code}"
        )


class _Data:
    """A data set in its fixed order."""

    def __init__(self, name: str, data: Any, pair: bool, seed: Optional[int]):
        _adapter.check_data(name, data)
        if pair and not (isinstance(data, (tuple, list)) and len(data) == 2):
            raise TypeError(f"{name} is {type(data).__name__}; give a pair (inputs, targets)")
        self.tree = jax.tree_util.tree_map(np.asarray, tuple(data) if pair else data)
        sizes = sorted({len(x) if x.ndim else 0 for x in jax.tree_util.tree_leaves(self.tree)})
        if len(sizes) != 1:
            raise ValueError(
                f"{name}: arrays of {' and '.join(map(str, sizes))} examples; all need the same first axis"
            )
        self.length = sizes[0]
        if not self.length:
            raise ValueError(f"{name} is empty")
        self.order = np.arange(self.length) if seed is None else shuffled_indices(seed, self.length)

    def batch(self, indices: Array, dtype: np.dtype) -> Any:
        chosen = self.order[indices]
        return jax.tree_util.tree_map(
            lambda x: x[chosen].astype(dtype if np.issubdtype(x.dtype, np.floating) else x.dtype), self.tree
        )


def _masked(terms: losses.Terms, taken: jax.Array) -> losses.Terms:

    def mask(x: jax.Array) -> jax.Array:
        return jnp.where(taken > 0, x, 0)

    return mask(terms[0]), mask(terms[1]), {name: mask(x) for name, x in terms[2].items()}


def _total(terms: jax.Array) -> float:
    return float(np.asarray(terms).sum(dtype=np.float64))


@contextlib.contextmanager
def _precision(dtype: Any) -> Iterator[None]:
    """float64 is computed in float64, whatever jax_enable_x64 says outside."""
    double = np.dtype(dtype) == np.float64
    if double and not _has_float64():
        raise TypeError(
            f"float64 was asked for, but JAX {jax.__version__} on {jax.default_backend()} computes in float32: set "
            "JAX_ENABLE_X64=1 before it is imported, or ask for dtype=\"float32\""
        )
    with _enable_x64(double):
        yield


@functools.lru_cache(maxsize=None)
def _has_float64() -> bool:
    with _enable_x64(True):
        return bool(jnp.ones(1, np.float64).dtype == np.float64)


as_model = JaxModel  # the usual name: the arguments are those of JaxModel
