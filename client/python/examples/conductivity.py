#!/usr/bin/env python3
"""The conductivity of a plate from what sources in it do elsewhere: a PDE-constrained inverse problem with a parameter
for each cell, by hfopt and beside it by scipy.optimize.least_squares.

    python3 client/python/examples/conductivity.py

The potential u_s of source s obeys -div(exp(m) grad u_s) = delta(x - x_s) on the unit square with u_s = 0 on its edge,
and is measured at several places x_r, with noise. To be found is m, as the minimum of

    sum over s of [ sum over r of ((u_s(x_r) - d_rs) / sigma)^2 + beta |grad m|^2 ] / 2

Finite volumes: with differences D between the cells at both sides of a face, the conductivity k of a face is the
harmonic mean 1 / k = W exp(-m) of its cells', and the fields solve A u_s = e_s with A = D' diag(k) D. With dk the
derivative of k along v, and Lambda the solution of A Lambda = P'w (the adjoint equation),

    J v = -P A^-1 D' (dk * D u),    J'w = -exp(-m) * W' (k^2 * (D u) * (D Lambda))

so that a product with J or J' costs one solve a source with the factors of A, however many parameters there are.
"""
import argparse
import time

import numpy as np
import scipy.optimize
import scipy.sparse as sparse
import scipy.sparse.linalg

import hfopt


class Plate:
    """grid x grid cells, with sources and receivers in cells at random. m has a number for each cell, row by row;
    `sources` is an array of numbers of sources in all methods."""

    def __init__(self, grid=48, sources=16, receivers=32, noise=0.01, beta=0.1, seed=1):
        self.grid, self.beta, self.cells = grid, beta, grid * grid
        self.solves = 0  # that were done, each for one source: the work that counts
        self._at = None, None
        steps = sparse.diags([1.0, -1.0], [0, -1], (grid + 1, grid))  # a face before each cell of a row, and one behind
        eye = sparse.identity(grid)
        self.D = sparse.vstack([sparse.kron(steps, eye), sparse.kron(eye, steps)]).tocsr()
        self.W = abs(self.D) / 2
        inner = np.asarray(abs(self.D).sum(axis=1)).ravel() == 2
        self.roughness = self.D[inner]  # |roughness m|^2 is the integral of |grad m|^2: in the plane h drops out
        random = np.random.default_rng(seed)
        places = random.permutation(self.cells)
        self.source_cells, self.receiver_cells = places[:sources], places[sources:sources + receivers]
        exact = self.fields(self.truth(), np.arange(sources))[1][self.receiver_cells]
        self.sigma = noise * np.sqrt(np.mean(exact**2))
        self.measured = exact + self.sigma * random.standard_normal(exact.shape)  # (receivers, sources)

    def truth(self):
        y, x = (np.mgrid[:self.grid, :self.grid] + 0.5) / self.grid
        disc = lambda cx, cy, radius: 1 / (1 + np.exp((np.hypot(x - cx, y - cy) - radius) / 0.02))
        return (1.5 * disc(0.3, 0.35, 0.15) - 1.5 * disc(0.7, 0.6, 0.2)).ravel()

    def fields(self, m, sources):
        """A function loads -> A^-1 loads, and u (cells, sources). Those of the last m are kept: residuals and Jacobian
        are asked for at the same."""
        at = m.tobytes(), sources.tobytes()
        if self._at[0] != at:
            k = 1 / (self.W @ np.exp(-m))
            A = (self.D.T @ sparse.diags(k) @ self.D).tocsc()
            factors = sparse.linalg.splu(A, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
                                         options={"SymmetricMode": True})

            def solve(loads):
                self.solves += loads.shape[1]
                return factors.solve(loads)

            loads = np.zeros((self.cells, len(sources)))
            loads[self.source_cells[sources], np.arange(len(sources))] = 1
            self._at = at, (solve, solve(loads))
        return self._at[1]

    def residuals(self, m, sources):
        """Of measurements (receivers, sources) and then of the regulariser: a vector whose half square is the loss of
        these sources."""
        u = self.fields(m, sources)[1]
        misfit = (u[self.receiver_cells] - self.measured[:, sources]) / self.sigma
        return np.concatenate([misfit.ravel(), np.sqrt(len(sources) * self.beta) * (self.roughness @ m)])

    def jacobian(self, m, sources):
        """Functions v -> J v and w -> J'w of the residuals at m."""
        solve, u = self.fields(m, sources)
        k, s, slopes = 1 / (self.W @ np.exp(-m)), np.exp(-m), self.D @ u
        weight, shape = np.sqrt(len(sources) * self.beta), (len(self.receiver_cells), len(sources))

        def forward(v):
            dk = k**2 * (self.W @ (s * v))
            du = -solve(self.D.T @ (dk[:, None] * slopes))
            return np.concatenate([(du[self.receiver_cells] / self.sigma).ravel(), weight * (self.roughness @ v)])

        def backward(w):
            loads = np.zeros((self.cells, len(sources)))
            loads[self.receiver_cells] = w[:shape[0] * shape[1]].reshape(shape) / self.sigma
            adjoint = self.D @ solve(loads)
            return (-s * (self.W.T @ (k**2 * np.sum(slopes * adjoint, axis=1)))
                    + weight * (self.roughness.T @ w[shape[0] * shape[1]:]))

        return forward, backward

    # As hfopt wants it: sums over examples, which are the sources. They serve as held-out data too, since nothing is to
    # be generalised to: whether a step is good is a question about the objective itself.

    def loss(self, m, held_out, sources):
        r = self.residuals(m, sources)
        return r @ r / 2

    def gradient(self, m, held_out, sources):
        return self.jacobian(m, sources)[1](self.residuals(m, sources))

    def linearize(self, m, held_out, sources):
        forward, backward = self.jacobian(m, sources)
        return lambda v: backward(forward(v))

    def model(self):
        sources = len(self.source_cells)
        return hfopt.numpy.as_model(self.loss, self.gradient, linearize=self.linearize, x0=np.zeros(self.cells),
                                    num_examples=(sources, sources),
                                    signature=f"conductivity of {self.cells} cells, {sources} sources")


