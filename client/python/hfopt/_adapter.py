"""What the adapters hfopt.torch and hfopt.jax have in common; needs NumPy alone."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

Array = np.ndarray[Any, Any]


class Adapter:
    """What the models of all libraries do with vectors and sums."""

    num_parameters: int
    num_examples: Tuple[int, int]  # training, held out
    signature: str
    _regularization: float

    def _check(self, vector: Array, dtype: Any = None) -> Array:
        vector = np.asarray(vector)
        if vector.shape != (self.num_parameters,):
            raise ValueError(
                f"a vector of shape {vector.shape} for a model of {self.num_parameters} trainable parameters"
            )
        if vector.dtype not in ((np.float32, np.float64) if dtype is None else (dtype,)):
            raise TypeError(f"a vector of {vector.dtype}; give {'float32 or float64' if dtype is None else dtype}")
        return vector

    def _regularized_loss(self, loss: float, theta: Array, weight: float) -> float:
        if not self._regularization:
            return loss
        return loss + 0.5 * self._regularization * weight * float(np.square(theta, dtype=np.float64).sum())

    def _regularized(self, total: Array, vector: Array, weight: float) -> Array:
        """The gradient at `vector`, or the product with it."""
        return total + vector.dtype.type(self._regularization * weight) * vector if self._regularization else total


def check_data(name: str, data: Any) -> None:
    """TypeError for what is no data in any library."""
    if data is None:
        raise TypeError(
            f"{name} is missing; steps are tried on held-out data, so give both: examples beside those of the "
            "training, or, where nothing is held out (least squares, physics-informed networks), the training data "
            "themselves"
        )
    lists = [x for x in data if isinstance(x, list) and x] if isinstance(data, tuple) else []
    if any(isinstance(x[0], (int, float, list)) for x in lists):
        raise TypeError(
            f"{name} holds a list of numbers; give arrays, whose first axis is the examples: numpy.asarray(x)"
        )


class Linearization:
    """v -> G v, and the weight of the examples, None where it is not known."""

    def __init__(self, product: Callable[[Array], Array], weight: Optional[float]):
        self._product, self.weight = product, weight

    def __call__(self, v: Array) -> Array:
        return self._product(v)


class Sums:
    """Sums of terms, made by `total` in double; read only at the end, so that a device need not be waited for."""

    def __init__(self, total: Callable[[Any], Any]):
        self._total = total
        self._parts: List[Tuple[Any, Any, Dict[str, Any]]] = []

    def add(self, terms: Tuple[Any, Any, Dict[str, Any]]) -> None:
        self._parts.append(
            (self._total(terms[0]), self._total(terms[1]), {name: self._total(x) for name, x in terms[2].items()})
        )

    def values(self) -> Tuple[float, float, Dict[str, float]]:
        names = self._parts[0][2] if self._parts else {}
        return (
            sum((float(p[0]) for p in self._parts), 0.0),
            number(sum(float(p[1]) for p in self._parts)),
            {name: sum((float(p[2][name]) for p in self._parts), 0.0) for name in names},
        )


def micro_batches(indices: Array, size: int) -> Iterator[Array]:
    return (indices[i : i + size] for i in range(0, len(indices), size))


def number(weight: float) -> Union[int, float]:
    """Weights are counts unless somebody weighted by fractions."""
    return int(weight) if float(weight).is_integer() else float(weight)


def digest(arrays: Iterable[Array]) -> str:
    """12 hexadecimal digits that tell arrays of other types, shapes or contents apart."""
    code = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        code.update(f"{array.dtype.str}{array.shape}".encode())
        code.update(array.view(np.uint8).data if array.size else b"")
    return code.hexdigest()[:12]


def check_positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; give 1 or more")
    return value


def check_indices(indices: Array, count: int) -> Array:
    """As int64. IndexError when one is not in 0 .. count - 1."""
    indices = np.asarray(indices, dtype=np.int64)
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise IndexError(f"examples {indices.min()} .. {indices.max()} of {count}")
    return indices


def describe(value: object) -> str:
    """A dataclass in words that are the same in every process: a function by its name, not its address."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    return str(getattr(value, "__qualname__", None) or repr(value))
