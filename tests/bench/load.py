#!/usr/bin/python3
"""What one server carries: very many workers of one run, many runs at a time, very many watchers that do not read, very
long vectors. Every part has a server of its own, and models so small (or, for the vectors, so simple) that what is
measured is the service. Fails when a result is wrong, not when something is slow; the last line is JSON.

    load.py --build DIR [--parts sessions,runs,watchers,vectors] [--sessions N] [--runs N] [--watchers N]
            [--sizes MIB,...] [--ways shared,chunks]
"""
from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np

from load_worker import LeastSquares
from vector_worker import PERIOD, minimizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/faults"))
from cluster import Failure, Process, await_condition  # noqa: E402
from server_process import ServerProcess  # noqa: E402

PROCESSES = 4  # that share the workers
EXAMPLES_OF_A_SHARD = 10  # where there are very many shards
EXAMPLES_OF_A_RUN = 200  # where there are few
WATCHERS_OF_A_CONNECTION = 1000  # the server takes 1,024 streams
MOST_KIB_OF_A_WATCHER = 40  # that is open and does not read
MOST_KIB_OF_GROWTH = 1  # of it, while there is more and more that it could read
PATIENCE_SECONDS = 3600.0


class Peaks:
    """The most threads and descriptors of a server while it is in a with statement."""
    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.threads = self.descriptors = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            usage = self._server.usage()
            self.threads, self.descriptors = max(self.threads, usage.threads), max(self.descriptors, usage.descriptors)
            if self._end.wait(0.1):
                return


class Part:
    """A server in a directory of its own, the client of its runs, and their workers."""
    def __init__(self, build: Path, directory: Path) -> None:
        import hfopt
        self._build, self._directory = build, directory
        directory.mkdir()
        # A lease that no worker misses whatever else the machine does; nothing here is about leases.
        self.server = ServerProcess(build, directory, "--lease", "60", "--memory-limit", str(1 << 20))
        self.client = hfopt.RunClient(self.server.address, timeout=PATIENCE_SECONDS)
        self._staff: List[Process] = []

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for process in (*self._staff, self.server):
            process.kill()

    def hire(self, workers: Sequence[str], examples: int) -> None:
        """Starts workers, named RUN/WORKER_ID."""
        for k in range(min(PROCESSES, len(workers))):
            self._start("load_worker.py", "--examples", str(examples), "--workers", *workers[k::PROCESSES])

    def hire_for_vectors(self, run: str, parameters: int, chunks: bool) -> None:
        self._start("vector_worker.py", "--run", run, "--parameters", str(parameters),
                    *(["--chunks"] if chunks else []))

    def _start(self, program: str, *arguments: str) -> None:
        name = f"workers-{len(self._staff)}"
        command = [
            "/usr/bin/python3",
            str(Path(__file__).parent / program), "--build",
            str(self._build), "--server", self.server.address, *arguments
        ]
        self._staff.append(Process(name, command, "", self._directory / f"{name}.log"))

    def await_workers(self, run: str, count: int) -> None:
        await_condition(f"{count} workers of {run} are connected",
                        lambda: sum(w.connected for w in self.client.get(run).workers) == count, self._check_staff)

    def reports(self, run: str) -> Iterator[Any]:
        """Of each iteration, until the run has ended as it should."""
        from hfopt.v1 import run_pb2
        for event in self.client.watch(run):
            if isinstance(event, run_pb2.IterationReport):
                yield event
            elif event.state == run_pb2.RUN_STATE_FAILED:
                raise Failure(f"{run} failed: {event.state_detail}")

    def end_workers(self) -> None:
        """Waits for them; each has to have been told that its run is over."""
        for process in self._staff:
            await_condition(f"{process.name} ends", lambda: process.exit_code is not None)
        self._check_staff()
        self._staff.clear()

    def _check_staff(self) -> None:
        for process in self._staff:
            if process.exit_code not in (None, 0):
                raise Failure(f"{process.name} ended with {process.exit_code}:\n{process.output()[-2000:]}")


def options(shards: int, iterations: int) -> Any:
    """All parts of an iteration, on all data; goes on after it has converged."""
    import hfopt.options
    return hfopt.options.run_options(
        preset="published",
        dtype="float64",
        shards=shards,
        max_iterations=iterations,
        options={
            "conjugate_gradient.max_iterations": 15, "conjugate_gradient.progress_tolerance": 0,
            "conjugate_gradient.residual_tolerance": 1e-9, "preconditioner.lbfgs": "frozen", "preconditioner.memory": 4,
            "damping.initial": 1e-3, "samples.curvature_fraction": 1.0, "stop.max_rejections": 10**9
        })


