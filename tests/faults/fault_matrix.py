#!/usr/bin/python3
"""The fault matrix: what is hit, at which place, and how. Every cell is a training of its own that has to end with the bits of an undisturbed one.

    tests/faults/run [--only PATTERN] [--list] [--fast]
"""
from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Set

from cell import Cell, armed
from cluster import LARGE, SMALL, WORKERS, Cluster, Disk, Failure, Missed, Model, Result
from elastic_cells import elastic_cells
from hostile_cells import hostile_cells
from network_cells import network_cells
from process_cells import process_cells
from storage_cells import storage_cells


def all_cells() -> List[Cell]:
    return [*process_cells(), *elastic_cells(), *network_cells(), *hostile_cells(), *storage_cells()]


FAST = ("kill/server/checkpoint-rename", "kill/worker/uploaded-shared", "kill/workers/line-search", "kill/server+workers/upload-chunks",
        "stop/worker/cg-solve", "stop/server/gradient", "network/reset/up", "network/garbage/down", "network/flip/up", "network/silence/down",
        "network/partition/worker")


class Matrix:
    def __init__(self, build: Path, scratch: Path) -> None:
        self.build, self.scratch = build, scratch
        self.references: Dict[Model, Result] = {}
        self.acted: Set[str] = set()
        self.lost = 0

    def train(self, cell: Cell) -> Result:
        directory = Path(tempfile.mkdtemp(prefix="cell-", dir=self.scratch))
        with Cluster(self.build, directory, cell.model, cell.rules, cell.own_disk, cell.links, cell.tls, cell.first_workers,
                     cell.private_shards, cell.journal) as cluster:
            try:
                cluster.begin()
                cell.disturb(cluster)
                result = cluster.finish()
                cell.verify(cluster, result)
            except Failure as failure:
                logs = "".join(f"\n--- {p.log.name}\n{p.output()}" for p in cluster.history)
                raise Failure(f"{failure}{logs}") from failure
            acted = {p.name: set(p.passed_failpoints()) for p in cluster.history if p.passed_failpoints()}
            self.acted.update(*acted.values())
            for process, point in cell.expected.items():
                if point not in acted.get(process, ()):
                    raise Missed(f"{point} was never passed by {process}")
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
        for tries_left in (2, 1, 0):
            try:
                result = self.train(cell)
                break
            except Missed as missed:
                if tries_left == 0:
                    raise Failure(f"three times: {missed}") from missed
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
            self.train(Cell("coverage", LARGE if chunks else SMALL, armed(chunks, rules), lambda cluster: None, journal=True))
        self.require_all_points()

    def require_all_points(self) -> None:
        listed = subprocess.run([str(self.build / "tests/faults/hfopt_list_failpoints")], check=True, capture_output=True, text=True)
        missing = {line.split("\t")[0] for line in listed.stdout.splitlines()} - self.acted
        if missing:
            raise Failure(f"listed failpoints that nothing passes: {', '.join(sorted(missing))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=lambda path: Path(path).resolve(), required=True, help="build folder with failpoints")
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
