#!/usr/bin/env python3
"""A physics-informed network in JAX, on the problem of pinn_convection_torch.py, which says what it is:

u_t + 30 u_x = 0 for 0 < x < 2 pi, 0 < t < 1,   u(x, 0) = sin x,   u(0, t) = u(2 pi, t);   u = sin(x - 30 t).

python3 client/python/examples/pinn_convection_jax.py
"""

import argparse
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

SPEED = 30.0
EXAMPLES = 4


def points(seed: int = 1) -> dict:
    """Arrays (examples, points, 2) of (x, t): one point in each cell of a 30 x 30 grid, and the middles of intervals on
    the boundary. Dealt into four examples, so that each has its share of every kind and its loss is such a sum as the
    whole."""
    random = np.random.default_rng(seed)
    cells = np.stack(np.meshgrid(np.arange(30), np.arange(30), indexing="ij"), axis=-1).reshape(-1, 2)
    inside = (cells + random.random((900, 2))) / 30 * [2 * math.pi, 1]
    initial = np.stack([(np.arange(128) + 0.5) / 128 * 2 * math.pi, np.zeros(128)], axis=-1)
    left = np.stack([np.zeros(64), (np.arange(64) + 0.5) / 64], axis=-1)
    deal = lambda p: random.permutation(p).reshape(EXAMPLES, -1, 2)
    return {"inside": deal(inside), "initial": deal(initial), "left": deal(left)}


def initialize(key, widths) -> list:
    """Glorot & Bengio 2010."""
    layers = []
    for inputs, outputs in zip(widths, widths[1:]):
        key, this = jax.random.split(key)
        bound = math.sqrt(6 / (inputs + outputs))
        layers.append((jax.random.uniform(this, (inputs, outputs), minval=-bound, maxval=bound), jnp.zeros(outputs)))
    return layers


def network(params, points):
    for weights, biases in params[:-1]:
        points = jnp.tanh(points @ weights + biases)
    weights, biases = params[-1]
    return (points @ weights + biases)[..., 0]


def residuals(u, batch) -> tuple:
    """Residuals whose half squares add up to the loss of each example; u is the network with its parameters."""
    inside, left = batch["inside"], batch["left"]
    _, equation = jax.jvp(u, (inside,), (jnp.broadcast_to(jnp.array([SPEED, 1.0], inside.dtype), inside.shape),))
    right = left + jnp.array([2 * math.pi, 0.0], left.dtype)
    initial, at_left, at_right = (u(p) for p in (batch["initial"], left, right))
    parts = equation, initial - jnp.sin(batch["initial"][..., 0]), at_left - at_right
    return tuple(math.sqrt(2 / r.shape[1]) * r for r in parts)


def relative_error(params) -> float:
    """|u - u*| / |u*| over a grid of 101 x 101 points."""
    x, t = np.meshgrid(np.linspace(0, 2 * math.pi, 101), np.linspace(0, 1, 101), indexing="ij")
    exact = np.sin(x - SPEED * t)
    values = np.stack([x, t], axis=-1)
    for weights, biases in params[:-1]:
        values = np.tanh(values @ weights + biases)
    weights, biases = params[-1]
    return float(np.linalg.norm((values @ weights + biases)[..., 0] - exact) / np.linalg.norm(exact))


def make_model(widths=(2, 50, 50, 50, 1)):
    import hfopt.jax
    import hfopt.losses

    data = points()  # also the held-out data: there is no noise, hence nothing to overfit but the choice of points
    start = functools.partial(initialize, widths=widths)
    return hfopt.jax.as_model(
        network,
        start(jax.random.PRNGKey(0)),
        hfopt.losses.residuals(residuals),
        data,
        data,
        batch_size=EXAMPLES,
        initialize=start,
    )


def main():
    import hfopt

    parser = argparse.ArgumentParser(description="Solves the convection equation by a physics-informed network.")
    parser.add_argument("--max-seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1, help="of the initial parameters")
    parser.add_argument("--rivals", action="store_true", help="train by Adam and L-BFGS-B as well, for as long")
    flags = parser.parse_args()
    model = make_model()
    error = lambda theta: relative_error(model.unflatten(theta))
    begin, reached = time.process_time(), []

    def watch(report, run):
        if not reached and error(run.parameters()) < 0.02:
            reached.append(time.process_time() - begin)

    result = hfopt.fit(model, preset="deterministic", max_seconds=flags.max_seconds, seed=flags.seed, callbacks=[watch])
    print(
        f"relative L2 error {error(result.parameters):.4f} after {time.process_time() - begin:.0f} s of this "
        "process's CPU"
        + (f", below 2 % after {reached[0]:.0f} s" if reached else "")
    )
    if flags.rivals:
        import pinn_rivals

        pinn_rivals.compare(model, error, result, flags.seed)


if __name__ == "__main__":
    main()