def check_solution(what: str, theta: np.ndarray, examples: int) -> None:
    """lambda of 1e-3, that falls, beside eigenvalues above 0.1 leaves less than 1e-2 of the error in each of four
    iterations."""
    error = float(np.abs(theta - LeastSquares(examples).solution()).max())
    if error > 1e-6:
        raise Failure(f"{what} ended {error:g} away from the solution")


def mib(count: float) -> float:
    return round(count / 2**20, 1)


def sessions(part: Part, count: int) -> Dict[str, Any]:
    """As many workers as shards, against four workers with the same shards."""
    expected = train(part, "few", [f"few/w-{k}" for k in range(4)], count)
    idle = part.server.usage()
    part.server.forget_peak()
    with Peaks(part.server) as peaks:
        begin = time.monotonic()
        part.client.create("many", options(count, 4))
        part.hire([f"many/w-{k}" for k in range(count)], EXAMPLES_OF_A_SHARD * count)
        part.await_workers("many", count)
        connected, before = time.monotonic(), part.server.usage()
        part.client.start("many")
        iterations = sum(1 for _ in part.reports("many"))
        seconds, after = time.monotonic() - connected, part.server.usage()
    theta = part.client.download_parameters("many", "last").theta
    if theta.tobytes() != expected.tobytes():
        raise Failure(f"{count} workers trained other bits than four did")
    answers = [worker.answers for worker in part.client.get("many").workers]
    if len(answers) != count or min(answers) == 0:
        raise Failure(f"{sum(a > 0 for a in answers)} of {count} workers answered")
    part.end_workers()
    cpu = after.cpu_seconds - before.cpu_seconds
    return {
        "sessions": count, "connected_within_s": round(connected - begin,
                                                       1), "iterations": iterations, "seconds": round(seconds, 1),
        "evaluations": sum(answers), "evaluations_per_second": round(sum(answers) / seconds),
        "server_cpu_seconds": round(cpu, 1), "server_cpu_us_per_evaluation": round(1e6 * cpu / sum(answers)),
        "server_idle_mib": mib(idle.resident), "server_peak_mib": mib(after.peak), "kib_per_session": round(
            (after.peak - idle.resident) / count / 1024, 1), "threads": peaks.threads, "descriptors": peaks.descriptors
    }


def train(part: Part, run: str, workers: Sequence[str], shards: int) -> np.ndarray:
    part.client.create(run, options(shards, 4))
    part.hire(workers, EXAMPLES_OF_A_SHARD * shards)
    part.await_workers(run, len(workers))
    part.client.start(run)
    for _ in part.reports(run):
        pass
    theta: np.ndarray = part.client.download_parameters(run, "last").theta
    check_solution(run, theta, EXAMPLES_OF_A_SHARD * shards)
    part.end_workers()
    return theta


def runs(part: Part, count: int) -> Dict[str, Any]:
    """Each of two workers and two shards, all the same."""
    from hfopt.v1 import run_pb2
    iterations = 20
    names = [f"run-{k}" for k in range(count)]
    for name in names:
        part.client.create(name, options(2, iterations))
    idle = part.server.usage()
    with Peaks(part.server) as peaks:
        part.hire([f"{name}/{worker}" for name in names for worker in ("a", "b")], EXAMPLES_OF_A_RUN)
        for name in names:
            part.await_workers(name, 2)
        begin = time.monotonic()
        for name in names:
            part.client.start(name)
        at_once = sum(run.state == run_pb2.RUN_STATE_RUNNING for run in part.client.list())
        for name in names:
            if sum(1 for _ in part.reports(name)) != iterations:
                raise Failure(f"{name} did not make {iterations} iterations")
        seconds = time.monotonic() - begin
    results = {part.client.download_parameters(name, "last").theta.tobytes() for name in names}
    if len(results) != 1:
        raise Failure(f"{count} equal runs had {len(results)} different results")
    check_solution("all runs", np.frombuffer(results.pop(), "<f8"), EXAMPLES_OF_A_RUN)
    answers = sum(worker.answers for name in names for worker in part.client.get(name).workers)
    part.end_workers()
    after = part.server.usage()
    return {
        "runs": count, "running_at_once": at_once, "iterations": iterations * count, "seconds": round(seconds, 1),
        "iterations_per_second": round(iterations * count / seconds,
                                       1), "evaluations_per_second": round(answers / seconds),
        "server_cpu_seconds": round(after.cpu_seconds - idle.cpu_seconds, 1), "server_peak_mib": mib(after.peak),
        "threads": peaks.threads, "descriptors": peaks.descriptors
    }


