"""Losses with their Gauss-Newton curvature, one definition for hfopt.torch and hfopt.jax.

A loss of outputs z and targets t is a sum over examples; the optimizer minimises that sum over the sum of weights. What
stands in the middle of the Gauss-Newton matrix G = J' H J (Schraudolph 2002) is H, the Hessian of the loss with respect
to z: for the losses here it is positive semidefinite, for `ctc` it is the part of the Hessian that is.

The first axis of outputs and targets is the examples. A weighted loss takes a pair (targets, weights); weights have the
shape of the outputs' leading axes, one for each example, frame or element; weight 0 leaves padding out. Losses and
metrics are multiplied by them, and a metric over the sum of weights is its mean.

| loss | outputs | loss of one example | H | weight | metrics |
|---|---|---|---|---|---|
| cross_entropy | logits | -log p[t], p = softmax(z), for each frame | diag(p) - pp' | frames | errors |
| binary_cross_entropy | logits | sum softplus(z) - t z, p = sigmoid(z) | diag(p (1 - p)) | 1 | errors, squared_error |
| squared_error | values | sum (z - t)^2 / 2 | I | 1 | squared_error |
| ctc | logits | -log P(t), over alignments | diag(p) - pp' for each frame | 1 | |
| residuals | r | sum r^2 / 2 | I | 1 | squared_error |
| custom | any | yours | yours | yours | |

The same conventions as those of the C++ models (client/models/mlp.h).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

Array = Any  # a torch.Tensor or a jax.Array
Terms = Tuple[Array, Array, Dict[str, Array]]  # losses, weights, metrics, all of shape (examples,)


class _Torch:
    """The few functions that PyTorch and JAX spell differently."""

    def __init__(self) -> None:
        import torch

        self.softmax, self.log_softmax, self.where = torch.softmax, torch.log_softmax, torch.where
        self.sigmoid, self.softplus = torch.sigmoid, torch.nn.functional.softplus
        self.take = lambda z, index, axis: torch.gather(z, axis, index.unsqueeze(axis)).squeeze(axis)
        self.like = lambda x, z: torch.as_tensor(x, dtype=z.dtype, device=z.device)
        self.index = lambda labels: labels.long()
        self.expand = lambda w, z: w.to(z.dtype).reshape(w.shape + (1,) * (z.ndim - w.ndim)).expand(z.shape)
        self.ones = lambda z: torch.ones(len(z), dtype=z.dtype, device=z.device)

    @staticmethod
    def hessian_product(f: Callable[[Array], Array], z: Any, direction: Any) -> Any:
        import torch

        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in flatten(z)]
            gradient = torch.autograd.grad(f(unflatten(z, leaves)), leaves, create_graph=True)
            inner = sum((g * d).sum() for g, d in zip(gradient, flatten(direction)))
            if not inner.requires_grad:  # a loss that is linear
                return unflatten(z, [torch.zeros_like(x) for x in leaves])
            product = torch.autograd.grad(inner, leaves, allow_unused=True)
        return unflatten(z, [torch.zeros_like(x) if p is None else p for x, p in zip(leaves, product)])


class _Jax:

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        self.softmax, self.log_softmax, self.where = jax.nn.softmax, jax.nn.log_softmax, jnp.where
        self.sigmoid, self.softplus = jax.nn.sigmoid, jax.nn.softplus
        self.take = lambda z, index, axis: jnp.take_along_axis(z, jnp.expand_dims(index, axis), axis).squeeze(axis)
        self.like = lambda x, z: jnp.asarray(x, dtype=z.dtype)
        self.index = lambda labels: labels.astype(int)
        self.expand = lambda w, z: jnp.broadcast_to(
            w.astype(z.dtype).reshape(w.shape + (1,) * (z.ndim - w.ndim)), z.shape
        )
        self.ones = lambda z: jnp.ones(len(z), dtype=z.dtype)

    @staticmethod
    def hessian_product(f: Callable[[Array], Array], z: Any, direction: Any) -> Any:
        import jax

        return jax.jvp(jax.grad(f), (z,), (direction,))[1]


_torch, _jax = functools.lru_cache(None)(_Torch), functools.lru_cache(None)(_Jax)


def _library(array: Array) -> Any:
    torch = sys.modules.get("torch")
    return _torch() if torch is not None and isinstance(array, torch.Tensor) else _jax()


def flatten(tree: Any) -> List[Any]:
    """The arrays of nested tuples, lists and dicts, in order."""
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in flatten(branch)]
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in flatten(branch)]
    return [tree]


def unflatten(tree: Any, leaves: Sequence[Array]) -> Any:
    """`tree` with its arrays replaced by `leaves`."""
    rest = iter(leaves)

    def build(branch: Any) -> Any:
        if isinstance(branch, dict):
            return {key: build(b) for key, b in branch.items()}
        if isinstance(branch, (tuple, list)):
            branches = [build(b) for b in branch]
            return type(branch)(*branches) if hasattr(branch, "_fields") else type(branch)(branches)
        return next(rest)

    return build(tree)


def _rows(x: Array) -> Array:
    """Sums over all axes but the first."""
    return x.reshape(x.shape[0], -1).sum(1)


class Loss:
    """What an adapter needs of a loss. All methods are pure, and `terms` can be differentiated with respect to the
    outputs."""

    def terms(self, outputs: Any, targets: Any) -> Terms:
        """For each example, shape (examples,): losses, weights, {metric: values}."""
        raise NotImplementedError

    def curvature(self, outputs: Any, targets: Any, direction: Any) -> Any:
        """H `direction`, all of the outputs' shape."""
        raise NotImplementedError

    @property
    def function(self) -> Optional[Callable[..., Any]]:
        """For `residuals`, the function that computes the outputs from (network, batch); None for losses of a network's
        outputs."""
        return None


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """Made by `cross_entropy`, which says what the fields are."""

    ignore_index: int
    weighted: bool
    class_weights: Optional[Tuple[float, ...]]
    axis: int

    def _parts(self, outputs: Array, targets: Any) -> Tuple[Array, Array]:
        """Labels that can be looked up, weights of the frames."""
        library = _library(outputs)
        labels, weights = targets if self.weighted else (targets, None)
        expected = outputs.shape[: self.axis % outputs.ndim] + outputs.shape[self.axis % outputs.ndim + 1 :]
        if labels.shape != expected:
            raise ValueError(
                f"cross_entropy: outputs {tuple(outputs.shape)} with classes on axis {self.axis} need labels of shape "
                f"{tuple(expected)}, not {tuple(labels.shape)}"
            )
        labels, taken = library.index(labels), labels != self.ignore_index
        labels = library.where(taken, labels, 0 * labels)
        frames = library.like(taken, outputs)
        if self.class_weights is not None:
            frames = frames * library.like(self.class_weights, outputs)[labels]
        return labels, frames if weights is None else frames * library.expand(weights, frames)

    def terms(self, outputs: Array, targets: Any) -> Terms:
        library = _library(outputs)
        labels, frames = self._parts(outputs, targets)
        losses = -library.take(library.log_softmax(outputs, self.axis), labels, self.axis)
        errors = library.like(outputs.argmax(self.axis) != labels, outputs)
        return _rows(frames * losses), _rows(frames), {"errors": _rows(frames * errors)}

    def curvature(self, outputs: Array, targets: Any, direction: Array) -> Array:
        library = _library(outputs)
        p, frames = library.softmax(outputs, self.axis), self._parts(outputs, targets)[1]
        product = p * direction
        product = product - p * product.sum(self.axis, keepdims=True)
        axis = self.axis % outputs.ndim
        return product * frames.reshape(frames.shape[:axis] + (1,) + frames.shape[axis:])


