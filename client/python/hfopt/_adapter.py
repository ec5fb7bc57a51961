"""What the adapters hfopt.torch and hfopt.jax have in common; needs NumPy alone."""
from __future__ import annotations

import dataclasses
import hashlib
from typing import Iterable, Iterator, Union

import numpy as np


def shuffled_indices(seed: int, n: int) -> np.ndarray:
    """0 .. n - 1 in the order of proto/testdata/shuffle.json: Fisher and Yates, drawn from SplitMix64. The same on every machine and in
    every language, so that all workers of a run agree on the examples' order."""
    size = np.arange(n, 1, -1, dtype=np.uint64)  # the i-th draw is from 0 .. size[i] - 1
    with np.errstate(over="ignore"):
        z = np.uint64(seed % 2**64) + np.arange(1, len(size) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        half, low = np.uint64(32), np.uint64(0xFFFFFFFF)  # the upper 64 bits of z size, from halves of z; size < 2^32
        draws = ((z >> half) * size + (((z & low) * size) >> half)) >> half
    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), draws.tolist()):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


def micro_batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[i:i + size] for i in range(0, len(indices), size))


def number(weight: float) -> Union[int, float]:
    """Weights are counts unless somebody weighted by fractions."""
    return int(weight) if float(weight).is_integer() else float(weight)


def digest(arrays: Iterable[np.ndarray]) -> str:
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


def check_indices(indices: np.ndarray, count: int) -> np.ndarray:
    """As int64. IndexError when one is not in 0 .. count - 1."""
    indices = np.asarray(indices, dtype=np.int64)
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise IndexError(f"examples {indices.min()} .. {indices.max()} of {count}")
    return indices


def describe(value: object) -> str:
    """A dataclass in words that are the same in every process: a function by its name, not its address."""
    if dataclasses.is_dataclass(value):
        fields = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    return getattr(value, "__qualname__", None) or repr(value)
