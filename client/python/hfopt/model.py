"""What a user implements to have a model trained."""
from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Protocol, Tuple

import numpy as np

Array = np.ndarray[Any, Any]


class Model(Protocol):
    """Losses, gradients and Gauss-Newton products of a model, each a *sum* over the examples asked for, never a mean.

    In all functions
      theta     holds the n parameters: 1-D, read-only, float32 or float64 as the run has it. It lies where it was
                received, perhaps in memory shared with the server, so that it is valid during the call, and for a
                linearization until that is dropped;
      held_out  tells the data set: False is training, True is held-out;
      indices   are the examples' positions in that data set, a 1-D array of int64. The order of a data set is fixed for
                ever: shuffle once if you must (`hfopt.shuffled_indices`).
    Returned vectors have n elements and are sent as they are, without a copy: return a new array each time.

    All functions are pure: equal arguments give equal bits, in any order of calls, on every worker of a run (no
    dropout, no running averages). They are called from one thread, the one that called `fit` or `serve`; meanwhile
    others speak with the server, so a function that holds Python's lock for longer than the run's lease is taken for
    dead. A non-finite loss is an answer: it rejects the step. An exception is an answer too, and stops the run with its
    message. A regulariser r(theta) belongs in the sums as weight * r, its gradient and its curvature likewise.

    Four attributes are optional, and looked up by name:
      has_second_moment: bool       False where `gradient` cannot answer squares (default True)
      has_initial_parameters: bool  False where there is no initial_parameters (default: whether the method is there)
      element_types                 those it can compute in, of "float32" and "float64", first the one that `fit` takes
                                    where nothing else is said (default: both, float32 first)
      weight(held_out, indices)     the weight of these examples, where it is quicker to tell than by `loss`
    `hfopt.check` compares all of these with one another before a run relies on them.
    """

    num_parameters: int  # above 0
    num_examples: Tuple[int, int]  # training, held-out, both above 0; one set may serve as both
    signature: str  # what the model is, for people and for the check that all workers of a run agree

    def loss(self, theta: Array, held_out: bool, indices: Array) -> Tuple[float, float, Dict[str, float]]:
        """Loss sum, weight (number of examples, or of frames), named metric sums such as {"errors": 12.0}."""

    def gradient(self, theta: Array, held_out: bool, indices: Array, squares: bool = False
                 ) -> Tuple[float, float, Array, Optional[Array]]:
        """Loss sum and weight as `loss` has them, gradient sum, and with `squares` the sum of squared per-example
        gradients."""

    def linearize(self, theta: Array, held_out: bool, indices: Array) -> Callable[[Array], Array]:
        """The function v -> sum of J'HJ v at theta, J the Jacobian of the outputs and H the positive semidefinite
        Hessian of the loss with respect to them. It is called many times: keep what depends on theta alone
        (activations, factors). It may have an attribute `weight`, that of the examples."""

    def initial_parameters(self, seed: int, dtype: Any) -> Array:
        """Starting values, a pure function of the seed, in float32 or float64 as `dtype` says."""


def is_model(thing: Any) -> bool:
    return all(
        hasattr(thing, name)
        for name in ("num_parameters", "num_examples", "signature", "loss", "gradient", "linearize"))


def element_types(model: Model) -> Tuple[str, ...]:
    return tuple(np.dtype(t).name for t in getattr(model, "element_types", ("float32", "float64")))


def has_second_moment(model: Model) -> bool:
    return bool(getattr(model, "has_second_moment", True))


def has_initial_parameters(model: Model) -> bool:
    return bool(getattr(model, "has_initial_parameters", hasattr(model, "initial_parameters")))


def weight_of(model: Model, linearization: Callable[[Array], Array], held_out: bool, indices: Array) -> Optional[float]:
    """The weight of a product; None where only `loss` tells it."""
    own = getattr(linearization, "weight", None)
    if own is not None:
        return float(own)
    weight = getattr(model, "weight", None)
    return None if weight is None else float(weight(held_out, indices))
