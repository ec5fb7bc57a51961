"""Which examples a request is about, and the shuffle of a data set: the rules of proto/hfopt/v1/evaluation.proto and
proto/testdata."""
from __future__ import annotations

import numpy as np

from .model import Array


class SplitMix64:
    """Random 64-bit numbers from a seed, the same in every language (Steele, Lea & Flood 2014)."""

    def __init__(self, seed: int):
        self.state = seed

    def next(self) -> int:
        """In 0 .. 2^64 - 1."""
        mask = 2**64 - 1
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def uniform(self) -> float:
        """In [0, 1), of 53 bits."""
        return (self.next() >> 11) * 2.0**-53


def shuffled_indices(seed: int, n: int) -> Array:
    """The numbers 0 .. n - 1, n < 2^32, in an order that depends on the seed alone, as the C++ client has it
    (`ShuffledIndices`): Fisher and Yates, drawn from SplitMix64."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed % 2**64) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        # The upper 64 bits of z (i + 1), from halves of z.
        size, half, low = np.arange(n, 0, -1, dtype=np.uint64), np.uint64(32), np.uint64(0xFFFFFFFF)
        draws = ((z >> half) * size + (((z & low) * size) >> half)) >> half
    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), draws.tolist()):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


def window_indices(examples: int, shard: int, shards: int, begin: int, count: int) -> Array:
    """The `count` examples from position `begin` of a shard on, which wrap round inside it. ValueError for a window
    that is none."""
    if shard >= shards:
        raise ValueError(f"slice: shard {shard} is not one of {shards}")
    lo, hi = shard * examples // shards, (shard + 1) * examples // shards
    if count and (begin >= hi - lo or count > hi - lo):
        raise ValueError(
            f"slice: window of {count} from {begin} does not fit into shard {shard} of {shards}, which has {hi - lo} "
            f"of the {examples} examples; do all workers and the server use the same data?")
    return lo + (begin + np.arange(count)) % max(hi - lo, 1)
