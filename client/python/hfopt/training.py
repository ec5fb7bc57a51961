"""fit and serve: a model trained from this process."""
from __future__ import annotations

import contextlib
import difflib
import functools
import html
import importlib
import inspect
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Deque, Dict, Iterable, List, Mapping, Optional, Sequence, Union

import numpy as np

from .errors import Error, Interrupted
from .local_server import LocalServer
from .model import Array, Model, element_types, has_initial_parameters, is_model
from .options import run_options, short_name
from .parameter_file import save_parameters
from .progress import Progress, make_progress, table
from .run_client import Parameters, RunClient, flatten
from .security import Security
from .v1 import run_pb2
from .worker import Finished, Worker
from .worker_processes import WorkerProcesses, make_model

Report = Dict[str, Any]

_LOCAL_RUN = "fit"  # id of the run in a directory of its own
_NO_OTHERS = 86400.0  # seconds of lease where nobody else could take over
_REQUEST = "hfopt.fit"  # makes creating a run again answer the one that is there


class History(List[Report]):
    """One report for each iteration: a dict of numbers, with the names of hfopt.v1.IterationReport, nested ones joined
    by points ("held_out_loss", "metrics.errors", "cost.example_passes", "seconds.total", ...)."""

    def to_frame(self) -> Any:
        """As a pandas.DataFrame, indexed by the iteration."""
        import pandas
        frame = pandas.DataFrame(list(self))
        return frame.set_index("iteration") if len(frame) else frame


@dataclass
class Result:
    """What a training came to."""
    parameters: Array  # those of the lowest held-out loss: 1-D, in the run's element type
    iteration: int  # after which they were
    held_out_loss: float  # at them, a mean over the held-out examples that were looked at: all of them once samples have grown to all data
    reason: str  # why it ended: "converged", "held_out_stalled", "target_reached", "interrupted", ...
    detail: str  # the same in words
    history: History  # a report for each iteration
    seconds: float  # of wall time, over all processes that ran this run
    run_id: str  # at its server
    model: Model = field(repr=False)
    directory: Optional[str] = None  # where the run lies; None when it is gone, or on a remote server

    def save(self, path: Any) -> None:
        """Writes the parameters as safetensors, tensor "theta": see `hfopt.load_parameters`."""
        save_parameters(path, Parameters(self.parameters, self.iteration, self.held_out_loss),
                        {"hfopt.run": self.run_id})

    def __repr__(self) -> str:
        return (
            f"<hfopt.Result: {self.reason.replace('_', ' ')} ({self.detail}); held-out loss {self.held_out_loss:.6g} "
            f"at iteration {self.iteration} of {len(self.history)}, {len(self.parameters)} parameters, "
            f"{self.seconds:.1f} s>")

    def _repr_html_(self) -> str:
        seconds = np.cumsum([report["seconds.total"] for report in self.history]).tolist()
        return (
            f"<p><b>{html.escape(self.reason.replace('_', ' '))}</b>: {html.escape(self.detail)}<br>held-out loss "
            f"{self.held_out_loss:.6g} at iteration {self.iteration} of {len(self.history)}, {len(self.parameters)} "
            f"parameters, {self.seconds:.1f} s</p>{table(self.history[-10:], seconds[-10:])}")


class TrainingRun:
    """A run as callbacks see it. Made by `fit`."""

    def __init__(self, client: RunClient, run_id: str):
        self.run_id, self._client = run_id, client

    def parameters(self, version: Union[str, int] = "last") -> Array:
        """Those after the last finished iteration, or the "best"."""
        return self._client.download_parameters(self.run_id, version).theta

    def stop(self) -> None:
        """Ends the run: `fit` returns with the reason "cancelled" and the best parameters until now. One that has ended
        meanwhile is left as it is."""
        try:
            self._client.cancel(self.run_id)
        except Error as error:
            if self._client.get(self.run_id).state != run_pb2.RUN_STATE_ENDED:
                raise error


Callback = Callable[[Report, TrainingRun], Any]


