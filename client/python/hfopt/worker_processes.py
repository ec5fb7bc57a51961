"""More processes of this machine that work for a run."""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Callable, List

from .errors import Error
from .model import Model, is_model
from .security import Security
from .worker import Worker

Factory = Callable[[], Model]


def make_model(factory: Factory) -> Model:
    """The factory's model. TypeError when the factory is none, or cannot be sent to another process."""
    if is_model(factory) or not callable(factory):
        raise TypeError(f"fit: with workers, model is a function that makes the model in each process, and not "
                        f"{type(factory).__name__}; for example functools.partial(MyModel, data_folder)")
    try:
        ForkingPickler.dumps(factory)
    except Exception as error:
        raise TypeError(f"fit: the function that makes the model cannot be sent to another process ({error}); define "
                        "it at the top level of a module") from None
    model = factory()
    if not is_model(model):
        raise TypeError(f"fit: the function that makes the model answered {type(model).__name__}, not an hfopt.Model")
    return model


class WorkerProcesses:
    """Processes that each make a model and work for a run, until they are left. They are spawned, not forked, so that
    they share no threads or connections with this one, and end when it does, however it ends. One that dies leaves its
    work to the others after the run's lease."""

    def __init__(self, factory: Factory, count: int, worker: Worker, address: str, security: Security):
        context = multiprocessing.get_context("spawn")
        self._processes: List[BaseProcess] = [
            context.Process(target=_work, name=f"hfopt-worker-{i}", daemon=True,
                            args=(factory, worker.run_id, f"{worker.worker_id[:56]}-{i}", address, security))
            for i in range(2, count + 2)]

    def __enter__(self) -> WorkerProcesses:
        try:
            for process in self._processes:
                process.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.terminate()  # they hold nothing that is not to be had again
        for process in started:
            process.join()


def _work(factory: Factory, run: str, worker_id: str, address: str, security: Security) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        Worker(factory(), run, worker_id).run(address, security)
    except Error as error:
        raise SystemExit(f"{worker_id}: {error}") from None


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
