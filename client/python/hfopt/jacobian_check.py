"""Whether a product's Jacobian is that of the gradient, and H that of the loss: `hfopt conformance` has the same in
client/cli/conformance/range_cases.cc, with the reasons."""
from __future__ import annotations

from typing import Callable, List, Optional, Tuple

import numpy as np

from .model import Array

Function = Callable[[Array], Array]


class Pair:
    """delta = g_a / w_a - g_b / w_b and D = G_a / w_a - G_b / w_b of examples a and b: a regulariser, which is
    proportional to the weight, cancels in both. `scale` is how large the parts of the last difference are."""

    def __init__(self, gradients: List[Function], products: List[Function], theta: Array):
        self._gradients, self._products, self._type = gradients, products, theta.dtype
        self.scale = 0.0
        self.delta = self.gradient(theta)
        self.delta_scale = self.scale

    def gradient(self, theta: Array) -> Array:
        """delta at another theta; `gradients` are per weight, as `products` are."""
        return self._difference(self._gradients, theta)

    def product(self, v: Array) -> Array:
        """D v."""
        return self._difference(self._products, v.astype(self._type))

    def _difference(self, functions: List[Function], at: Array) -> Array:
        a, b = (np.asarray(f(at), np.float64) for f in functions)
        self.scale = float(np.linalg.norm(a) + np.linalg.norm(b))
        return a - b


def distance_from_range(apply: Function, start: Array, steps: int, rounding: float,
                        scale: float) -> Tuple[Optional[float], int]:
    """The part of `start` in the null space of a symmetric operator, relative, by Lanczos' iteration, and the dimension
    of its space; None where that is not exhausted in `steps` steps. Below `rounding` * `scale`, all is rounding."""
    steps = min(steps, len(start))
    basis = np.empty((steps, len(start)))
    T = np.zeros((steps + 1, steps + 1))
    q = start / np.linalg.norm(start)
    for k in range(steps):
        basis[k] = q
        y = apply(q)
        T[k, k] = q @ y
        for _ in range(2):
            y -= basis[:k + 1].T @ (basis[:k + 1] @ y)
        length = np.linalg.norm(y)
        if length <= rounding * scale or k + 1 == len(start):
            values, vectors = np.linalg.eigh(T[:k + 1, :k + 1])
            return float(np.linalg.norm(vectors[0, np.abs(values) <= rounding * scale])), k + 1
        T[k, k + 1] = T[k + 1, k] = length
        q = y / length
    return None, steps


def range_error(pairs: List[Pair], steps: int, rounding: float, limit: float) -> float:
    """How far delta is from the range of D, for the pair that is nearest; 0 where that says nothing: D = 0, more than
    `steps` dimensions, or a loss whose Hessian may be singular along its gradient (no part of the parameters has all
    deltas in the range)."""
    outside = []
    for pair in pairs:
        length = np.linalg.norm(pair.delta)
        if not rounding * pair.delta_scale < length < np.inf:
            continue
        first = np.linalg.norm(pair.product(pair.delta / length))
        scale = pair.scale
        if not rounding * scale < first < np.inf:
            continue
        distance, dimension = distance_from_range(pair.product, pair.delta, steps, rounding, scale)
        if distance is not None:
            if distance <= limit:
                return distance
            outside.append((distance, dimension, scale, pair))
    if len(outside) < min(2, len(pairs)) or not outside:
        return 0.0
    n, rank = len(pairs[0].delta), max(dimension for _, dimension, _, _ in outside) - 1
    size = n // 2
    while size > rank + 1:  # of fewer all would be in the range
        for part in slice(n - size, n), slice(0, size):
            if all(_is_in_range(pair, part, steps, rounding, scale, limit) for _, _, scale, pair in outside):
                return min(distance for distance, _, _, _ in outside)
        size //= 2
    return 0.0


def _is_in_range(pair: Pair, part: slice, steps: int, rounding: float, scale: float, limit: float) -> bool:
    """For these parameters alone."""
    def product(v: Array) -> Array:
        whole = np.zeros(len(pair.delta))
        whole[part] = v
        return pair.product(whole)[part]

    if np.linalg.norm(pair.delta[part]) <= rounding * np.linalg.norm(pair.delta):
        return False
    distance, _ = distance_from_range(product, pair.delta[part], steps, rounding, scale)
    return distance is not None and distance <= limit


def is_block_diagonal(halves: Pair, theta: Array, signs: Array, h: float, nothing: float, clearly: float) -> bool:
    """Whether D has no entries between the first and the last parameters, relative to `nothing`, where the second
    derivatives of the loss are, by central differences of steps `h` and `h` / 2, at least `clearly` of the others."""
    n = len(theta)
    size = n // 4
    while size >= 1:
        u, v = np.zeros(n), np.zeros(n)
        first, last = slice(0, size), slice(n - size, n)
        u[first], v[last] = signs[first], signs[last]
        Du = halves.product(u)
        u_scale = halves.scale
        Dv = halves.product(v)
        curved = (np.linalg.norm(Du[first]) > 1e3 * nothing * u_scale
                  and np.linalg.norm(Dv[last]) > 1e3 * nothing * halves.scale)
        if curved and np.linalg.norm(Du[last]) <= nothing * u_scale:
            rough, fine = ((halves.gradient(theta + (s * u).astype(theta.dtype)) -
                            halves.gradient(theta - (s * u).astype(theta.dtype))) / (2 * s) for s in (h, h / 2))
            cross, error = np.linalg.norm(fine[last]), np.linalg.norm((fine - rough)[last])
            if cross > 10 * error and cross > clearly * np.linalg.norm(fine):
                return True
        size //= 4
    return False


def is_fisher(pairs: List[Pair], v: Array, limit: float) -> bool:
    """Whether D is g_a g_a' - g_b g_b' = (s delta' + delta s') / 2 up to a factor, with s = g_a + g_b from D delta."""
    seen = False
    for pair in pairs:
        size = np.linalg.norm(pair.delta)
        if not 0 < size < np.inf:
            continue
        delta = pair.delta / size
        Ddelta = pair.product(delta)
        t = delta @ Ddelta
        if not np.linalg.norm(Ddelta - t * delta) > 1e-2 * pair.scale:
            continue  # D is a multiple of delta delta', which is both
        s = 2 * Ddelta - t * delta
        Dv = pair.product(v)
        if not np.linalg.norm(Dv - (s * (delta @ v) + delta * (s @ v)) / 2) <= limit * np.linalg.norm(Dv):
            return False
        seen = True
    return seen
