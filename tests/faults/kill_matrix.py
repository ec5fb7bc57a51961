#!/usr/bin/python3
"""The kill matrix: who is hit, at which place, and how. Every cell is a training of its own that has to end with the bits of an undisturbed one.

    tests/faults/run [--only PATTERN] [--list] [--fast]
"""
from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Set

from cluster import LARGE, LEASE_SECONDS, SMALL, WORKERS, Cluster, Disk, Failure, Model, Process, Result, await_condition

ATTACH_FAILS = "worker.attach=error"  # vectors go in chunks then


@dataclass(frozen=True)
class Place:
    """A moment of a training, as the server and as a worker passes it: failpoint@passage, in the second iteration where there is a choice."""
    name: str
    server: str
    worker: str = ""  # "": only the server passes it; workers are hit while it is held there
    chunks: bool = False  # vectors go through gRPC, not through shared memory


PLACES = (
    Place("before-answer", "evaluation.dispatch@31", "worker.answer@12"),
    Place("upload-chunks", "session.receive_chunk@67", "worker.send_chunk@22", chunks=True),
    Place("upload-shared", "session.receive_slot@25", "worker.send_slot@9"),
    Place("uploaded-chunks", "session.answer@37", "worker.uploaded@12", chunks=True),
    Place("uploaded-shared", "session.answer@37", "worker.uploaded@12"),
    Place("gradient", "evaluation.gradient@4", "worker.gradient@2"),
    Place("cg-solve", "evaluation.product@22", "worker.product@8"),
    Place("backtracking", "evaluation.backtracking@2", "worker.backtracking@2"),
    Place("line-search", "evaluation.line_search@2", "worker.line_search@2"),
    Place("checkpoint-write", "file.write@5"),
    Place("checkpoint-rename", "checkpoint.rename@3"),
)
VICTIMS = ("server", "worker", "workers", "server+workers")

# The failpoints that are no place above: what passes them crashes there.
OTHER_POINTS = {
    "session.hello": "server@2",
    "session.send_chunk": "server@8",
    "session.send_slot": "server@4",
    "run.report": "server@2",
    "run.checkpoint": "server@2",
    "run.published": "server@2",
    "run.end": "server@1",
    "catalogue.write": "server@9",
    "checkpoint.best": "server@2",
    "checkpoint.rename_best": "server@2",
    "checkpoint.sync": "server@3",
    "checkpoint.prune": "server@3",
    "file.sync": "server@3",
    "worker.hello": "a@1",
    "worker.welcome": "a@1",
    "worker.attach": "a@2",
    "worker.receive_chunk": "a@5",
    "worker.receive_slot": "a@4",
    "worker.request": "a@12",
    "worker.initial_parameters": "a@1",
    "worker.answered": "a@12",
    "worker.finished": "a@1",
}


@dataclass
class Cell:
    name: str
    model: Model
    rules: Dict[str, str]  # process -> failpoints
    disturb: Callable[[Cluster], None]
    expected: Dict[str, str] = field(default_factory=dict)  # process -> the failpoint that has to act in it
    own_disk: bool = False


def rule(point: str, action: str) -> str:
    """"x@3", "crash" -> "x=crash@3"."""
    name, _, passage = point.partition("@")
    return f"{name}={action}@{passage}"


def armed(chunks: bool, rules: Dict[str, str]) -> Dict[str, str]:
    """With every worker's vectors going through gRPC if wanted."""
    if not chunks:
        return rules
    return {**rules, **{name: ";".join(filter(None, (ATTACH_FAILS, rules.get(name, "")))) for name in WORKERS}}


def outlast_lease(since: float) -> None:
    """A stopped server can be seen doing nothing; what is waited for is the time after which it has to think its workers lost."""
    await_condition("the lease is over", lambda: time.monotonic() > since + 1.2 * LEASE_SECONDS)


def resume(processes: List[Process]) -> None:
    for process in processes:
        process.signal(signal.SIGCONT)


def kill_cell(victim: str, place: Place) -> Cell:
    on_server = victim.startswith("server") or not place.worker
    trigger = "server" if on_server else "a"
    point = place.server if on_server else place.worker
    held = on_server and not victim.startswith("server")  # the server only marks the moment

    def disturb(cluster: Cluster) -> None:
        process = cluster.processes[trigger]
        if held:
            await_condition(f"{trigger} stops at {point}", process.is_stopped)
        else:
            await_condition(f"{trigger} crashes at {point}", process.was_killed)
        if victim == "worker":
            cluster.processes["a"].kill()
        elif victim.endswith("workers"):
            for worker in cluster.workers:
                worker.kill()
        if held:
            resume([process])
        cluster.restart_killed()

    rules = armed(place.chunks, {trigger: rule(point, "stop" if held else "crash")})
    return Cell(f"kill/{victim}/{place.name}", LARGE if place.chunks else SMALL, rules, disturb, {trigger: point.partition("@")[0]})


