#!/usr/bin/python3
"""One server for a long time: run after run, whose workers are killed, stopped, sent away and started again by chance, and watchers who read, or do not,
and leave. Every run has to end with the bits of an undisturbed one, and the server must not grow.

    tests/faults/soak [--minutes N]
"""
from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, List, Tuple

from cluster import LONG, PATIENCE_SECONDS, WORKERS, Cluster, Failure, await_condition

MOST_GROWTH = 8 << 20  # bytes, over all of the time, by the line through the measurements
WARM_UP = 0.25  # part of the time in which memory is taken that is kept


class Watchers:
    """People who look at the run for a while. Some do not take what they are sent."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self._cluster, self._chance = cluster, chance
        self._threads: List[threading.Thread] = []

    def add(self) -> None:
        from hfopt.v1 import run_service_pb2
        call = self._cluster.stub().WatchRun(run_service_pb2.WatchRunRequest(name="runs/r"), timeout=PATIENCE_SECONDS)
        self._threads.append(threading.Thread(target=self._watch, args=(call, self._chance.randrange(12))))
        self._threads[-1].start()

    @staticmethod
    def _watch(call: Any, events: int) -> None:
        import grpc
        try:
            for _ in range(events):
                next(call)
        except (grpc.RpcError, StopIteration):
            pass
        call.cancel()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()


def disturb(cluster: Cluster, chance: random.Random) -> None:
    """Something happens to a worker."""
    name = chance.choice(WORKERS)
    process = cluster.processes[name]
    if process.exit_code is not None:
        cluster.start(name)
        return
    what = chance.choice(("kill", "kill and start", "stop", "leave", "nothing"))
    if what == "stop":
        process.stop()
        time.sleep(chance.uniform(0.1, 1.0))
        process.signal(signal.SIGCONT)
    elif what == "leave":
        process.signal(signal.SIGTERM)
    elif what != "nothing":
        process.kill()
        if what == "kill and start":
            cluster.start(name)


def one_run(cluster: Cluster, chance: random.Random, quiet: bool) -> bytes:
    """Its parameters."""
    from hfopt.v1 import run_service_pb2
    cluster.begin_run()
    watchers = Watchers(cluster, chance)
    while not quiet and not cluster.has_ended():
        disturb(cluster, chance)
        watchers.add()
        time.sleep(chance.uniform(0, 0.2))
    for name in WORKERS:
        if not quiet and cluster.processes[name].exit_code is not None and not cluster.has_ended():
            cluster.start(name)
    await_condition("the run ends", cluster.has_ended)
    parameters = cluster.parameters()
    watchers.join()
    for name in WORKERS:
        cluster.processes[name].signal(signal.SIGCONT)
        await_condition(f"worker {name} ends", lambda: cluster.processes[name].exit_code is not None)
    cluster.call("DeleteRun", run_service_pb2.DeleteRunRequest(name="runs/r"))
    cluster.forget_workers()
    return parameters


def slope(points: List[Tuple[float, float]]) -> float:
    """Of the line of least squares, per second."""
    n = len(points)
    mean_t, mean_y = sum(t for t, _ in points) / n, sum(y for _, y in points) / n
    return sum((t - mean_t) * (y - mean_y) for t, y in points) / sum((t - mean_t) ** 2 for t, _ in points)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="build folder with failpoints")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    sys.path.insert(0, str(flags.build / "python"))
    chance = random.Random(flags.seed)

    with tempfile.TemporaryDirectory(prefix="hfopt-soak-") as scratch, Cluster(flags.build, Path(scratch), LONG, {}) as cluster:
        cluster.start("server")
        expected = one_run(cluster, chance, quiet=True)
        begin = time.monotonic()
        end = begin + 60 * flags.minutes
        measured: List[Tuple[float, float]] = []
        descriptors: List[int] = []
        threads: List[int] = []
        failures: List[str] = []
        runs, told = 0, -15.0
        while time.monotonic() < end and not failures:
            try:
                if one_run(cluster, chance, quiet=False) != expected:
                    failures.append(f"run {runs} ended with other parameters")
            except Failure as failure:
                failures.append(str(failure))
            runs += 1
            measured.append((time.monotonic() - begin, cluster.server.memory))
            descriptors.append(cluster.server.descriptors)
            threads.append(cluster.server.threads)
            if measured[-1][0] < told + 15:
                continue
            told = measured[-1][0]
            print(f"{told:6.0f} s  {runs:5} runs  {measured[-1][1] / 2**20:6.1f} MiB  {descriptors[-1]:4} descriptors  {threads[-1]:3} threads",
                  flush=True)
        cluster.end_server()
        settled = [point for point in measured if point[0] > WARM_UP * measured[-1][0]]
        growth = slope(settled) * measured[-1][0] if len(settled) > 2 else 0.0
        quarter = len(descriptors) // 4
        if growth > MOST_GROWTH:
            failures.append(f"memory grows by {growth / 2**20:.1f} MiB in this time")
        for what, counts in (("descriptors", descriptors), ("threads", threads)):
            if quarter and min(counts[-quarter:]) > max(counts[:quarter]):
                failures.append(f"{what} grow from {max(counts[:quarter])} to {min(counts[-quarter:])}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(json.dumps({"minutes": round(measured[-1][0] / 60, 1), "runs": runs, "mib": round(measured[-1][1] / 2**20, 1),
                      "growth_mib": round(growth / 2**20, 2), "descriptors": descriptors[-1], "threads": threads[-1], "failures": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
