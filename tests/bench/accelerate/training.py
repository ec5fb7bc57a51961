"""Trains variants through the real service and answers their histories."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess


@dataclasses.dataclass(frozen=True)
class Point:
    """The state after an iteration, or where a rival was looked at."""
    seconds: float  # of training
    passes: float
    exchanges: int
    loss: float  # held-out
    whole: bool = True  # on all held-out data
    accepted: bool = True  # the iteration took a step


@dataclasses.dataclass
class Training:
    """What came of one variant and seed."""
    name: str
    seed: int
    points: list  # of Point
    figures: dict  # of the best parameters
    summary: dict | None = None  # of `hfopt train -o json`; None for rivals
    setting: str = ""  # what a search chose
    parameters: pathlib.Path | None = None  # the best, as safetensors

    def first_at(self, loss):
        """The first point whose loss on all held-out data is not above `loss`; None when there is none."""
        return next((p for p in self.points if p.whole and p.loss <= loss), None)

    def best(self):
        """The point of the lowest loss on all held-out data."""
        return min((p for p in self.points if p.whole), key=lambda p: p.loss)

    def iterations(self):
        return self.summary["iterations"] if self.summary else []

    def cost(self):
        return self.iterations()[-1]["cost"]

    def cg_iterations(self):
        return sum(i["cg_iterations"] for i in self.iterations())

    def rejected(self):
        return sum(not i["accepted"] for i in self.iterations())


def points_of(summary):
    """A point for each iteration. While samples are small their losses are of a part of the held-out data; where the last one's is, another point has
    what the best parameters came to on all of them."""
    points, seconds = [], 0.0
    all_held_out = int(summary["run"]["model"]["held_out_examples"])
    for i in summary["iterations"]:
        seconds += i["seconds"]["total"]
        points.append(Point(seconds, i["cost"]["example_passes"], int(i["cost"]["exchanges"]), float(i["held_out_loss"]),
                            int(i["held_out_examples"]) == all_held_out, i["accepted"]))
    if points and not points[-1].whole:
        evaluation = summary["evaluation"]
        loss = evaluation.get("held_out_loss", evaluation.get("held_out_cross_entropy"))
        points.append(dataclasses.replace(points[-1], loss=float(loss), whole=True))
    return points


def converged_at(points, improvement=1e-3, over=3):
    """The first point where the loss fell by less than `improvement`, relative to itself, over the last `over` steps; else the last.

    A rejected iteration is no step: lambda is still being found, and much may follow."""
    steps = [p for p in points if p.accepted]
    for before, here in zip(steps, steps[over:]):
        if before.loss - here.loss < improvement * abs(before.loss):
            return here
    return points[-1]


class Service:
    """Runs `hfopt train`, one directory for each variant; what is done already is not done again when `resume`."""

    def __init__(self, build, work, workers, resume, log, worker_binary=None):
        self.hfopt = build / "client" / "cli" / "hfopt"
        self.server = build / "server" / "hfopt-server"
        self.work = pathlib.Path(work)
        self.workers = workers
        self.resume = resume
        self.log = log
        self.worker_binary = worker_binary

    def train(self, name, task, preset, settings, seed, *, seconds, iterations=None, target=None, data=None, prefix=()):
        workers = 1 if task.deterministic else self.workers
        command = [*prefix, str(self.hfopt), "train", *task.model, "--preset", preset, "--element-type", task.element_type,
                   "--workers", str(workers), "--shards", str(workers), "--seed", str(seed), "--data-seed", str(seed),
                   "--max-wall-seconds", f"{seconds:.6g}", *settings]
        if data:
            command += ["--data", str(data)]
        if self.worker_binary:
            command += ["--worker-binary", self.worker_binary]
        if iterations:
            command += ["--max-iterations", str(iterations)]
        if target is not None:
            command += ["--target-loss", repr(target)]
        key = hashlib.sha256(json.dumps(command[len(prefix) + 1:]).encode()).hexdigest()[:16]
        directory = self.work / key
        result = self.work / f"{key}.json"
        if not (self.resume and result.exists()):
            shutil.rmtree(directory, ignore_errors=True)
            done = subprocess.run(command + ["--dir", str(directory), "--server-binary", str(self.server), "-o", "json"],
                                  capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{name}: {' '.join(command)}\nexit code {done.returncode}:\n{done.stderr[-3000:]}")
            result.write_text(done.stdout)
            parameters = directory / "parameters.safetensors"
            parameters.replace(self.work / f"{key}.safetensors")
            shutil.rmtree(directory, ignore_errors=True)
        summary = json.loads(result.read_text())
        training = Training(name, seed, points_of(summary), summary["evaluation"], summary,
                            parameters=self.work / f"{key}.safetensors")
        last = training.points[-1]
        self.log(f"  {name}, seed {seed}: {len(training.iterations())} iterations, loss {last.loss:.6g}, {last.passes:.1f} passes, "
                 f"{last.seconds:.1f} s, {summary['run']['termination']['reason'].removeprefix('REASON_').lower()}")
        return training