@dataclasses.dataclass(frozen=True)
class _Elementwise(Loss):
    """A sum over elements."""

    mean: bool
    weighted: bool

    def _parts(self, outputs: Array, targets: Any) -> Tuple[Array, Array, Array]:
        """Targets, factors of the elements, weights of the examples."""
        library = _library(outputs)
        targets, weights = targets if self.weighted else (targets, None)
        if targets.shape != outputs.shape:
            raise ValueError(
                f"{type(self).__name__}: outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}; "
                "make them equal, since broadcasting is seldom meant"
            )
        size = 1
        for n in outputs.shape[1:]:
            size *= n
        scale = 1 / max(size, 1) if self.mean else 1.0
        if weights is None:
            return library.like(targets, outputs), library.like(scale, outputs), library.ones(outputs)
        return (
            library.like(targets, outputs),
            scale * library.expand(weights, outputs),
            _rows(library.like(weights, outputs)),
        )


class BinaryCrossEntropy(_Elementwise):
    """Made by `binary_cross_entropy`."""

    def terms(self, outputs: Array, targets: Any) -> Terms:
        library = _library(outputs)
        targets, factors, weights = self._parts(outputs, targets)
        losses = library.softplus(outputs) - targets * outputs
        wrong = library.like((outputs > 0) != (targets > 0.5), outputs)
        difference = library.sigmoid(outputs) - targets
        return (
            _rows(factors * losses),
            weights,
            {"errors": _rows(factors * wrong), "squared_error": _rows(factors * difference * difference)},
        )

    def curvature(self, outputs: Array, targets: Any, direction: Array) -> Array:
        p = _library(outputs).sigmoid(outputs)
        return self._parts(outputs, targets)[1] * p * (1 - p) * direction