def stop_cell(victim: str, place: Place) -> Cell:
    on_server = victim.startswith("server") or not place.worker
    trigger = "server" if on_server else "a"
    point = place.server if on_server else place.worker

    def disturb(cluster: Cluster) -> None:
        await_condition(f"{trigger} stops at {point}", cluster.processes[trigger].is_stopped)
        since = time.monotonic()
        stopped = {"server": [], "worker": cluster.workers[:1]}.get(victim, cluster.workers)
        for worker in stopped:
            worker.stop()
        if victim.startswith("server"):
            outlast_lease(since)
        resume([cluster.server])
        if len(stopped) == 1:
            before = cluster.iteration()
            await_condition("the others finish an iteration", lambda: cluster.iteration() > before)
        elif stopped:
            await_condition("the run waits for workers", cluster.is_waiting_for_workers)
        resume(stopped)

    rules = armed(place.chunks, {trigger: rule(point, "stop")})
    return Cell(f"stop/{victim}/{place.name}", LARGE if place.chunks else SMALL, rules, disturb, {trigger: point.partition("@")[0]})


def point_cell(point: str, where: str) -> Cell:
    process, _, passage = where.partition("@")
    chunks = point.endswith("_chunk")
    rules = armed(chunks, {process: f"{point}=crash@{passage}"})
    return Cell(f"point/{point}", LARGE if chunks else SMALL, rules, lambda cluster: None, {process: point})


def full_disk(cluster: Cluster) -> None:
    """Nothing more can be written after the first iteration. The run says so, and which directory, and waits with what it has computed."""
    await_condition("the server stops after the first iteration", cluster.server.is_stopped)
    cluster.disk.fill()
    resume([cluster.server])
    detail = cluster.await_detail("waiting for space").state_detail
    if str(cluster.state) not in detail or "(0 bytes free)" not in detail:
        raise Failure(f"directory and space are not in: {detail}")


def full_disk_emptied(cluster: Cluster) -> None:
    full_disk(cluster)
    cluster.disk.empty()


def full_disk_and_kill(cluster: Cluster) -> None:
    full_disk(cluster)
    cluster.server.kill()
    cluster.disk.empty()
    cluster.restart_killed()


def read_only(cluster: Cluster) -> None:
    """The directory of the run cannot be written. That is an error for a person; then the run is resumed."""
    await_condition("the server stops after the first iteration", cluster.server.is_stopped)
    run = str(cluster.state / "runs/r")
    cluster.disk.run("mount", "--bind", run, run)
    cluster.disk.run("mount", "-o", "remount,bind,ro", run)
    resume([cluster.server])
    detail = cluster.await_detail("cannot save the checkpoint of iteration 2").state_detail
    if run not in detail or "Read-only file system" not in detail:
        raise Failure(f"directory and reason are not in: {detail}")
    cluster.disk.run("umount", run)
    cluster.work_was_lost = True
    cluster.resume()


STORAGE = {"full-disk": full_disk_emptied, "full-disk-and-kill": full_disk_and_kill, "read-only": read_only}


def storage_cell(name: str) -> Cell:
    return Cell(f"storage/{name}", SMALL, {"server": "run.published=stop@1"}, STORAGE[name], {"server": "run.published"}, own_disk=True)


def all_cells() -> List[Cell]:
    cells = [kill_cell(victim, place) for place in PLACES for victim in VICTIMS]
    cells += [stop_cell(victim, place) for place in PLACES for victim in VICTIMS]
    cells += [point_cell(point, where) for point, where in OTHER_POINTS.items()]
    return cells + [storage_cell(name) for name in STORAGE]


FAST = ("kill/server/checkpoint-rename", "kill/worker/uploaded-shared", "kill/workers/line-search", "kill/server+workers/upload-chunks",
        "stop/worker/cg-solve", "stop/server/gradient")