def fit(model: Any, loss: Any = None, train_data: Any = None, heldout_data: Any = None, *, preset: Optional[str] = None,
        options: Optional[Mapping[str, Any]] = None, dtype: Any = None, seed: int = 0, shards: Optional[int] = None,
        max_iterations: Optional[int] = None, target_loss: Optional[float] = None, max_seconds: Optional[float] = None,
        initial_parameters: Any = None, directory: Any = None, resume: Optional[bool] = None,
        workers: Optional[int] = None, server: Optional[str] = None, run: Optional[str] = None,
        worker_id: Optional[str] = None, lease_seconds: Optional[float] = None, security: Security = Security(),
        callbacks: Sequence[Callback] = (), progress: bool = True, **adapter: Any) -> Result:
    """Trains a model and returns when the training has ended.

    What is trained
      model         an `hfopt.Model`; or a torch.nn.Module, or a function of JAX with its `params`:
                    `hfopt.torch.as_model` and `hfopt.jax.as_model` make a model of these, with `loss`, `train_data`,
                    `heldout_data` and any further keywords. A module has the parameters of the result afterwards,
                    after Ctrl-C the best until then.

    How
      preset        "accelerated" (growing samples, short solves: learning from much data; the default), "deterministic"
                    (all data, long solves: ill-conditioned least squares) or "published" (Kingsbury 2012: the
                    baseline).
      options       any option of the optimizer by name, as `hfopt train --set` has them: {"preconditioner.lbfgs":
                    "frozen"}; `hfopt.option_names()` lists them, core/optimizer_options.h explains them.
      dtype         "float32" or "float64", of those that the model has; by default float64 for the preset
                    "deterministic", and otherwise what the model prefers: float64 for a module or `params` of nothing
                    but float64 (in JAX with 64 bits enabled), float32 for others.
      seed          of the model's initial parameters, unless `initial_parameters` are given: a vector.
      shards        logical shards of the data, 1 or as many as `workers`. The result depends on it, and on nothing else
                    about workers.
      max_iterations, target_loss (a mean, on all held-out data), max_seconds: when to end.

    Where
      directory     of the private server: checkpoints, log. By default a temporary one, removed at the end. Given a
                    directory that holds a training with the same options, `fit` goes on with it. `resume=True` demands
                    one and takes its options instead of those given here; `resume=False` demands that there is none.
                    A model of another `num_parameters` or `signature` is refused. Models of functions tell their
                    data apart by the `signature` that you give them alone.
      workers       how many processes of this machine compute, this one among them. `model` is then a function without
                    arguments that makes an `hfopt.Model` in each, defined at the top level of a module, such as
                    functools.partial(MyModel, folder). They are spawned, so a script calls `fit` under `if __name__ ==
                    "__main__":`, and end with this process. Give each its share of the cores (OMP_NUM_THREADS).
      server        "host:port" of a running server instead. Processes that name the same `run` there share its work:
                    give each the same arguments and `shards` of at least their number. `worker_id` is stable over
                    restarts, and each process's own.
      lease_seconds silence after which one of several processes loses its work to others, by default what the server
                    says. The lease is renewed while the model computes, unless it holds Python's lock all the time.
      security      for such a server: TLS, certificates, a token.

    callbacks       each is called as callback(report, run) after every iteration, with its report (an element of
                    Result.history) and a `TrainingRun`; in this thread, between evaluations of the model, so the next
                    iteration may be under way.
    progress        whether it is shown; on standard error, or in the notebook.

    Ctrl-C stops a training so that it can be gone on with, and raises hfopt.Interrupted, a KeyboardInterrupt that says
    how. Raises hfopt.Error when the run failed or the server cannot be had; ValueError for options.
    """
    module, others = model, None
    if shards is not None and shards < 1:
        raise ValueError(f"shards is {shards}; give 1 or more")
    if workers is not None:
        if workers < 1 or (shards is not None and shards < workers):
            raise ValueError(f"workers is {workers}, shards is {shards}; give 1 worker or more, and a shard for each")
        others, model = functools.partial(WorkerProcesses, model, workers - 1), make_model(model)
    model = _as_model(model, loss, train_data, heldout_data, adapter)
    alone = server is None and workers in (None, 1)
    if dtype is None:
        possible = element_types(model)
        dtype = "float64" if preset == "deterministic" and "float64" in possible else possible[0]
    wanted = run_options(preset=preset, dtype=dtype, shards=shards or workers or 1, seed=seed,
                         max_iterations=max_iterations, target_loss=target_loss, max_seconds=max_seconds,
                         options=options, lease_seconds=_NO_OTHERS if alone else lease_seconds)
    wanted.num_parameters = model.num_parameters
    if not isinstance(callbacks, Iterable) or not all(callable(callback) for callback in callbacks):
        raise TypeError(f"callbacks is {callbacks!r}; it must be a sequence of functions of a report and the run: "
                        "callbacks=[f]")
    training = _Training(model, wanted, initial_parameters, resume, callbacks, make_progress(progress))
    training.others = others or training.others
    if server is not None and directory is not None:
        raise ValueError(f"server and directory are both given: the runs of {server} lie in its own directory")

    def take(result: Optional[Result]) -> None:
        if result is not None and _is_torch_module(module):
            importlib.import_module("hfopt.torch").load(module, result.parameters)

    try:
        if server is None:
            result = training.in_directory(None if directory is None else os.fspath(directory))
        else:
            training.security = security
            run = run or f"fit-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            result = training.on_server(server, run, worker_id)
    except Interrupted as stopped:
        take(stopped.result)
        raise
    take(result)
    return result


