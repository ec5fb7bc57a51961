"""Real processes of one training: a server, workers, and a client that watches. Everything is waited for by what can be seen of it."""
from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from proxy import Link, Proxy

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 0.5
WORKERS = ("a", "b", "c")
PATIENCE_SECONDS = 60.0  # for anything that is waited for

# gRPC's handlers of fork() may wait for ever for its own threads, and a child that becomes another program needs none.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


class Failure(Exception):
    """What a cell should have shown and did not."""


class Missed(Exception):
    """The moment that was waited for did not come: what should have met it had nothing to do by then."""


def await_condition(what: str, condition: Callable[[], Any], on_wait: Callable[[], None] = lambda: None) -> Any:
    """The first true value of `condition`. `on_wait` is called between its evaluations."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"not within {PATIENCE_SECONDS:.0f} s: {what}")
        on_wait()
        time.sleep(0.002)


class Process:
    """A program whose standard error goes to a file. Killed, at the latest, by close()."""

    def __init__(self, name: str, command: List[str], failpoints: str, log: Path) -> None:
        self.name, self.log = name, log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HFOPT_")}
        if failpoints:
            environment["HFOPT_FAILPOINTS"] = failpoints
        with open(log, "wb") as file:
            # setpriv becomes the program. The kernel then kills it when we are gone, however that came about.
            self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=file,
                                             stderr=file, env=environment)

    @property
    def exit_code(self) -> Optional[int]:
        """None while it runs; -N when signal N ended it."""
        return self._process.poll()

    def was_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL

    @property
    def memory(self) -> int:
        """Bytes of it that are in memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def is_stopped(self) -> bool:
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def signal(self, number: int) -> None:
        if self.exit_code is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)
        await_condition(f"{self.name} is stopped", lambda: self.is_stopped() or self.exit_code is not None)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def line_after(self, text: str) -> str:
        """What follows `text` in the first whole line that has it; "" if there is none yet."""
        for line in self.output().splitlines(keepends=True):
            if text in line and line.endswith("\n"):
                return line.split(text, 1)[1].strip()
        return ""

    def passed_failpoints(self) -> List[str]:
        """Names, in the order in which a rule acted."""
        return [line.split(" ", 1)[1].split(": ")[0] for line in self.output().splitlines() if line.startswith("failpoint ")]


class Disk(Process):
    """A file system of a few MiB of its own, in a mount namespace of its own: nothing of it is left when the process ends."""

    def __init__(self, directory: Path, log: Path) -> None:
        directory.mkdir()
        script = 'mount -t tmpfs -o size=4m none "$0" && echo mounted && exec sleep infinity'
        super().__init__("disk", ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(directory)], "", log)
        await_condition("the disk is mounted", lambda: "mounted" in self.output() or self.exit_code is not None)
        self.directory = directory
        self._seen_from_here = Path(f"/proc/{self._process.pid}/root{directory}")

    @staticmethod
    def can_be_had() -> bool:
        return subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0

    def command(self, *command: str) -> List[str]:
        """To be run where the disk can be seen."""
        return ["nsenter", "--target", str(self._process.pid), "--mount", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.command(*command), check=True)

    def fill(self) -> None:
        with open(self._seen_from_here / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self) -> None:
        (self._seen_from_here / "ballast").unlink()


@dataclass(frozen=True)
class Model:
    """What is trained. Small enough for a cell to take a second, and every part of an iteration is there."""
    layers: str
    element_type: str
    gradient_examples: int
    curvature_fraction: float
    shards: int = 3
    iterations: int = 4


# The second has vectors of two chunks, for what happens in the middle of one that goes through gRPC.
SMALL = Model(layers="64-16-10", element_type="ELEMENT_TYPE_FLOAT32", gradient_examples=0, curvature_fraction=1.0)
# The third goes on for long enough for workers to come and go.
LARGE = Model(layers="64-512-192-10", element_type="ELEMENT_TYPE_FLOAT64", gradient_examples=120, curvature_fraction=0.5)
LONG = Model(layers="64-16-10", element_type="ELEMENT_TYPE_FLOAT32", gradient_examples=0, curvature_fraction=1.0, shards=6, iterations=20)


@dataclass
class Result:
    """What a training has left behind, as far as it must not depend on what happened meanwhile."""
    parameters: bytes
    reports: List[bytes]  # of all iterations, without times
    best: float  # lowest held-out loss
    best_iteration: int
    answers: int  # that the server has accepted since it was started last
    reissued: int  # questions that were asked again because a worker was lost
    seen: Dict[int, bytes] = field(default_factory=dict)  # reports as a watcher got them
    final: Dict[int, bytes] = field(default_factory=dict)  # and as they are at the end


