#!/usr/bin/env python3
"""A physics-informed network (Raissi, Perdikaris & Karniadakis 2019) in PyTorch, on a problem that defeats Adam and
L-BFGS (Krishnapriyan, Gholami, Zhe, Kirby & Mahoney 2021): convection,

    u_t + 30 u_x = 0 for 0 < x < 2 pi, 0 < t < 1,   u(x, 0) = sin x,   u(0, t) = u(2 pi, t);   u = sin(x - 30 t).

    python3 client/python/examples/pinn_convection_torch.py

The same problem as `hfopt train --task pinn-convection` (client/models/pinn.h): a network 2-50-50-50-1 with tanh units
in float64; loss = mean (u_t + 30 u_x)^2 over 900 points + mean (u - sin x)^2 over 128 points at t = 0 + mean (u(0, t) -
u(2 pi, t))^2 over 64 times. The points are dealt into four examples, so that each has its share of every kind and its
loss is such a sum too.
"""

import argparse
import math
import time

import numpy as np
import torch

SPEED = 30.0
EXAMPLES = 4


def points(seed: int = 1) -> dict:
    """Arrays (examples, points, 2) of (x, t): one point in each cell of a 30 x 30 grid, and the middles of intervals on
    the boundary."""
    random = np.random.default_rng(seed)
    cells = np.stack(np.meshgrid(np.arange(30), np.arange(30), indexing="ij"), axis=-1).reshape(-1, 2)
    inside = (cells + random.random((900, 2))) / 30 * [2 * math.pi, 1]
    initial = np.stack([(np.arange(128) + 0.5) / 128 * 2 * math.pi, np.zeros(128)], axis=-1)
    left = np.stack([np.zeros(64), (np.arange(64) + 0.5) / 64], axis=-1)
    deal = lambda p: random.permutation(p).reshape(EXAMPLES, -1, 2)
    return {"inside": deal(inside), "initial": deal(initial), "left": deal(left)}


def network(widths=(50, 50, 50)) -> torch.nn.Module:
    layers, sizes = [], [2, *widths]
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 1)).double()


def initialize(module: torch.nn.Module) -> None:
    """Glorot & Bengio 2010."""
    for layer in module:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


def residuals(u, batch) -> tuple:
    """Residuals whose half squares add up to the loss of each example; u is the network."""
    import hfopt.torch

    examples = len(batch["inside"])
    inside = batch["inside"].reshape(-1, 2)
    direction = torch.tensor([SPEED, 1.0], dtype=inside.dtype, device=inside.device).expand(inside.shape)
    equation = hfopt.torch.derivative_along(u, inside, direction)[1]
    left = batch["left"]
    right = left + torch.tensor([2 * math.pi, 0.0], dtype=left.dtype, device=left.device)
    boundary = u(torch.cat([batch["initial"], left, right], dim=1))[..., 0]
    initial, at_left, at_right = boundary.split([batch["initial"].shape[1], left.shape[1], left.shape[1]], dim=1)
    parts = equation.reshape(examples, -1), initial - torch.sin(batch["initial"][..., 0]), at_left - at_right
    return tuple(math.sqrt(2 / r.shape[1]) * r for r in parts)


def relative_error(module: torch.nn.Module) -> float:
    """|u - u*| / |u*| over a grid of 101 x 101 points."""
    x, t = torch.meshgrid(
        torch.linspace(0, 2 * math.pi, 101, dtype=torch.float64),
        torch.linspace(0, 1, 101, dtype=torch.float64),
        indexing="ij",
    )
    exact = torch.sin(x - SPEED * t)
    with torch.no_grad():
        return float(torch.linalg.norm(module(torch.stack([x, t], dim=-1))[..., 0] - exact) / torch.linalg.norm(exact))


def make_model(module: torch.nn.Module):
    import hfopt.losses
    import hfopt.torch

    data = points()  # also the held-out data: there is no noise, hence nothing to overfit but the choice of points
    return hfopt.torch.as_model(module, hfopt.losses.residuals(residuals), data, data, initialize=initialize)


def main():
    import hfopt
    import hfopt.torch

    parser = argparse.ArgumentParser(description="Solves the convection equation by a physics-informed network.")
    parser.add_argument("--max-seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1, help="of the initial parameters")
    parser.add_argument("--rivals", action="store_true", help="train by Adam and L-BFGS-B as well, for as long")
    flags = parser.parse_args()
    module = network()
    model = make_model(module)
    error = lambda theta: relative_error(hfopt.torch.load(module, theta))
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
