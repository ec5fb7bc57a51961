#!/usr/bin/python3
"""A worker whose model is nothing but long vectors, for tests/bench/load: f(x) = sum_i d_i (x_i - c_i)^2 / 2 for each
example, with d and c of short periods, so that the answer is known and a number in the wrong place is seen. d has eight
values, so that CG solves it in eight iterations.

    vector_worker.py --build DIR --server HOST:PORT --run ID --parameters N [--chunks]"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PERIOD = 8 * 1009  # of both
BLOCK = 64 * PERIOD


def minimizer(count: int) -> np.ndarray:
    """c, of the first elements; the others repeat them."""
    return (1 + np.arange(count) % 1009).astype(np.float32) / 1009


class Diagonal:
    """In blocks, so that the worker takes little more memory than its answer."""
    num_examples = (10, 10)
    signature = "diagonal"
    element_types = ("float32",)
    has_second_moment = True

    def __init__(self, parameters: int) -> None:
        self.num_parameters = parameters
        self._minimizer = minimizer(BLOCK)
        self._curvature = (0.5 + (np.arange(BLOCK) % 8) / 2).astype(np.float32)

    def loss(self, theta: np.ndarray, held_out: bool, indices: np.ndarray) -> Tuple[float, float, Dict[str, float]]:
        total = 0.0
        for where, d, c in self._blocks():
            total += float((d * (theta[where] - c)**2).sum(dtype=np.float64)) / 2
        return len(indices) * total, float(len(indices)), {}

    def gradient(self,
                 theta: np.ndarray,
                 held_out: bool,
                 indices: np.ndarray,
                 squares: bool = False) -> Tuple[float, float, np.ndarray, Optional[np.ndarray]]:
        loss, weight, _ = self.loss(theta, held_out, indices)
        gradient = np.empty(self.num_parameters, np.float32)
        for where, d, c in self._blocks():
            gradient[where] = np.float32(weight) * d * (theta[where] - c)
        return loss, weight, gradient, gradient**2 / np.float32(weight) if squares else None

    def linearize(self, theta: np.ndarray, held_out: bool, indices: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def product(v: np.ndarray) -> np.ndarray:
            answer = np.empty(self.num_parameters, np.float32)
            for where, d, _ in self._blocks():
                answer[where] = np.float32(len(indices)) * d * v[where]
            return answer

        return product

    def weight(self, held_out: bool, indices: np.ndarray) -> float:
        return float(len(indices))

    def initial_parameters(self, seed: int, dtype: Any) -> np.ndarray:
        return np.zeros(self.num_parameters, dtype)

    def _blocks(self) -> Iterator[Tuple[slice, np.ndarray, np.ndarray]]:
        for begin in range(0, self.num_parameters, BLOCK):
            size = min(BLOCK, self.num_parameters - begin)
            yield slice(begin, begin + size), self._curvature[:size], self._minimizer[:size]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--chunks", action="store_true", help="through gRPC, not in shared memory")
    flags = parser.parse_args()
    sys.path[:0] = [str(flags.build / "python"), str(ROOT / "client/python")]
    import hfopt
    worker = hfopt.Worker(Diagonal(flags.parameters), flags.run, "w", shared_memory=not flags.chunks)
    print(worker.run(flags.server))
    return 0


if __name__ == "__main__":
    sys.exit(main())