def serve(model: Model, run: str, server: str = "localhost:7447", worker_id: Optional[str] = None,
          security: Security = Security(), **worker_options: Any) -> Finished:
    """Works for a run of a server until it ends, with a model and as `worker_id`; `hfopt.Worker` says what these are
    and has the other options. `security`: TLS, certificates, a token. The run is created, started and watched
    elsewhere, for example by `hfopt run create`. Ctrl-C leaves; what is done then is done by other workers, or
    waits for this one."""
    return Worker(model, run, worker_id, **worker_options).run(server, security)


def _as_model(model: Any, loss: Any, train_data: Any, heldout_data: Any, options: Dict[str, Any]) -> Model:
    if is_model(model):
        _refuse_unknown(options, ["params"])
        given = [
            name for name, value in (("loss", loss), ("train_data", train_data), ("heldout_data", heldout_data))
            if value is not None
        ]
        if given + list(options):
            raise TypeError(
                f"fit: {', '.join(given + list(options))} cannot be given with a model that has its own loss and data")
        own: Model = model
        return own
    library = "torch" if _is_torch_module(model) else "jax" if callable(model) and "jax" in sys.modules else None
    if library:
        as_model: Callable[..., Model] = importlib.import_module(f"hfopt.{library}").as_model
        _refuse_unknown(options, [*inspect.signature(as_model).parameters])
        return as_model(model, loss=loss, train_data=train_data, heldout_data=heldout_data, **options)
    raise TypeError(
        f"fit: {type(model).__name__} is neither an hfopt.Model nor a torch.nn.Module nor, with JAX imported, a "
        "function. For functions of NumPy arrays see hfopt.numpy.as_model and hfopt.least_squares")


def _refuse_unknown(given: Iterable[str], of_adapter: Sequence[str]) -> None:
    known = [*inspect.signature(fit).parameters, *of_adapter]
    for name in given:
        near = difflib.get_close_matches(name, known, 1)
        if name not in known:
            raise TypeError(f"fit: there is no argument {name}" + (f"; do you mean {near[0]}?" if near else ""))


def _say_with(error: Exception, message: str) -> None:
    """Adds a message to an error that is not ours; beside it before Python 3.11, which has notes."""
    if hasattr(error, "add_note"):
        error.add_note(message)
    else:
        print(message, file=sys.stderr)


def _is_torch_module(model: Any) -> bool:
    return "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module)


