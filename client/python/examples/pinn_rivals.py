"""What Adam and SciPy's L-BFGS-B make of a model from the same start in the same time, with the same compiled loss and
gradient: for pinn_convection_jax.py and pinn_convection_torch.py."""

import time

import numpy as np

RATES = 1e-2, 1e-3, 1e-4  # of Adam: each has the whole time, and the best is told


class OutOfTime(Exception):
    pass


class Objective:
    """The mean loss on all data and its gradient, for `seconds`, and the best theta seen."""

    def __init__(self, model, theta, seconds):
        self._model, self._everything = model, np.arange(model.num_examples[0])
        self.loss, self.theta, self.seconds, self._end = np.inf, theta, 0.0, np.inf
        self(theta)  # compiles
        self._end = time.monotonic() + seconds

    def __call__(self, theta):
        if time.monotonic() > self._end:
            raise OutOfTime
        loss, weight, gradient, _ = self._model.gradient(theta, False, self._everything)
        if loss / weight < self.loss:
            self.loss, self.theta = loss / weight, theta.copy()
        return loss / weight, gradient / weight


def adam(f, theta, rate):
    """Kingma & Ba 2015, with their constants."""
    m, v, step = 0.0, 0.0, 0
    while True:
        step += 1
        _, g = f(theta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta - rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)


def lbfgs(f, theta):
    import scipy.optimize

    scipy.optimize.minimize(f, theta, method="L-BFGS-B", jac=True,
                            options={"maxcor": 50, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0})


def run(method, model, seconds, seed, *arguments):
    theta = model.initial_parameters(seed, np.float64)
    objective, begin = Objective(model, theta, seconds), time.monotonic()
    try:
        method(objective, theta, *arguments)
    except OutOfTime:
        pass
    objective.seconds = time.monotonic() - begin
    return objective


def compare(model, relative_error, result, seed):
    """Prints a table with the result of hfopt.fit for this model and seed, and its rivals in as many seconds."""
    print(f"{'':28} {'seconds':>8} {'loss':>10} {'relative L2 error':>18}")

    def row(name, seconds, loss, theta):
        print(f"{name:28} {seconds:8.0f} {loss:10.2e} {relative_error(theta):18.4f}", flush=True)

    row("hfopt", result.seconds, result.held_out_loss, result.parameters)
    best, rate = min(((run(adam, model, result.seconds, seed, rate), rate) for rate in RATES), key=lambda x: x[0].loss)
    row(f"Adam, best rate {rate:g} of {len(RATES)}", best.seconds, best.loss, best.theta)
    try:
        f = run(lbfgs, model, result.seconds, seed)
    except ImportError:
        print("L-BFGS-B: left out, SciPy is not installed: pip install scipy")
    else:
        row("L-BFGS-B of SciPy, m = 50", f.seconds, f.loss, f.theta)