class Matrix:
    def __init__(self, build: Path, scratch: Path) -> None:
        self.build, self.scratch = build, scratch
        self.references: Dict[Model, Result] = {}
        self.acted: Set[str] = set()
        self.lost = 0

    def train(self, cell: Cell) -> Result:
        directory = Path(tempfile.mkdtemp(prefix="cell-", dir=self.scratch))
        with Cluster(self.build, directory, cell.model, cell.rules, cell.own_disk) as cluster:
            try:
                cluster.begin()
                cell.disturb(cluster)
                result = cluster.finish()
            except Failure as failure:
                logs = "".join(f"\n--- {p.log.name}\n{p.output()}" for p in cluster.history)
                raise Failure(f"{failure}{logs}") from failure
            acted = {p.name: set(p.passed_failpoints()) for p in cluster.history if p.passed_failpoints()}
            self.acted.update(*acted.values())
            for process, point in cell.expected.items():
                if point not in acted.get(process, ()):
                    raise Failure(f"{point} was never passed by {process}")
            if cluster.server_restarts or cluster.work_was_lost:
                result.answers = -1  # they are counted from the server's start, or more than once
        shutil.rmtree(directory)
        return result

    def reference(self, model: Model) -> Result:
        if model not in self.references:
            self.references[model] = self.train(Cell("undisturbed", model, {}, lambda cluster: None))
        return self.references[model]

    def check(self, cell: Cell) -> None:
        """Raises a Failure that says what differs from the undisturbed training."""
        undisturbed = self.reference(cell.model)
        result = self.train(cell)
        lost = [i for i, report in result.seen.items() if result.final.get(i) != report]
        self.lost += len(lost)
        if lost:
            raise Failure(f"iterations {lost} were told to a watcher and done again")
        if len(result.seen) != len(undisturbed.reports):
            raise Failure(f"a watcher was told of iterations {sorted(result.seen)}")
        if result.parameters != undisturbed.parameters:
            raise Failure("the parameters differ")
        if result.reports != undisturbed.reports:
            raise Failure("the reports differ: losses, damping, or the evaluations counted")
        if (result.best, result.best_iteration) != (undisturbed.best, undisturbed.best_iteration):
            raise Failure(f"the best is iteration {result.best_iteration}, {result.best}")
        # Every evaluation was taken once: answers that the server has accepted, over all workers.
        if result.answers not in (-1, undisturbed.answers):
            raise Failure(f"{result.answers} answers were accepted where {undisturbed.answers} were asked for")

    def coverage(self) -> None:
        """Undisturbed trainings, through shared memory and through gRPC, in which every failpoint says that it was passed."""
        rules = {name: "*=print@1" for name in ("server", *WORKERS)}
        for chunks in (False, True):
            self.train(Cell("coverage", LARGE if chunks else SMALL, armed(chunks, rules), lambda cluster: None))
        self.require_all_points()

    def require_all_points(self) -> None:
        listed = subprocess.run([str(self.build / "tests/faults/hfopt_list_failpoints")], check=True, capture_output=True, text=True)
        missing = {line.split("\t")[0] for line in listed.stdout.splitlines()} - self.acted
        if missing:
            raise Failure(f"listed failpoints that nothing passes: {', '.join(sorted(missing))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="build folder with failpoints")
    parser.add_argument("--only", metavar="PATTERN", help="cells whose name has this regular expression")
    parser.add_argument("--list", action="store_true", help="print the names of the cells and end")
    parser.add_argument("--fast", action="store_true", help="a few cells, and one that passes every failpoint")
    flags = parser.parse_args()
    sys.path.insert(0, str(flags.build / "python"))

    cells = [cell for cell in all_cells()
             if (not flags.fast or cell.name in FAST) and (flags.only is None or re.search(flags.only, cell.name))]
    if flags.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    if any(cell.own_disk for cell in cells) and not Disk.can_be_had():
        print("left out: storage, because nothing can be mounted here", file=sys.stderr)
        cells = [cell for cell in cells if not cell.own_disk]
    if not cells:
        parser.error(f"no cell's name has {flags.only}")
    with tempfile.TemporaryDirectory(prefix="hfopt-faults-") as scratch:
        matrix = Matrix(flags.build, Path(scratch))
        checks = [(cell.name, lambda cell=cell: matrix.check(cell)) for cell in cells]
        if flags.fast:
            checks.append(("every-failpoint", matrix.coverage))
        elif flags.only is None:
            checks.append(("every-failpoint", matrix.require_all_points))
        passed = 0
        for name, check in checks:
            begin = time.monotonic()
            error: Optional[Failure] = None
            try:
                check()
                passed += 1
            except Failure as failure:
                error = failure
            print(f"{'FAILED' if error else 'passed'}  {time.monotonic() - begin:5.2f} s  {name}", flush=True)
            if error:
                print(str(error), file=sys.stderr, flush=True)
        print(json.dumps({"cells": len(checks), "passed": passed, "lost": matrix.lost}))
    return 0 if passed == len(checks) and matrix.lost == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