class SquaredError(_Elementwise):
    """Made by `squared_error`."""

    def terms(self, outputs: Array, targets: Any) -> Terms:
        targets, factors, weights = self._parts(outputs, targets)
        squares = _rows(factors * (outputs - targets) * (outputs - targets))
        return squares / 2, weights, {"squared_error": squares}

    def curvature(self, outputs: Array, targets: Any, direction: Array) -> Array:
        return self._parts(outputs, targets)[1] * direction


@dataclasses.dataclass(frozen=True)
class Residuals(Loss):
    """Made by `residuals`."""

    of: Callable[..., Any]

    @property
    def function(self) -> Callable[..., Any]:
        return self.of

    def terms(self, outputs: Any, targets: Any) -> Terms:
        squares = sum(_rows(r * r) for r in flatten(outputs))
        return squares / 2, _library(squares).ones(squares), {"squared_error": squares}

    def curvature(self, outputs: Any, targets: Any, direction: Any) -> Any:
        return direction


@dataclasses.dataclass(frozen=True)
class Custom(Loss):
    """Made by `custom`."""

    value: Callable[..., Any]
    product: Union[Callable[..., Any], str]

    def terms(self, outputs: Any, targets: Any) -> Terms:
        result = self.value(outputs, targets)
        losses, weights, metrics = (tuple(result) + ({},))[:3] if isinstance(result, tuple) else (result, None, {})
        examples = flatten(outputs)[0].shape[0]
        if tuple(losses.shape) != (examples,):
            raise ValueError(
                f"the loss has shape {tuple(losses.shape)}; give one value for each of the {examples} examples "
                "(of a PyTorch criterion: reduction='none', then a sum over all axes but the first)"
            )
        return losses, _library(losses).ones(losses) if weights is None else weights, metrics

    def curvature(self, outputs: Any, targets: Any, direction: Any) -> Any:
        if callable(self.product):
            return self.product(outputs, targets, direction)
        return _library(flatten(outputs)[0]).hessian_product(
            lambda z: self.terms(z, targets)[0].sum(), outputs, direction
        )