class _Training:
    def __init__(self, model: Model, options: run_pb2.RunOptions, initial_parameters: Any, resume: Optional[bool],
                 callbacks: Sequence[Callback], progress: Progress):
        if initial_parameters is None and not has_initial_parameters(model):
            raise ValueError("the model has no initial parameters of its own; give initial_parameters")
        if initial_parameters is not None and np.shape(initial_parameters) != (model.num_parameters,):
            raise ValueError(f"initial_parameters has the shape {np.shape(initial_parameters)}; the model needs "
                             f"({model.num_parameters},)")
        self.model, self.options, self.initial_parameters = model, options, initial_parameters
        self.resume, self.callbacks, self.progress = resume, callbacks, progress
        self.history, self.remote, self.security = History(), False, Security()
        # Processes that work beside this one, made of the worker, the server's address, and security.
        self.others: Callable[..., ContextManager[Any]] = lambda *_: contextlib.nullcontext()

    def in_directory(self, directory: Optional[str]) -> Result:
        temporary = directory is None
        if directory is None:
            directory = tempfile.mkdtemp(prefix="hfopt-")
        os.makedirs(directory, exist_ok=True)
        again = f"To go on: hfopt.fit(..., directory={directory!r}, resume=True) with the same model and data"
        keep = not temporary
        worker = Worker(self.model, _LOCAL_RUN, "fit")

        def fail(error: Error) -> None:
            def raise_it() -> None:
                raise error
            worker.call_soon(raise_it)

        try:
            with LocalServer(directory, fail) as server, RunClient(server.address) as client:
                try:
                    result = self._train(client, worker, _LOCAL_RUN)
                except Error as error:
                    failure = server.failure() if error.code == "UNAVAILABLE" else None
                    raise failure or error
                except KeyboardInterrupt:
                    keep = True
                    self.progress.note("stopping ...")
                    try:
                        client.pause(_LOCAL_RUN)
                    except Error:
                        pass  # the end of its server does the same
                    message = f"stopped. {again}"
                    self.progress.note(message)
                    raise Interrupted(message, directory, self._partial_result(client, _LOCAL_RUN, directory)) from None
        except Exception as error:
            keep = keep or bool(self.history)
            if keep and isinstance(error, Error):
                raise Error(f"{error}\n{again}", error.code) from error.__cause__
            if keep:
                _say_with(error, again)
            raise
        finally:
            self.progress.end()
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
        result.directory = None if temporary else directory
        return result

    def on_server(self, address: str, run_id: str, worker_id: Optional[str]) -> Result:
        worker, self.remote = Worker(self.model, run_id, worker_id), True
        with RunClient(address, security=self.security) as client:
            again = f"To go on: hfopt.fit(..., server={address!r}, run={run_id!r})"
            try:
                return self._train(client, worker, run_id)
            except Error:
                raise
            except Exception as error:  # of a callback: the run waits for a worker
                _say_with(error, again)
                raise
            except KeyboardInterrupt:
                message = f"left run {run_id} at {address}, which waits for workers. {again}"
                self.progress.note(message)
                raise Interrupted(message, None, self._partial_result(client, run_id, None)) from None
            finally:
                self.progress.end()

    def _train(self, client: RunClient, worker: Worker, run_id: str) -> Result:
        run = self._open(client, run_id)
        if run.HasField("model"):  # the server looks at workers, of which a run that has ended takes none
            for name, of_run, of_this in (("num_parameters", run.model.num_parameters, self.model.num_parameters),
                                          ("signature", run.model.signature, self.model.signature)):
                if of_run != of_this:
                    raise Error(
                        f"the training there is of another model or other data: its {name} is {of_run}, that of these "
                        f"is {of_this}; go on with its own, or train these elsewhere", "FAILED_PRECONDITION")
        self.progress.begin(run_id, run.options.optimizer.stop.max_iterations)
        watcher = _Watcher(client, worker, run, self)
        try:
            if run.state != run_pb2.RUN_STATE_ENDED:
                with self.others(worker, client.address, self.security):
                    worker.run(client.address, self.security)
        except BaseException:
            watcher.stopped = True
            raise
        watcher.finish()
        run = client.get(run_id)
        if run.state == run_pb2.RUN_STATE_FAILED:
            raise Error(f"the run failed: {run.state_detail}") from worker.model_error
        reason = short_name(run_pb2.Termination.Reason.DESCRIPTOR, run.termination.reason)
        return self._result(client, run, reason, run.termination.detail)

    def _open(self, client: RunClient, run_id: str) -> run_pb2.Run:
        """The run, created if the server does not know it, and on its way unless it has ended."""
        try:
            old = client.get(run_id)
        except Error as error:
            if error.code != "NOT_FOUND":
                raise
            old = None
        if self.resume is True and old is None:
            raise Error("resume: there is no training to go on with; resume=None begins one where there is none",
                        "NOT_FOUND")
        if self.resume is False and old is not None:
            raise Error("resume: there is a training already; choose another place, or resume=True to go on with it",
                        "ALREADY_EXISTS")
        if self.resume is True:
            run = old
        else:
            try:
                run = client.create(run_id, self.options, _REQUEST)
            except Error as error:
                if error.code != "ALREADY_EXISTS":
                    raise
                raise Error(f"there is a training with other options already: {error}\n"
                            "resume=True goes on with it as it was begun", error.code) from None
        if run.state == run_pb2.RUN_STATE_CREATED:
            if self.initial_parameters is not None:
                client.upload_parameters(run_id, self.initial_parameters)
            try:
                return client.start(run_id)
            except Error as error:  # another process that shares the run may have been faster
                if error.code != "FAILED_PRECONDITION":
                    raise
                return client.get(run_id)
        if run.state in (run_pb2.RUN_STATE_PAUSED, run_pb2.RUN_STATE_FAILED):
            return client.resume(run_id)
        return run

    def _partial_result(self, client: RunClient, run_id: str, directory: Optional[str]) -> Optional[Result]:
        try:
            run = client.get(run_id)
            result = self._result(client, run, "interrupted", f"after iteration {run.last_iteration.iteration}")
        except Error:
            return None  # before the first iteration
        result.directory = directory
        return result

    def _result(self, client: RunClient, run: run_pb2.Run, reason: str, detail: str) -> Result:
        run_id = run.name.split("/", 1)[1]
        try:
            best = client.download_parameters(run_id, "best")
        except Error as error:
            if error.code not in ("NOT_FOUND", "FAILED_PRECONDITION"):
                raise
            best = client.download_parameters(run_id, "last")  # of a run without an iteration
        return Result(best.theta, best.iteration, best.held_out_loss, reason, detail, self.history, run.seconds.total,
                      run_id, self.model)