class SilentWatchers:
    """Streams whose events nobody takes. Two or three fit into what a client takes in by itself; then the server has to
    wait."""
    def __init__(self, server: ServerProcess, run: str, count: int) -> None:
        self._server, self._run, self._count = server, run, count
        self._channels: List[Any] = []
        self._calls: List[Any] = []

    async def open(self) -> None:
        import grpc
        from hfopt.v1 import run_service_pb2, run_service_pb2_grpc
        small_window = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024),
                        ("grpc.http2.bdp_probe", 0)]
        for _ in range(0, self._count, WATCHERS_OF_A_CONNECTION):
            self._channels.append(grpc.aio.insecure_channel(self._server.address, options=small_window))
            stub = run_service_pb2_grpc.RunServiceStub(self._channels[-1])
            here = min(WATCHERS_OF_A_CONNECTION, self._count - len(self._calls))
            self._calls += [
                stub.WatchRun(run_service_pb2.WatchRunRequest(name=f"runs/{self._run}")) for _ in range(here)
            ]
            await asyncio.gather(*(call.initial_metadata() for call in self._calls[-here:])
                                )  # comes with the first event

    def ended(self) -> int:
        """How many the server has ended."""
        return sum(call.done() for call in self._calls)

    async def read_some(self, iterations: int) -> None:
        """A hundred of them wake up: each has to be told everything, or that it was dropped."""
        import grpc
        from hfopt.v1 import run_pb2

        async def read(call: Any) -> None:
            told, state = [], None
            try:
                async for event in call:
                    if event.HasField("iteration"):
                        told.append(event.iteration.iteration)
                    else:
                        state = event.run.state
            except grpc.aio.AioRpcError as error:
                if not error.details():
                    raise Failure(f"a slow watcher was dropped with {error.code().name} and no reason") from error
                return
            if told != list(range(1, iterations + 1)) or state != run_pb2.RUN_STATE_ENDED:
                raise Failure(
                    f"a slow watcher was told of {len(told)} of {iterations} iterations, and of state {state} at last")

        await asyncio.gather(*(read(call) for call in self._calls[::max(1, self._count // 100)]))

    async def close(self) -> None:
        while self._calls:  # a connection lives as long as a call of it
            self._calls.pop().cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._channels.clear()


async def watchers(part: Part, count: int) -> Dict[str, Any]:
    """A run that is watched by nobody, then one that is watched by very many who do not read."""
    iterations = 200

    async def train_watched(run: str, resident: List[int]) -> float:
        """Seconds that the run took; adds the server's memory after a quarter of its iterations, and at their end."""
        def follow() -> float:
            part.hire([f"{run}/w"], EXAMPLES_OF_A_RUN)
            part.await_workers(run, 1)
            begin = time.monotonic()
            part.client.start(run)
            for report in part.reports(run):
                if report.iteration in (iterations // 4, iterations):
                    resident.append(part.server.usage().resident)
            return time.monotonic() - begin

        return await asyncio.to_thread(follow)

    for run in ("unwatched", "watched"):
        part.client.create(run, options(1, iterations))
    alone = await train_watched("unwatched", [])
    part.end_workers()
    before = part.server.usage()
    silent = SilentWatchers(part.server, "watched", count)
    begin = time.monotonic()
    await silent.open()
    opened, opening = part.server.usage(), time.monotonic() - begin
    resident: List[int] = []
    seconds = await train_watched("watched", resident)
    after = part.server.usage()
    ended = silent.ended()
    try:
        await silent.read_some(iterations)
    finally:
        await silent.close()
    closed = await asyncio.to_thread(
        await_condition, "the server has closed the connections of watchers",
        lambda: part.server.usage().descriptors <= before.descriptors and part.server.usage())
    part.end_workers()

    def kib(end: int, start: int) -> float:
        return round((end - start) / count / 1024, 2)

    result = {
        "watchers": count, "iterations": iterations, "open_within_s": round(opening, 1), "seconds": round(seconds, 1),
        "seconds_unwatched": round(alone, 1), "kib_per_watcher_open": kib(opened.resident, before.resident),
        "kib_per_watcher_at_the_end": kib(resident[1], before.resident), "kib_of_growth": kib(resident[1], resident[0]),
        "server_before_mib": mib(before.resident), "server_at_the_end_mib": mib(after.resident),
        "server_closed_mib": mib(closed.resident
                                ), "threads": after.threads, "descriptors": after.descriptors, "ended_by_server": ended
    }
    # With few, what the server takes for itself weighs more.
    if count >= 1000 and (result["kib_per_watcher_at_the_end"] > MOST_KIB_OF_A_WATCHER or
                          result["kib_of_growth"] > MOST_KIB_OF_GROWTH):
        raise Failure(
            f"more memory than {MOST_KIB_OF_A_WATCHER} KiB a watcher, or growth of more than {MOST_KIB_OF_GROWTH} KiB: "
            f"{result}"
        )
    return result


def vectors(part: Part, size: int, chunks: bool) -> Dict[str, Any]:
    """A training whose vectors have so many MiB, in shared memory or in chunks; its server's peak against the formula
    by which it admits runs."""
    parameters, available = size * 2**18, available_memory()
    for pairs in (8, 4):
        run = part.client.create(f"long-{pairs}", long_options(pairs))
        formula = vectors_held(run.options) * 4 * parameters
        if formula + 4 * 4 * parameters < 0.9 * available:  # with the worker's vectors
            break
    else:
        return move(part, size, f"a training takes {mib(formula + 4 * 4 * parameters)} MiB, {mib(available)} are free")
    name = run.name.split("/")[1]
    part.hire_for_vectors(name, parameters, chunks)
    part.await_workers(name, 1)
    begin = time.monotonic()
    part.client.start(name)
    seconds = [report.seconds.total for report in part.reports(name)]
    after = part.server.usage()
    run = part.client.get(name)
    way = {True: "shared memory", False: "chunks"}[run.workers[0].shared_memory]
    if way != ("chunks" if chunks else "shared memory"):
        raise Failure(f"vectors went in {way}")
    part.end_workers()
    error = download_error(part, name, parameters)
    if error > 1e-4:
        raise Failure(f"vectors of {size} MiB: a parameter is {error:g} away from the solution")
    # The formula also counts what this run has no use for, second moments and answers asked for twice among it; with
    # few pairs that weighs more than a tenth.
    if after.peak > 1.1 * formula or (pairs == 8 and after.peak < 0.9 * formula):
        raise Failure(
            f"vectors of {size} MiB in {way}: the server's peak was {mib(after.peak)} MiB, the formula says "
            f"{mib(formula)} MiB"
        )
    return {
        "mib": size, "way": way, "lbfgs_pairs": pairs, "iterations": len(seconds),
        "seconds": round(time.monotonic() - begin, 1), "moved_gib": round(
            (run.workers[0].bytes_sent + run.workers[0].bytes_received) / 2**30, 1), "server_peak_mib": mib(after.peak),
        "formula_mib": mib(formula), "ratio": round(after.peak / formula, 3), "vectors_less": round(
            (formula - after.peak) / 4 / parameters, 1)
    }


def vectors_held(options: Any) -> int:
    """server/run/memory.h, for plain CG with frozen pairs and without second moments."""
    cg = options.optimizer.conjugate_gradient
    kept, step = set(), 1.0
    while math.ceil(step) <= cg.max_iterations:
        kept.add(math.ceil(step))
        step *= cg.kept_iterate_ratio
    return 4 + 8 + 2 + len(kept) + 1 + 5 * options.optimizer.preconditioner.memory + 4 + options.shards + 1


def long_options(pairs: int) -> Any:
    import hfopt.options
    result = hfopt.options.run_options(preset="published",
                                       dtype="float32",
                                       shards=1,
                                       max_iterations=2,
                                       options={
                                           "conjugate_gradient.max_iterations": 8,
                                           "conjugate_gradient.progress_tolerance": 0, "preconditioner.lbfgs": "frozen",
                                           "preconditioner.memory": pairs, "damping.initial": 1e-4,
                                           "samples.curvature_fraction": 1.0
                                       })
    result.keep_checkpoints = 1
    return result


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def move(part: Part, size: int, why: str) -> Dict[str, Any]:
    """What can be done with a vector for which this machine is too small to train: it goes to the server, into a
    checkpoint, and back."""
    from hfopt.v1 import run_service_pb2, run_service_pb2_grpc, vector_pb2
    parameters, chunk = size * 2**18, 64 * PERIOD
    run = part.client.create("moved", long_options(4))
    values = np.tile(minimizer(PERIOD), 64)

    def messages() -> Iterator[Any]:
        header = run_service_pb2.UploadParametersHeader(name=run.name,
                                                        size=parameters,
                                                        element_type=vector_pb2.ELEMENT_TYPE_FLOAT32)
        yield run_service_pb2.UploadParametersRequest(header=header)
        for first in range(0, parameters, chunk):
            data = values[:parameters - first].tobytes()
            yield run_service_pb2.UploadParametersRequest(chunk=vector_pb2.VectorChunk(offset=4 * first, data=data))

    idle, begin = part.server.usage(), time.monotonic()
    with part.server.dial() as channel:
        run_service_pb2_grpc.RunServiceStub(channel).UploadParameters(messages())
    up = time.monotonic()
    if error := download_error(part, "moved", parameters):
        raise Failure(f"a vector of {size} MiB came back with an element that is off by {error:g}")
    return {
        "mib": size, "way": "up and down only", "why": why, "up_seconds": round(up - begin, 1),
        "down_seconds": round(time.monotonic() - up, 1), "server_peak_mib": mib(part.server.usage().peak),
        "peak_in_vectors": round((part.server.usage().peak - idle.resident) / 4 / parameters, 2)
    }


def download_error(part: Part, run: str, parameters: int) -> float:
    """The greatest distance of a parameter to the solution, without a copy of all of them."""
    from hfopt.v1 import run_service_pb2, run_service_pb2_grpc
    expected, done, error = np.tile(minimizer(PERIOD), 64), 0, 0.0
    request = run_service_pb2.DownloadParametersRequest(name=f"runs/{run}",
                                                        version=run_service_pb2.DownloadParametersRequest.VERSION_LAST)
    with part.server.dial() as channel:
        for message in run_service_pb2_grpc.RunServiceStub(channel).DownloadParameters(request):
            if message.HasField("chunk"):
                got = np.frombuffer(message.chunk.data, "<f4")
                first = message.chunk.offset // 4 % PERIOD
                error = max(error, float(np.abs(got - expected[first:first + len(got)]).max()))
                done += len(got)
    return error if done == parameters else math.inf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build",
                        type=Path,
                        required=True,
                        help="build folder with hfopt-server and hfopt_python_stubs")
    parser.add_argument("--parts", default="sessions,runs,watchers,vectors")
    parser.add_argument("--sessions", type=int, default=1000, help="workers of one run")
    parser.add_argument("--runs", type=int, default=50, help="at a time, with two workers each")
    parser.add_argument("--watchers", type=int, default=10_000, help="that do not read")
    parser.add_argument("--sizes", default="64,256", help="of vectors, in MiB")
    parser.add_argument("--ways", default="shared,chunks", help="how they go to the worker")
    flags = parser.parse_args()
    sys.path[:0] = [str(flags.build / "python"), str(ROOT / "client/python")]
    measure = {
        "sessions": lambda part: sessions(part, flags.sessions), "runs": lambda part: runs(part, flags.runs),
        "watchers": lambda part: asyncio.run(watchers(part, flags.watchers))
    }
    for size in map(int, flags.sizes.split(",")):
        for way in flags.ways.split(","):
            measure[f"vectors-{size}-{way}"] = lambda part, size=size, chunks=way == "chunks": vectors(
                part, size, chunks)
    chosen = [name for name in measure if name.split("-")[0] in flags.parts.split(",")]
    from hfopt import Error
    result: Dict[str, Any] = {"bench": "load"}
    failures = []
    with tempfile.TemporaryDirectory(prefix="hfopt-load-") as scratch:
        for name in chosen:
            try:
                with Part(flags.build, Path(scratch) / name) as part:
                    result[name] = measure[name](part)
                    print(f"{name}: {json.dumps(result[name])}", flush=True)
            except (Failure, Error) as failure:
                failures.append(f"{name}: {failure}")
            shutil.rmtree(Path(scratch) / name)  # checkpoints may be large
    for text in failures:
        print(text, file=sys.stderr)
    print(json.dumps({**result, "failures": len(failures)}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
