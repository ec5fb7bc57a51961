#!/usr/bin/python3
"""One server for a long time: run after run, created, trained and deleted, whose workers join, leave, are killed and
stopped by chance, and watchers who read, or do not, and leave. Every run has to end with the bits of an undisturbed
one, and the server must not grow.

    soak.py --build DIR [--minutes N] [--seed N]
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Counter, Dict, List, Tuple

from cluster import ROOT, Failure, Process, await_condition
from server_process import ServerProcess, Usage

sys.path.insert(0, str(ROOT / "client/python"))

# Of growth that is called flat: a run leaves less than 3 KiB behind where 1,500 are done in an hour.
MOST_MIB_AN_HOUR = 4.0
WARM_UP = 0.25  # part of the time in which memory is taken that is kept
LEAST_MINUTES = 5.0  # for memory and threads to be judged: in less, that part is all
LEASE_SECONDS = 0.5
WORKERS = ("a", "b", "c", "d")
ACTIONS = ("join", "join", "join", "leave", "kill", "kill", "kill and join", "stop", "watch", "watch")


@dataclass(frozen=True)
class Kind:
    """Of a run."""
    layers: str
    preset: str
    dtype: str
    shards: int
    iterations: int
    options: Dict[str, Any] = field(default_factory=dict)
    journal_seconds: float = 0.0


KINDS = (Kind("64-16-10", "published", "float32", 6, 40,
              {"preconditioner.lbfgs": "frozen", "preconditioner.memory": 4, "conjugate_gradient.max_iterations": 6}),
         Kind("64-24-10", "accelerated", "float64", 3, 20,
              {"preconditioner.lbfgs": "flexible", "preconditioner.memory": 4}),
         Kind("64-16-10",
              "accelerated",
              "float32",
              4,
              16, {"preconditioner.diagonal": "squared_gradients"},
              journal_seconds=0.001))


class Soak:
    def __init__(self, build: Path, directory: Path, server: ServerProcess, chance: random.Random) -> None:
        import hfopt
        self._build, self._directory, self._server, self._chance = build, directory, server, chance
        self._client = hfopt.RunClient(server.address, timeout=60.0)
        self._staff: Dict[str, Process] = {}
        self._watchers: List[threading.Thread] = []
        self._offences: List[str] = []  # of the server's to watchers; a list may be appended to from any thread
        self._started = 0
        self.happened: Counter[str] = Counter()

    def one_run(self, kind: Kind, disturbed: bool) -> bytes:
        """Its parameters."""
        import hfopt.options
        run = f"r-{self._started}"
        options = hfopt.options.run_options(preset=kind.preset,
                                            dtype=kind.dtype,
                                            shards=kind.shards,
                                            seed=3,
                                            max_iterations=kind.iterations,
                                            options=kind.options)
        options.journal_seconds = kind.journal_seconds
        self._client.create(run, options)
        self._client.start(run)
        for name in WORKERS[:1 if disturbed else 3]:
            self._start(name, run, kind)
        while disturbed and not self._has_ended(run):
            self._disturb(run, kind)
            time.sleep(self._chance.uniform(0, 0.1))
        await_condition(f"{run} ends", lambda: self._has_ended(run))
        parameters: bytes = self._client.download_parameters(run, "last").theta.tobytes()
        for watcher in self._watchers:
            watcher.join()
        self._watchers.clear()
        self._dismiss()
        self._client.delete(run)
        if self._offences:
            raise Failure("; ".join(self._offences))
        return parameters

    def _has_ended(self, run: str) -> bool:
        from hfopt.v1 import run_pb2
        state = self._client.get(run)
        if state.state == run_pb2.RUN_STATE_FAILED:
            raise Failure(f"{run} failed: {state.state_detail}")
        return bool(state.state == run_pb2.RUN_STATE_ENDED)

    def _start(self, name: str, run: str, kind: Kind) -> None:
        self._started += 1
        command = [
            str(self._build / "client/cli/hfopt-worker"), "--server", self._server.address, "--run", run, "--worker-id",
            name, "--task", "digits", "--data",
            str(ROOT / "client/models/digits"), "--layers", kind.layers
        ]
        self._staff[name] = Process(name, command, "", self._directory / f"{name}.log")

    def _disturb(self, run: str, kind: Kind) -> None:
        what, name = self._chance.choice(ACTIONS), self._chance.choice(WORKERS)
        process = self._staff.get(name)
        if what == "watch":
            self._watch(run)
        elif process is None or process.exit_code is not None:
            if what != "join":
                return
            self._start(name, run, kind)
        elif what == "join":
            return
        elif what == "leave":
            process.signal(signal.SIGTERM)
        elif what == "stop":
            process.stop()
            time.sleep(self._chance.uniform(0.1, 1.0))
            process.signal(signal.SIGCONT)
        else:
            process.kill()
            if what == "kill and join":
                self._start(name, run, kind)
        self.happened[what] += 1

    def _dismiss(self) -> None:
        for name, process in self._staff.items():
            await_condition(f"worker {name} ends", lambda: process.exit_code is not None)
            # SIGTERM ends a worker at once where it has not yet asked to be told of it.
            if process.exit_code not in (0, -signal.SIGKILL, -signal.SIGTERM):
                raise Failure(f"worker {name} ended with {process.exit_code}:\n{process.output()}")
        self._staff.clear()

    def _watch(self, run: str) -> None:
        """Somebody who looks at the run to its end, who leaves after some events, or who takes none of what he is sent
        for a while."""
        from hfopt.v1 import run_service_pb2, run_service_pb2_grpc
        channel = self._server.dial()
        call = run_service_pb2_grpc.RunServiceStub(channel).WatchRun(
            run_service_pb2.WatchRunRequest(name=f"runs/{run}"), timeout=60.0)
        events, silence = self._chance.choice((0, 3, 10, 1 << 30)), self._chance.choice((0.0, 0.5))

        def watch() -> None:
            import grpc
            told = 0
            threading.Event().wait(silence)
            try:
                call.initial_metadata(
                )  # come with the first event; a connection that is closed while it is being made, gRPC may keep
                for _ in range(events):
                    event = next(call, None)
                    if event is None:
                        break
                    if event.HasField("iteration"):
                        told += 1
                        if event.iteration.iteration != told:
                            self._offences.append(
                                f"a watcher of {run} was told of iteration {event.iteration.iteration} after {told - 1}"
                            )
                            break
            except grpc.RpcError as error:
                self._offences.append(f"a watcher of {run}: {error.code().name}: {error.details()}")
            call.cancel()
            channel.close()

        self._watchers.append(threading.Thread(target=watch))
        self._watchers[-1].start()


def slope(points: List[Tuple[float, float]]) -> float:
    """Of the line of least squares, per second."""
    n = len(points)
    mean_t, mean_y = sum(t for t, _ in points) / n, sum(y for _, y in points) / n
    return sum((t - mean_t) * (y - mean_y) for t, y in points) / sum((t - mean_t)**2 for t, _ in points)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build",
                        type=Path,
                        required=True,
                        help="build folder with hfopt-server, hfopt-worker and hfopt_python_stubs")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    sys.path.insert(0, str(flags.build / "python"))
    chance = random.Random(flags.seed)
    failures: List[str] = []
    with tempfile.TemporaryDirectory(prefix="hfopt-soak-") as scratch, ServerProcess(
            flags.build, Path(scratch), "--lease", str(LEASE_SECONDS)) as server:
        soak = Soak(flags.build, Path(scratch), server, chance)
        expected = [soak.one_run(kind, disturbed=False) for kind in KINDS]
        start = server.usage()  # with the one connection that creates runs
        begin = time.monotonic()
        seen: List[Tuple[float, Usage]] = []
        told = 0.0
        while not failures and (not seen or seen[-1][0] < 60 * flags.minutes):
            kind = chance.randrange(len(KINDS))
            try:
                if soak.one_run(KINDS[kind], disturbed=True) != expected[kind]:
                    failures.append(f"a run of kind {kind} ended with other parameters")
                await_condition("descriptors are as many as at the start",
                                lambda: server.usage().descriptors <= start.descriptors)
            except Failure as failure:
                failures.append(f"run {len(seen)}: {failure}")
            seen.append((time.monotonic() - begin, server.usage()))
            now, usage = seen[-1]
            if now > told + 15:
                told = now
                print(
                    f"{now:6.0f} s  {len(seen):5} runs  {usage.own / 2**20:6.2f} MiB  "
                    f"{usage.descriptors:4} descriptors  {usage.threads:3} threads",
                    flush=True)
        settled = [(t, usage.own / 2**20) for t, usage in seen if t > WARM_UP * seen[-1][0]]
        growth = 3600 * slope(settled) if len(settled) > 2 else 0.0
        most_threads = max([start.threads, *(usage.threads for t, usage in seen if t <= WARM_UP * seen[-1][0])])
        end = seen[-1][1]
        judged = flags.minutes >= LEAST_MINUTES
        if judged and growth > MOST_MIB_AN_HOUR:
            failures.append(f"memory grows by {growth:.1f} MiB an hour; flat is up to {MOST_MIB_AN_HOUR}")
        if end.descriptors > start.descriptors or (judged and end.threads > most_threads):
            failures.append(
                f"{end.descriptors} descriptors and {end.threads} threads at the end, {start.descriptors} and "
                f"{most_threads} before"
            )
        server.signal(signal.SIGTERM)
        await_condition("the server ends", lambda: server.exit_code is not None)
        if server.exit_code != 0:
            failures.append(f"the server ended with {server.exit_code}:\n{server.output()[-2000:]}")
    for text in failures:
        print(text, file=sys.stderr)
    print(
        json.dumps({
            "soak": "failed" if failures else "flat", "minutes": round(seen[-1][0] / 60, 1), "seed": flags.seed,
            "runs": len(seen), **soak.happened, "mib_at_start": round(start.own / 2**20, 2),
            "mib_at_end": round(end.own / 2**20, 2), "mib_an_hour": round(growth, 2),
            "descriptors": [start.descriptors, end.descriptors], "threads": [start.threads, most_threads, end.threads]
        }))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