@dataclasses.dataclass(frozen=True)
class Ctc(Loss):
    """Made by `ctc`."""

    blank: int

    def _parts(self, outputs: Array, targets: Any) -> Tuple[Array, Array, Array]:
        labels, input_lengths, target_lengths = targets
        if outputs.ndim != 3:
            raise ValueError(f"ctc: outputs of shape {tuple(outputs.shape)}; give (examples, frames, classes)")
        return labels, input_lengths, target_lengths

    def terms(self, outputs: Array, targets: Any) -> Terms:
        library = _library(outputs)
        if isinstance(library, _Jax):
            raise NotImplementedError(
                "ctc is for PyTorch; with JAX use hfopt.losses.custom with a CTC loss of your library and "
                "curvature=hfopt.losses.ctc().curvature"
            )
        import torch

        labels, input_lengths, target_lengths = self._parts(outputs, targets)
        # On the CPU: on a GPU its gradient differs from call to call.
        p, labels, input_lengths, target_lengths = (
            x.cpu() for x in (library.log_softmax(outputs, -1).transpose(0, 1), labels, input_lengths, target_lengths)
        )
        losses = torch.nn.functional.ctc_loss(
            p, labels, input_lengths, target_lengths, blank=self.blank, reduction="none"
        )
        return losses.to(outputs.device), library.ones(outputs), {}

    def curvature(self, outputs: Array, targets: Any, direction: Array) -> Array:
        library = _library(outputs)
        p, lengths = library.softmax(outputs, -1), self._parts(outputs, targets)[1]
        product = p * direction
        product = product - p * product.sum(-1, keepdims=True)
        frame = library.ones(outputs[0]).cumsum(0) - 1
        return product * library.like(frame[None, :] < lengths[:, None], outputs)[:, :, None]


def cross_entropy(
    *, ignore_index: int = -100, weighted: bool = False, class_weights: Optional[Sequence[float]] = None, axis: int = -1
) -> Loss:
    """Softmax cross-entropy of logits against integer labels, which have the outputs' shape without the `axis` of the
    classes.

    Frames whose label is `ignore_index` count for nothing. weighted: targets are (labels, weights), see the module's
    page. class_weights: the loss of a frame times that of its label, which also is its weight (as in
    torch.nn.CrossEntropyLoss).
    """
    return CrossEntropy(
        ignore_index, weighted, None if class_weights is None else tuple(float(w) for w in class_weights), axis
    )


def binary_cross_entropy(*, mean: bool = False, weighted: bool = False) -> Loss:
    """Cross-entropy of logits against probabilities in [0, 1] of the same shape. mean: over an example's elements,
    instead of the sum."""
    return BinaryCrossEntropy(mean, weighted)


def squared_error(*, mean: bool = False, weighted: bool = False) -> Loss:
    """Half the sum of squared differences, (z - t)^2 / 2. mean: half the mean over an example's elements (so
    torch.nn.MSELoss is twice this)."""
    return SquaredError(mean, weighted)


def ctc(*, blank: int = 0) -> Loss:
    """Connectionist temporal classification (Graves, Fernandez, Gomez & Schmidhuber 2006); weight 1 for an utterance.
    PyTorch only.

    Outputs: logits or log-probabilities, (examples, frames, classes). Targets: (labels (examples, length), input
    lengths, target lengths), as of torch.nn.functional.ctc_loss. With p = softmax(z) the loss is

        sum_t log sum_k exp z_tk - log sum_{alignments a} exp sum_t z_{t, a_t},

    a convex less a convex function of z. Gauss-Newton takes the first: H = diag(p_t) - p_t p_t' for each frame t <
    input length. That is what is left of the Hessian when the posteriors of the alignments are held fixed, so H is at
    least the Hessian: as a model of the loss it never promises too much. An utterance with no alignment (too few
    frames) has infinite loss: drop it. It is computed on the CPU wherever the outputs are.
    """
    return Ctc(blank)


def residuals(function: Callable[..., Any]) -> Loss:
    """Nonlinear least squares, sum r^2 / 2, with G = J' J exactly.

    function(network, batch) -> r, an array (or tuple of arrays) whose first axis is the examples of the batch;
    `network` is the module or apply function with parameters in place, to be called as often as you like, and
    differentiated with respect to its inputs, as a physics-informed network needs. Weights go into r: r = sqrt(c) f has
    the loss c f^2 / 2."""
    return Residuals(function)