class Cluster:
    """A server and its workers in a directory. To be used in a with statement, which kills what is left."""

    def __init__(self, build: Path, directory: Path, model: Model, rules: Dict[str, str], own_disk: bool = False,
                 links: Optional[Dict[str, Link]] = None, tls: bool = False, first_workers: Tuple[str, ...] = WORKERS,
                 private_shards: Optional[Dict[str, str]] = None, journal: bool = False) -> None:
        self.build, self.directory, self.model, self.rules = build, directory, model, rules
        self.staff = list(first_workers)  # who is started again when killed, and has to end well
        self.private_shards = private_shards or {}
        self.journal = journal
        self.proxies = {name: Proxy(link) for name, link in (links or {}).items()}  # of those that do not reach the server directly
        self.certificates = self._make_certificates() if tls else None
        self.state = directory / "state"
        self.processes: Dict[str, Process] = {}
        self.history: List[Process] = []
        self.server_restarts = 0
        self.work_was_lost = False  # set by who has seen it: an unfinished iteration is computed again
        self._channel: Any = None
        self._watch_channel: Any = None  # the same, or one through a proxy
        self._address = "127.0.0.1:0"
        self._watch_end = threading.Event()
        self._watcher: Optional[threading.Thread] = None
        self.seen: Dict[int, bytes] = {}
        self.watch_errors: List[str] = []
        self.disk = Disk(self.state, directory / "disk.log") if own_disk else None
        if self.disk is not None:
            self.history.append(self.disk)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.history:
            process.kill()
        for proxy in self.proxies.values():
            proxy.close()
        self._watch_end.set()
        if self._watcher is not None:
            self._watcher.join()

    # --- processes

    def start(self, name: str, failpoints: str = "") -> None:
        log = self.directory / f"{name}.{len(self.history)}.log"
        if name == "server":
            command = [str(self.build / "server/hfopt-server"), "--address", self._address, "--state-dir",
                       str(self.state), "--lease", str(LEASE_SECONDS)]
            if self.certificates is not None:
                command += ["--tls-cert", str(self.certificates / "server.pem"), "--tls-key", str(self.certificates / "server.key")]
            if self.disk is not None:
                command = self.disk.command(*command)
        else:
            address = self.proxies[name].address if name in self.proxies else self._address
            command = [str(self.build / "client/cli/hfopt-worker"), "--server", address, "--run", "r", "--worker-id", name,
                       "--task", "digits", "--data", str(ROOT / "client/models/digits"), "--layers", self.model.layers]
            if name in self.private_shards:
                command += ["--shards", self.private_shards[name]]
            if self.certificates is not None:
                command += ["--ca", str(self.certificates / "ca.pem")]
        process = Process(name, command, failpoints, log)
        self.processes[name] = process
        self.history.append(process)
        if name == "server":
            def listening() -> str:
                if process.exit_code is not None:
                    raise Failure(f"the server ended with {process.exit_code} at its start:\n{process.output()}")
                return process.line_after("listening on ")
            self._address = await_condition("the server listens", listening)
            for proxy in self.proxies.values():
                proxy.target = self.address
            self._channel = self._dial(self._address)
            self._watch_channel = self._dial(self.proxies["watcher"].address) if "watcher" in self.proxies else self._channel

    def _make_certificates(self) -> Path:
        directory = self.directory / "certificates"
        subprocess.run([str(self.build / "client/cli/hfopt"), "certs", "--dir", str(directory)], check=True, capture_output=True)
        return directory

    def _dial(self, address: str) -> Any:
        """A channel for each server: one that has failed takes seconds to try again."""
        import grpc
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
        if self.certificates is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials((self.certificates / "ca.pem").read_bytes()), options=options)

    def restart_killed(self) -> None:
        """Starts again, without failpoints, whatever was killed: the server first."""
        for name in ("server", *self.staff):
            process = self.processes.get(name)
            if process is not None and process.was_killed():
                self.server_restarts += name == "server"
                self.start(name)

    @property
    def address(self) -> Tuple[str, int]:
        host, _, port = self._address.rpartition(":")
        return host, int(port)

    def connections(self) -> int:
        """That the server has, as the kernel sees them."""
        here = f":{self.address[1]:04X}"
        tables = [Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()[1:]]
        return sum(line[1].endswith(here) and line[3] == "01" for line in lines)

    @property
    def server(self) -> Process:
        return self.processes["server"]

    @property
    def workers(self) -> List[Process]:
        return [self.processes[name] for name in self.staff]

    def hire(self, *names: str) -> None:
        """Starts workers in the middle of the run."""
        for name in names:
            self.staff.append(name)
            self.start(name)

    def let_go(self, number: int, *names: str) -> None:
        """They get the signal, and are not started again."""
        for name in names:
            self.staff.remove(name)
            self.processes[name].signal(number)
            await_condition(f"{name} ends", lambda: self.processes[name].exit_code is not None)

    def forget_workers(self) -> None:
        """Of a run that is over."""
        self.history = [process for process in self.history if process is self.server or process is self.disk]

    def answers(self) -> Dict[str, int]:
        """Of each worker, since the server was started."""
        run = self.get()
        return {} if run is None else {worker.worker_id: worker.answers for worker in run.workers}

    # --- the client

    def stub(self, channel: Any = None) -> Any:
        from hfopt.v1 import run_service_pb2_grpc
        return run_service_pb2_grpc.RunServiceStub(channel or self._channel)

    def call(self, method: str, request: Any) -> Any:
        """Answers None when there is no server."""
        import grpc
        try:
            return getattr(self.stub(), method)(request, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return None
            raise Failure(f"{method}: {error.code().name}: {error.details()}") from error

    def get(self) -> Any:
        from hfopt.v1 import run_service_pb2
        answer = self.call("GetRun", run_service_pb2.GetRunRequest(name="runs/r"))
        return None if answer is None else answer.run

    def begin(self) -> None:
        """Starts everything, and the run once all workers are there. What is killed meanwhile is started again."""
        self.start("server", self.rules.get("server", ""))
        self.begin_run()

    def begin_run(self) -> None:
        from hfopt.v1 import run_service_pb2
        request = run_service_pb2.CreateRunRequest(run_id="r", options=self._options(), request_id="once")
        await_condition("CreateRun", lambda: self.call("CreateRun", request), self.restart_killed)
        for name in self.staff:
            self.start(name, self.rules.get(name, ""))

        def all_connected() -> bool:
            run = self.get()
            return run is not None and sum(worker.connected for worker in run.workers) == len(self.staff)
        await_condition("all workers are connected", all_connected, self.restart_killed)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch)
            self._watcher.start()
        await_condition("StartRun", lambda: self.call("StartRun", run_service_pb2.StartRunRequest(name="runs/r")))

    def resume(self) -> None:
        from hfopt.v1 import run_service_pb2
        self.call("ResumeRun", run_service_pb2.ResumeRunRequest(name="runs/r"))

    def _options(self) -> Any:
        from hfopt.v1 import run_pb2, vector_pb2
        # Everything is asked once, so that answers can be counted, and of the worker whose shard it is, also on a machine with other work.
        options = run_pb2.RunOptions(shards=self.model.shards, seed=3, repeat_every=0, disable_hedging=True, element_type=vector_pb2.ElementType.Value(self.model.element_type))
        if self.journal:
            options.journal_seconds = 0.001
        optimizer = options.optimizer
        optimizer.preset = run_pb2.OptimizerOptions.PRESET_PUBLISHED
        optimizer.conjugate_gradient.max_iterations = 6
        optimizer.conjugate_gradient.progress_tolerance = 0
        optimizer.preconditioner.lbfgs = run_pb2.PreconditionerOptions.LBFGS_FROZEN
        optimizer.preconditioner.memory = 4
        optimizer.samples.initial_gradient_examples = self.model.gradient_examples
        optimizer.samples.growth_factor = 1
        optimizer.samples.curvature_fraction = self.model.curvature_fraction
        # More than a step of a quadratic can give, so that every iteration has a line search.
        optimizer.line_search.sufficient_decrease = 0.9
        optimizer.line_search.max_tries = 4
        optimizer.line_search.batch = 2
        optimizer.stop.max_iterations = self.model.iterations
        return options

    def _watch(self) -> None:
        """Keeps the reports as they come, and goes on after the last one when the server was away."""
        import grpc
        from hfopt.v1 import run_pb2, run_service_pb2
        while not self._watch_end.is_set():
            request = run_service_pb2.WatchRunRequest(name="runs/r", after_iteration=max(self.seen, default=0))
            try:
                for event in self.stub(self._watch_channel).WatchRun(request, timeout=PATIENCE_SECONDS):
                    if event.HasField("iteration"):
                        number = event.iteration.iteration
                        if number != len(self.seen) + 1:
                            self.watch_errors.append(f"iteration {number} was told after {len(self.seen)}")
                        self.seen[number] = event.iteration.SerializeToString(deterministic=True)
                    if self._watch_end.is_set() or event.run.state == run_pb2.RUN_STATE_ENDED:
                        return
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    self.watch_errors.append(f"WatchRun: {error.code().name}: {error.details()}")
                    return
            self._watch_end.wait(0.01)

    def is_waiting_for_workers(self) -> bool:
        from hfopt.v1 import run_pb2
        run = self.get()
        return run is not None and run.state == run_pb2.RUN_STATE_WAITING_FOR_WORKERS

    def await_detail(self, text: str) -> Any:
        """The run, once its state's detail has the text."""
        def run() -> Any:
            run = self.get()
            return run if run is not None and text in run.state_detail else None
        return await_condition(f"the run says {text}", run)

    def iteration(self) -> int:
        """The last finished one; a large number when the run has ended."""
        from hfopt.v1 import run_pb2
        run = self.get()
        if run is None:
            return -1
        return sys.maxsize if run.state == run_pb2.RUN_STATE_ENDED else run.last_iteration.iteration

    def has_ended(self) -> bool:
        from hfopt.v1 import run_pb2
        run = self.get()
        if run is not None and run.state == run_pb2.RUN_STATE_FAILED:
            raise Failure(f"the run failed: {run.state_detail}")
        return run is not None and run.state == run_pb2.RUN_STATE_ENDED

    def await_moment(self, what: str, come: Callable[[], bool]) -> None:
        """A worker's moment does not come when its shard has gone to one that was faster."""
        def come_or_over() -> bool:
            if not come() and self.has_ended() and not come():
                raise Missed(what)
            return come()
        await_condition(what, come_or_over)

    def finish_run(self) -> None:
        """Follows the run to its end, starting again what is killed, and the workers to theirs."""
        await_condition("the run ends", self.has_ended, self.restart_killed)
        for name in self.staff:
            await_condition(f"worker {name} ends", lambda: self.processes[name].exit_code == 0, self.restart_killed)

    def finish(self) -> Result:
        """The same, looks at what has come of it, and ends the server in good order."""
        from hfopt.v1 import run_pb2
        self.finish_run()
        if self.has_ended():  # with the server there: it may have been killed after its last answer
            self._watcher.join()
        run = self.get()
        if run.termination.reason != run_pb2.Termination.REASON_ITERATION_BUDGET:
            raise Failure(f"the run ended otherwise: {run.termination}")
        reports = self.reports()
        parameters = self.parameters()
        self._watch_channel.close()
        self._channel.close()
        self.end_server()
        if self.watch_errors:
            raise Failure("; ".join(self.watch_errors))
        # The record adds up what the reports say, each once.
        if abs(run.seconds.total - sum(r.seconds.total for r in reports)) > 1e-9:
            raise Failure(f"the run has {run.seconds.total} s, its reports {[r.seconds.total for r in reports]}")
        return Result(parameters, [_without_times(r) for r in reports], run.best_held_out_loss, run.best_iteration,
                      sum(worker.answers for worker in run.workers), sum(r.reissued for r in reports), dict(self.seen),
                      {r.iteration: r.SerializeToString(deterministic=True) for r in reports})

    def end_server(self) -> None:
        self.server.signal(signal.SIGTERM)
        if await_condition("the server ends", lambda: self.server.exit_code is not None) and self.server.exit_code != 0:
            raise Failure(f"the server ended with {self.server.exit_code}:\n{self.server.output()}")

    def reports(self) -> List[Any]:
        from hfopt.v1 import run_service_pb2
        events = self.stub().WatchRun(run_service_pb2.WatchRunRequest(name="runs/r"), timeout=PATIENCE_SECONDS)
        return [event.iteration for event in events if event.HasField("iteration")]

    def parameters(self) -> bytes:
        from hfopt.v1 import run_service_pb2
        request = run_service_pb2.DownloadParametersRequest(
            name="runs/r", version=run_service_pb2.DownloadParametersRequest.VERSION_LAST)
        chunks: List[Tuple[int, bytes]] = []
        for message in self.stub().DownloadParameters(request, timeout=PATIENCE_SECONDS):
            if message.HasField("chunk"):
                chunks.append((message.chunk.offset, message.chunk.data))
        return b"".join(data for _, data in sorted(chunks))


def _without_times(report: Any) -> bytes:
    copy = type(report)()
    copy.CopyFrom(report)
    copy.ClearField("seconds")
    copy.ClearField("end_time")
    copy.ClearField("reissued")
    copy.ClearField("hedged")
    return copy.SerializeToString(deterministic=True)