class _Watcher:
    """Follows a run in a thread of its own, while another one computes. Callbacks are left to that one."""

    def __init__(self, client: RunClient, worker: Worker, run: run_pb2.Run, training: _Training):
        self._client, self._worker, self._training = client, worker, training
        self._handle = TrainingRun(client, worker.run_id)
        self._shown = run.last_iteration.iteration  # those before are in the history only
        self._seconds, self._last_note = 0.0, ""
        self._reports: Deque[Report] = deque()  # for the callbacks
        self.stopped = False
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._watch, name="hfopt-watcher", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the last report of a run that is over, and for its callbacks."""
        self._thread.join()
        if self._error:
            raise self._error
        self._call_back()

    def _watch(self) -> None:
        try:
            for event in self._client.watch(self._worker.run_id, stopped=lambda: self.stopped):
                if self.stopped:
                    return
                if isinstance(event, run_pb2.IterationReport):
                    self._on_iteration(flatten(event))
                elif event.state == run_pb2.RUN_STATE_WAITING_FOR_WORKERS and self._training.remote:
                    self._note(f"run {self._worker.run_id} waits: {event.state_detail}")
                elif event.state == run_pb2.RUN_STATE_FAILED:
                    self._worker.leave()
        except BaseException as error:
            self._error = error
            self._worker.call_soon(self._raise)

    def _on_iteration(self, report: Report) -> None:
        self._training.history.append(report)
        self._seconds += report["seconds.total"]
        if report["iteration"] > self._shown:
            self._training.progress.show(report, self._seconds)
            if self._training.callbacks:
                self._reports.append(report)
                self._worker.call_soon(self._call_back)

    def _call_back(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            for callback in self._training.callbacks:
                callback(report, self._handle)

    def _note(self, text: str) -> None:
        if text != self._last_note:
            self._last_note = text
            self._training.progress.note(text)

    def _raise(self) -> None:
        assert self._error is not None
        raise self._error