def custom(value: Callable[..., Any], curvature: Union[Callable[..., Any], str]) -> Loss:
    """Your own loss.

    value(outputs, targets) -> losses, shape (examples,), or (losses, weights), or (losses, weights, {metric: values}),
    all of that shape. curvature(outputs, targets, direction) -> H direction, of the outputs' shape, for the sum of the
    losses; or "hessian": the Hessian of `value` by automatic differentiation, right only where `value` is convex in the
    outputs."""
    if not callable(value):
        raise TypeError(f"value is {value!r}; give a function of (outputs, targets)")
    if not callable(curvature) and curvature != "hessian":
        raise TypeError(
            f'curvature is {curvature!r}; give a function of (outputs, targets, direction), or "hessian" if the loss '
            'is convex '
            "in the outputs"
        )
    return Custom(value, curvature)


def as_loss(loss: Any, curvature: Union[Callable[..., Any], str, None] = None) -> Loss:
    """`loss` if it is of this module (or names one: cross_entropy means cross_entropy()); what it means if it is a
    criterion of torch.nn, or the class of one; else custom(loss, curvature). The criteria's means are taken over all
    elements of a data set, where PyTorch takes them over each minibatch."""
    torch = sys.modules.get("torch")
    makers: Dict[Any, Any] = {
        CrossEntropy: cross_entropy,
        BinaryCrossEntropy: binary_cross_entropy,
        SquaredError: squared_error,
        Ctc: ctc,
    }
    for kind, make in makers.items():
        if loss is kind or loss is make:
            loss = make()
    if torch is not None and isinstance(loss, type) and issubclass(loss, torch.nn.modules.loss._Loss):
        loss = loss()
    if isinstance(loss, Loss):
        if curvature is not None:
            raise ValueError(f"{type(loss).__name__} brings its own curvature; leave output_curvature out")
        return loss
    if torch is not None and isinstance(loss, torch.nn.Module) and curvature is None:
        return _of_criterion(loss)
    if callable(loss) and not isinstance(loss, type):
        if curvature is None:
            raise ValueError(
                'a loss of your own needs output_curvature: a function of (outputs, targets, direction), or "hessian" '
                "if it is convex in the outputs; or use one of hfopt.losses"
            )
        return custom(loss, curvature)
    raise TypeError(
        f"loss is {loss!r}; give one of hfopt.losses, a criterion of torch.nn, or a function of (outputs, targets)"
    )


def _of_criterion(criterion: Any) -> Loss:
    import torch

    name = type(criterion).__name__
    if getattr(criterion, "reduction", "mean") == "none":
        raise ValueError(f"{name}(reduction='none') is no loss but a vector; use reduction='mean'")
    if type(criterion) is torch.nn.CrossEntropyLoss and not getattr(criterion, "label_smoothing", 0):
        weights = None if criterion.weight is None else criterion.weight.tolist()
        return cross_entropy(ignore_index=criterion.ignore_index, class_weights=weights, axis=1)
    if type(criterion) is torch.nn.MSELoss:
        return custom(_mean_squares, _mean_squares_curvature)
    if type(criterion) is torch.nn.BCEWithLogitsLoss and criterion.weight is None and criterion.pos_weight is None:
        return binary_cross_entropy(mean=True)
    raise ValueError(
        f"{name} with these options has no counterpart: use one of hfopt.losses (cross_entropy, binary_cross_entropy, "
        "squared_error, ctc, residuals), or a function and its output_curvature"
    )


def _mean_squares(outputs: Array, targets: Array) -> Terms:
    losses, weights, metrics = SquaredError(True, False).terms(outputs, targets)
    return 2 * losses, weights, metrics


def _mean_squares_curvature(outputs: Array, targets: Array, direction: Array) -> Array:
    return 2 * SquaredError(True, False).curvature(outputs, targets, direction)
