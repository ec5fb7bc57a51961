"""What a user would pick instead, on the same compiled model, data, initial parameters and core.

Losses, gradients and the steps of SGD and Adam come from hfopt_model_pipe, and L-BFGS-B is SciPy's. Evaluations that only watch are not
charged."""

import importlib
import json
import math
import subprocess
import tempfile
import time

import numpy as np

from training import Point, Training


class Model:
    """loss and gradient of a reference model in a process of its own; its vectors are shared memory."""

    def __init__(self, build, task, seed, data=None, prefix=()):
        self._file = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="hfopt-rival-")
        command = [*prefix, str(build / "tests" / "bench" / "hfopt_model_pipe"), self._file.name, task.element_type,
                   str(seed), *task.model, "--data-seed", str(seed)]
        if data:
            command += ["--data", str(data)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        sizes = json.loads(self._process.stdout.readline())
        self.n, self.examples, self.held_out = (sizes[k] for k in ("parameters", "training_examples", "held_out_examples"))
        memory = np.memmap(self._file.name, dtype=task.element_type, shape=(2, self.n), mode="r+")
        self.theta, self.gradient = memory[0], memory[1]
        self.initial = self.theta.copy()

    def _ask(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("hfopt_model_pipe ended")
        return json.loads(line)

    def _loss(self, command):
        loss = self._ask(command)["loss"]
        return math.nan if loss is None else loss  # JSON has no NaN

    def gradient_of(self, begin, end):
        """The mean loss over these examples; its gradient is in self.gradient."""
        return self._loss(f"gradient {begin} {end}")

    def step(self, method, begin, end, rate):
        """theta after a step with the gradient over these examples."""
        self._ask(f"{method} {begin} {end} {rate!r}")

    def held_out_loss(self):
        return self._loss("loss held-out")

    def figures(self):
        return self._ask("figures")

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._file.close()


class Watch:
    """Times training alone, and looks at the held-out loss at times that grow by a fifth."""

    def __init__(self, model, seconds):
        self.model, self.limit = model, seconds
        self.passes, self.exchanges = 0.0, 0
        self.points, self.best, self.best_theta = [], math.inf, None
        self._spent, self._since, self._next = 0.0, time.perf_counter(), seconds / 500

    def seconds(self):
        return self._spent + time.perf_counter() - self._since

    def after_gradient(self, examples):
        """Books a gradient; False when time is up."""
        self.passes += 3 * examples / self.model.examples
        self.exchanges += 1
        spent = self.seconds()
        if spent >= self._next or spent >= self.limit:
            self._spent = spent
            self.look()
            self._next = max(1.2 * self._next, spent)
            self._since = time.perf_counter()
        return spent < self.limit

    def look(self):
        loss = self.model.held_out_loss()
        self.points.append(Point(self._spent, self.passes, self.exchanges, loss if math.isfinite(loss) else 1e300))
        if loss < self.best:
            self.best, self.best_theta = loss, self.model.theta.copy()


def first_order(method):
    """Mini-batches of consecutive examples (the data is shuffled), their order drawn anew for each epoch. The rate decays to a hundredth over
    the time that there is."""
    def train(model, watch, rate, batch, seed):
        generator = np.random.default_rng(seed)
        begins = np.arange(0, model.examples, batch)
        while True:
            for begin in generator.permutation(begins):
                end = min(begin + batch, model.examples)
                model.step(method, begin, end, rate * 0.01 ** (watch.seconds() / watch.limit))
                if not watch.after_gradient(end - begin):
                    return

    return train


def lbfgs(model, watch, memory, _batch, _seed):
    """SciPy's L-BFGS-B on all data."""
    import scipy.optimize  # by `train` already, so not on its time

    class OutOfTime(Exception):
        pass

    def f(x):
        model.theta[:] = x
        loss = model.gradient_of(0, model.examples)
        if not watch.after_gradient(model.examples):
            raise OutOfTime
        return loss, model.gradient.astype(np.float64)

    x = model.initial.astype(np.float64)
    try:
        while True:  # its line search may give up; it is started again where it stood
            result = scipy.optimize.minimize(f, x, jac=True, method="L-BFGS-B",
                                             options={"maxcor": memory, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0, "gtol": 0})
            if np.array_equal(result.x, x):
                return
            x = result.x
    except OutOfTime:
        pass


def grid_of(name, task):
    if name == "lbfgs":
        return [(f"m = {m}", m, 0) for m in ((50,) if task.deterministic else (20,))]
    rates = {"sgd": (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3), "adam": (3e-4, 1e-3, 3e-3, 0.01)}[name]
    if task.deterministic:
        rates = (1e-3, 4e-3, 1.6e-2)
    batches = (0,) if task.deterministic else (64, 256)
    return [(f"rate {rate:g}, batch {batch or 'all'}", rate, batch) for batch in batches for rate in rates]


METHODS = {"sgd": first_order("sgd"), "adam": first_order("adam"), "lbfgs": lbfgs}
TITLES = {"sgd": "SGD, momentum 0.9", "adam": "Adam", "lbfgs": "L-BFGS-B (SciPy)"}


def train(build, name, task, seed, seconds, data, prefix, log):
    """The best of the rival's grid: each setting gets a sixth of the time, the one with the lowest held-out loss all of it. Where that is
    too long (it overfits), the short training is the answer. ImportError where a library is missing."""
    if name == "lbfgs":
        importlib.import_module("scipy.optimize")

    def attempt(setting, limit):
        text, value, batch = setting
        model = Model(build, task, seed, data, prefix)
        watch = Watch(model, limit)
        METHODS[name](model, watch, value, min(batch or model.examples, model.examples), seed)
        model.theta[:] = watch.best_theta if watch.best_theta is not None else model.initial
        training = Training(TITLES[name], seed, watch.points, model.figures(), setting=text)
        model.close()
        return training

    settings = grid_of(name, task)
    best = lambda training: training.best().loss
    short = {setting: attempt(setting, seconds / 6) for setting in settings} if len(settings) > 1 else {}
    setting = min(short, key=lambda s: best(short[s]), default=settings[0])
    training = min([attempt(setting, seconds), *short.values()], key=best)
    last = training.points[-1]
    log(f"  {training.name} ({training.setting}), seed {seed}: best loss {best(training):.6g}, "
        f"{last.passes:.1f} passes, {last.exchanges} synchronisations, {last.seconds:.1f} s")
    return training