class Trace:
    """What it took to get to a cost: pairs of solves and seconds, with the costs."""

    def __init__(self, plate):
        self.plate, self.points, self.begin = plate, [], time.perf_counter()
        plate.solves = 0

    def add(self, cost):
        self.points.append((cost, self.plate.solves, time.perf_counter() - self.begin))

    def until(self, cost):
        return next((f"{solves} solves, {seconds:.1f} s" for c, solves, seconds in self.points if c <= cost), "never")


def solve_by_hfopt(plate, trace):
    sources = len(plate.source_cells)
    result = hfopt.fit(plate.model(), preset="deterministic", progress=False,
                       options={"stop.patience": 5, "stop.min_improvement": 1e-7},
                       callbacks=[lambda report, run: trace.add(report["held_out_loss"] * sources)])  # a mean
    return result.parameters


def solve_by_trust_region(plate, trace):
    """SciPy's method for large problems, with the same products."""
    sources = np.arange(len(plate.source_cells))

    def residuals(m):
        r = plate.residuals(m, sources)
        trace.add(r @ r / 2)
        return r

    def jacobian(m):
        forward, backward = plate.jacobian(m, sources)
        shape = plate.measured.size + plate.roughness.shape[0], plate.cells
        return scipy.sparse.linalg.LinearOperator(shape, dtype=np.float64, matvec=lambda v: forward(v.ravel()),
                                                  rmatvec=lambda w: backward(w.ravel()))

    return scipy.optimize.least_squares(residuals, np.zeros(plate.cells), jacobian, tr_solver="lsmr").x


def solve_by_lbfgs(plate, trace):
    """SciPy's, which needs gradients alone."""
    sources = np.arange(len(plate.source_cells))

    def cost_and_gradient(m):
        cost, gradient = plate.loss(m, False, sources), plate.gradient(m, False, sources)
        trace.add(cost)
        return cost, gradient

    options = {"maxcor": 20, "maxiter": 10000, "maxfun": 10000, "ftol": 1e-9}
    return scipy.optimize.minimize(cost_and_gradient, np.zeros(plate.cells), jac=True, method="L-BFGS-B",
                                   options=options).x


METHODS = {"hfopt": solve_by_hfopt, "SciPy, trf with lsmr": solve_by_trust_region, "SciPy, L-BFGS-B": solve_by_lbfgs}


def main():
    parser = argparse.ArgumentParser(description="The conductivity of a plate, by hfopt and by SciPy.")
    parser.add_argument("--grid", type=int, default=64,
                        help="cells along a side; its square is the number of parameters")
    plate = Plate(parser.parse_args().grid)
    print(hfopt.check(plate.model()))
    truth, traces = plate.truth(), {}
    for name, solve in METHODS.items():
        traces[name] = Trace(plate)
        error = np.linalg.norm(solve(plate, traces[name]) - truth) / np.linalg.norm(truth)
        cost, solves, seconds = traces[name].points[-1]
        print(f"{name}: cost {cost:.4f} after {solves} solves, {seconds:.1f} s; relative error of m {error:.3f}",
              flush=True)
    least = min(cost for trace in traces.values() for cost, _, _ in trace.points)
    for name, trace in traces.items():
        print(f"{name}: to 1 % of the least cost {trace.until(1.01 * least)}; to 0.1 % {trace.until(1.001 * least)}; "
              f"to 0.01 % {trace.until(1.0001 * least)}")


if __name__ == "__main__":
    main()
