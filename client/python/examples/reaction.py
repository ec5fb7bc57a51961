#!/usr/bin/env python3
"""Rate constants of a stiff reaction (Robertson 1966) from noisy measurements, by hfopt.least_squares and beside it by
scipy.optimize.least_squares:

    A -> B,  2 B -> B + C,  B + C -> A + C
    a' = -k1 a + k3 b c,  b' = k1 a - k3 b c - k2 b^2,  c' = k2 b^2;   k = (0.04, 3e7, 1e4),  a(0) = 1

    python3 client/python/examples/reaction.py

The parameters are x = log k: the constants lie nine decades apart, and are positive. The Jacobian comes from the
sensitivities S = dy/dx, which are integrated beside y: S' = (df/dy) S + df/dx.
"""
import argparse
import functools
import time

import numpy as np
import scipy.integrate
import scipy.optimize

import hfopt

TRUTH = np.log([0.04, 3e7, 1e4])
TIMES = np.logspace(-5, 5, 41)  # seconds
SCALE = np.array([1, 3e-5, 1])  # of the concentrations
NOISE = 0.02  # standard deviation of a measurement, in SCALE


@functools.lru_cache(maxsize=2)
def _solve(x: bytes):
    k1, k2, k3 = np.exp(np.frombuffer(x))

    def derivative(_, state):
        a, b, c = state[:3]
        rates = np.array([k1 * a, k2 * b * b, k3 * b * c])
        slopes = np.array([[k1, 0, 0], [0, 2 * k2 * b, 0], [0, k3 * c, k3 * b]])  # of the rates, with respect to y
        mixing = np.array([[-1, 0, 1], [1, -1, -1], [0, 1, 0]])  # what a reaction does to a, b, c
        S = state[3:].reshape(3, 3)
        return np.concatenate([mixing @ rates, (mixing @ (slopes @ S + np.diag(rates))).ravel()])

    start = np.concatenate([[1, 0, 0], np.zeros(9)])
    # LSODA changes between methods for stiff and other stretches by itself.
    solution = scipy.integrate.solve_ivp(derivative, (0, TIMES[-1]), start, "LSODA", TIMES, rtol=1e-8, atol=1e-14)
    if not solution.success:
        raise RuntimeError(f"the reaction cannot be integrated for log k = {np.log([k1, k2, k3])}: {solution.message}")
    return solution.y[:3].T, solution.y[3:].T.reshape(-1, 3, 3)


def solve(x):
    """Concentrations (times, 3) and their sensitivities (times, 3, parameters) at x = log k. The last two x are
    remembered, since residuals and Jacobian are asked for at the same."""
    return _solve(np.asarray(x, np.float64).tobytes())


def measure(seed=1):
    """Measurements (times, 3) with noise."""
    return solve(TRUTH)[0] + NOISE * SCALE * np.random.default_rng(seed).standard_normal((len(TIMES), 3))


def problem(measured):
    """Residuals in units of the noise, and their Jacobian."""
    def residuals(x):
        return ((solve(x)[0] - measured) / (NOISE * SCALE)).ravel()

    def jacobian(x):
        return (solve(x)[1] / (NOISE * SCALE)[:, None]).reshape(-1, 3)

    return residuals, jacobian


def main():
    parser = argparse.ArgumentParser(description="Rate constants of a stiff reaction, by hfopt and by SciPy.")
    parser.add_argument("--off-by", type=float, default=5, help="factor by which the first guess is wrong")
    start = TRUTH + np.log(parser.parse_args().off_by) * np.array([1, -1, 1])
    residuals, jacobian = problem(measure())
    print(hfopt.check(hfopt.numpy.least_squares_model(residuals, start, jacobian)))
    for name, method in ("hfopt", hfopt.least_squares), ("SciPy", scipy.optimize.least_squares):
        _solve.cache_clear()
        begin = time.perf_counter()
        result = method(residuals, start, jacobian, ftol=1e-8)
        seconds = time.perf_counter() - begin
        J = jacobian(result.x)
        errors = np.sqrt(np.diag(np.linalg.inv(J.T @ J)))  # the residuals have variance 1
        print(f"{name}: cost {result.cost:.6f} after {seconds:.2f} s, {_solve.cache_info().misses} integrations; "
              f"{result.message}")
        for number, (x, error, truth) in enumerate(zip(result.x, errors, TRUTH), 1):
            print(f"  k{number} = {np.exp(x):.4g} +- {100 * error:.1f} % (truth {np.exp(truth):.4g})")


if __name__ == "__main__":
    main()
