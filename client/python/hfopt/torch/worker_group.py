"""Several processes under torch.distributed as one worker of a run."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import torch
import torch.distributed as distributed

from .._adapter import Linearization
from ..errors import Error
from ..evaluator import Evaluated, Evaluation, Evaluator, Key, Vectors, vector_names
from ..model import Array, Model, element_types, has_initial_parameters, has_second_moment, weight_of
from ..security import Security
from ..v1 import evaluation_pb2
from ..worker import Finished, Worker

_TIMEOUT = 1800.0  # seconds, that of torch.distributed


class WorkerGroup(Worker):
    """A `Worker` whose evaluations are computed by all processes of torch.distributed, its ranks. Each calls this,
    under torchrun or after torch.distributed.init_process_group, with an equal model that has all the data:

        WorkerGroup(model, run="digits", worker_id="group-1").run("localhost:7447")

    Rank 0 alone speaks with the server, for which the group is one worker. It sends parameters and directions to the
    other ranks once, and then requests by name. Each rank computes the sums over its contiguous part of the request's
    window, number r of K that of the positions floor(r count / K) to floor((r + 1) count / K); they are added up at
    rank 0. So the answers are those of a single process to rounding, and have the same bits each time for the same K.

    model      any `hfopt.Model`, on each rank's own device. It is not called where a rank's part is empty
    run, worker_id  as `Worker` has them. The id has to be stable over restarts, when rank 0 may be elsewhere
    timeout    seconds that a rank may be silent, longer than the longest evaluation. While rank 0 waits for the server,
               it tells the others so four times in it
    backend    of torch.distributed, for vectors: by default "nccl" if the model is an hfopt.torch.TorchModel on a GPU,
               and "gloo" otherwise. Everything else goes through Gloo
    options    further ones of `Worker`; the same on all ranks, but `log`, which is rank 0's

    An exception of the model on any rank is the group's answer, with the rank's number. When a rank ends or is silent,
    `run` raises hfopt.Error on the others: start all of them again, as torchrun --max-restarts does. They take the
    place of the old ones, and requests that were not answered are computed again.

    Raises hfopt.Error when the ranks' models differ. Blocks until all ranks are there.
    """

    def __init__(self, model: Model, run: str, worker_id: str, *, timeout: float = _TIMEOUT,
                 backend: Optional[str] = None, max_linearizations: int = 64, **options: Any):
        device = getattr(model, "device", None)
        device = device if isinstance(device, torch.device) else torch.device("cpu")
        if backend is None:
            backend = "nccl" if device.type == "cuda" and distributed.is_nccl_available() else "gloo"
        self._ranks = _Ranks(timeout)
        self.rank = self._ranks.rank
        facts = {"num_parameters": model.num_parameters, "num_examples": tuple(model.num_examples),
                 "signature": model.signature, "element_types": element_types(model),
                 "has_second_moment": has_second_moment(model), "backend": backend,
                 "max_linearizations": max_linearizations}
        with _errors():
            self._ranks.check_equal(facts)
        self._ranks.open(backend, device)
        self._shared = _SharedModel(model, self._ranks)
        super().__init__(self._shared, run, worker_id, max_linearizations=max_linearizations, **options)

    def run(self, address: str, security: Security = Security()) -> Finished:
        """On all ranks: blocks until the run ends or the group has left, as `Worker.run` does. `leave` and `call_soon`
        are for rank 0; on the others they do nothing."""
        with _errors():
            finished = self._follow() if self.rank else self._lead(address, security)
        self._ranks.close()
        return finished

    def _make_evaluator(self, max_linearizations: int) -> Evaluator:
        return (Evaluator if self.rank else _LeadingEvaluator)(self._shared, max_linearizations)

    def _lead(self, address: str, security: Security) -> Finished:
        over = threading.Event()
        waker = threading.Thread(target=self._keep_awake, args=(over, ), name="hfopt-waker", daemon=True)
        waker.start()
        finished, failure = None, "it was interrupted"
        try:
            finished = super().run(address, security)
            return finished
        except Exception as error:
            failure = str(error)
            raise
        finally:
            over.set()
            waker.join()
            if not self._ranks.broken:
                self._ranks.tell("end", finished, failure)

    def _keep_awake(self, over: threading.Event) -> None:
        while not over.wait(self._ranks.timeout / 4):
            self.call_soon(lambda: self._ranks.tell("wait"))

    def _follow(self) -> Finished:
        vectors: Vectors = {}
        while True:
            kind, *content = self._ranks.listen()
            if kind == "evaluate":
                encoded, dtype, new = content
                for name in new:
                    vectors[name] = self._ranks.receive(self.model.num_parameters, dtype)
                request = evaluation_pb2.EvaluationRequest.FromString(encoded)
                named = {name: vectors[name] for name in vector_names(request)}
                self._evaluator.evaluate(Evaluation(request, named), dtype)
            elif kind == "forget":
                released, stale = content
                for name in released:
                    del vectors[name]
                self._evaluator.drop(stale)
            elif kind == "end":
                finished: Optional[Finished] = content[0]
                if finished is None:
                    raise Error(f"rank 0: {content[1]}")
                return finished


class _Broken(BaseException):
    """A rank is gone or out of step. No Exception, so that it is not taken for one of the model's, and answered."""


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """For callers: hfopt.Error in the place of _Broken."""
    try:
        yield
    except _Broken as broken:
        raise Error(str(broken)) from broken.__cause__


class _Ranks:
    """What the processes say to one another. All call the same functions in the same order: from one thread, and, when
    the group serves, what `tell` at rank 0 makes the others do."""

    def __init__(self, timeout: float):
        if not distributed.is_initialized():
            _initialize()
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()
        self.timeout = timeout
        self.broken = False
        self._groups = [distributed.new_group(timeout=datetime.timedelta(seconds=timeout), backend="gloo")]
        self._control = self._vectors = self._groups[0]

    def open(self, backend: str, device: torch.device) -> None:
        """How vectors go. Before, they cannot."""
        self._device = torch.device("cpu") if backend == "gloo" else device
        if backend != "gloo":
            self._vectors = distributed.new_group(timeout=datetime.timedelta(seconds=self.timeout), backend=backend)
            self._groups.append(self._vectors)

    def close(self) -> None:
        for group in self._groups:
            distributed.destroy_process_group(group)

    def check_equal(self, facts: Dict[str, Any]) -> None:
        for rank, other in enumerate(self.exchange(facts)):
            for name, value in facts.items():
                if other[name] != value:
                    raise Error(f"rank {self.rank} and rank {rank} of the worker group differ in {name}: {value} and "
                                f"{other[name]}; all need the same model and data")

    def tell(self, kind: str, *content: Any) -> None:
        """From rank 0, to `listen` at all others."""
        with self.in_step():
            distributed.broadcast_object_list([(kind, *content)], 0, group=self._control)

    def listen(self) -> Tuple[Any, ...]:
        message: List[Any] = [None]
        with self.in_step():
            distributed.broadcast_object_list(message, 0, group=self._control)
        heard: Tuple[Any, ...] = message[0]
        return heard

    def send(self, vector: Array) -> None:
        """From rank 0, to `receive` at all others."""
        with self.in_step():
            distributed.broadcast(torch.tensor(vector, device=self._device), 0, group=self._vectors)

    def receive(self, size: int, dtype: np.dtype[Any]) -> Array:
        with self.in_step():
            tensor = torch.from_numpy(np.empty(size, dtype)).to(self._device)
            distributed.broadcast(tensor, 0, group=self._vectors)
            vector: Array = tensor.cpu().numpy()
        vector.flags.writeable = False
        return vector

    def exchange(self, value: Any) -> List[Any]:
        """The values of all ranks, at all of them, in their order."""
        values: List[Any] = [None] * self.size
        with self.in_step():
            distributed.all_gather_object(values, value, group=self._control)
        return values

    def add_up(self, vector: Array) -> Array:
        """The sum over the ranks at rank 0; of no use at the others. The vector is overwritten."""
        with self.in_step():
            tensor = torch.from_numpy(vector).to(self._device)
            distributed.reduce(tensor, 0, group=self._vectors)
            total: Array = tensor.cpu().numpy()
        return total

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.broken = True
            if not isinstance(error, Exception):
                raise
            raise _Broken(
                f"rank {self.rank} of {self.size}: the worker group broke: another rank has ended, or was silent for "
                f"{self.timeout:g} s ({error}). All of them have to be started again, as torchrun --max-restarts does"
            ) from error


def _initialize() -> None:
    """torch.distributed, as torchrun's environment has it."""
    environment = os.environ
    if "RANK" not in environment:
        raise Error("a worker group is of the processes of torch.distributed: start this program with torchrun, or "
                    "call torch.distributed.init_process_group before")
    store, rank, size = next(distributed.rendezvous("env://"))
    store.set_timeout(datetime.timedelta(seconds=_TIMEOUT))
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's own store, which PyTorch 2 offers, still has the addresses of the processes before a restart. How
        # often they were started tells them apart, but on one machine only: each torchrun counts for itself.
        one_machine = environment["LOCAL_WORLD_SIZE"] == environment["WORLD_SIZE"]
        if not one_machine and environment["TORCHELASTIC_MAX_RESTARTS"] != "0":
            raise Error("after a restart on several machines, ranks may find the addresses of those before in "
                        "torchrun's store; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for each torchrun, with "
                        "--rdzv-backend c10d")
        store = distributed.PrefixStore(environment["TORCHELASTIC_RESTART_COUNT"], store)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)


class _LeadingEvaluator(Evaluator):
    """At rank 0: has the others evaluate what it evaluates, with what it keeps."""

    model: _SharedModel

    def __init__(self, model: _SharedModel, max_linearizations: int):
        super().__init__(model, max_linearizations)
        self._ranks = model.ranks
        self._sent: Set[bytes] = set()  # names of vectors that the others have

    def forget(self, resident: Vectors) -> List[Key]:
        stale, released = super().forget(resident), self._sent - resident.keys()
        self._sent -= released
        if stale or released:
            self._ranks.tell("forget", released, stale)
        return stale

    def evaluate(self, evaluation: Evaluation, dtype: np.dtype[Any]) -> Evaluated:
        request = evaluation.request
        if request.HasField("initial_parameters"):  # nothing to share
            return super().evaluate(evaluation, dtype)
        new = [name for name in evaluation.vectors if name not in self._sent]
        with self._ranks.in_step():
            self._ranks.tell("evaluate", request.SerializeToString(), dtype, new)
            for name in new:
                self._ranks.send(evaluation.vectors[name])
            self._sent.update(new)
            return super().evaluate(evaluation, dtype)


class _SharedModel:
    """The sums of a model over some examples, each rank's over its part of them, added up at rank 0. All ranks call the
    same functions; numbers are the same at all of them, and vectors of use at rank 0 alone."""

    def __init__(self, model: Model, ranks: _Ranks):
        self._model, self.ranks = model, ranks
        self.num_parameters, self.num_examples = model.num_parameters, model.num_examples
        self.signature, self.element_types = model.signature, element_types(model)
        self.has_second_moment, self.has_initial_parameters = has_second_moment(model), has_initial_parameters(model)

    def initial_parameters(self, seed: int, dtype: Any) -> Array:
        return self._model.initial_parameters(seed, dtype)

    def loss(self, theta: Array, held_out: bool, indices: Array) -> Tuple[float, float, Dict[str, float]]:
        part = self._part(indices)

        def compute() -> Tuple[Any, List[Array]]:
            return (self._model.loss(theta, held_out, part) if len(part) else (0.0, 0.0, {})), []

        answers, _ = self._together(compute)
        metrics: Dict[str, float] = {}
        for answer in answers:
            for name, value in (answer[2] or {}).items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
        return sum(float(a[0]) for a in answers), sum(float(a[1]) for a in answers), metrics

    def gradient(self, theta: Array, held_out: bool, indices: Array, squares: bool = False
                 ) -> Tuple[float, float, Array, Optional[Array]]:
        part = self._part(indices)

        def compute() -> Tuple[Any, List[Array]]:
            if not len(part):
                return (0.0, 0.0), [np.zeros_like(theta) for _ in range(1 + squares)]
            loss, weight, gradient, moment = self._model.gradient(theta, held_out, part, squares)
            vectors = [self._vector(gradient, "gradient", theta.dtype)]
            if squares:
                vectors.append(self._vector(moment, "sum of squared gradients", theta.dtype))
            return (float(loss), float(weight)), vectors

        answers, vectors = self._together(compute)
        return sum(a[0] for a in answers), sum(a[1] for a in answers), vectors[0], vectors[1] if squares else None

    def linearize(self, theta: Array, held_out: bool, indices: Array) -> Linearization:
        part = self._part(indices)
        own: List[Callable[[Array], Array]] = []

        def compute() -> Tuple[Any, List[Array]]:
            if not len(part):
                return 0.0, []
            own.append(self._model.linearize(theta, held_out, part))
            return weight_of(self._model, own[0], held_out, part), []

        weights, _ = self._together(compute)

        def product(v: Array) -> Array:
            def compute() -> Tuple[Any, List[Array]]:
                return None, [self._vector(own[0](v), "product", v.dtype) if own else np.zeros_like(v)]

            return self._together(compute)[1][0]

        return Linearization(product, None if None in weights else sum(weights))

    def _part(self, indices: Array) -> Array:
        rank, size, count = self.ranks.rank, self.ranks.size, len(indices)
        return indices[rank * count // size:(rank + 1) * count // size]

    def _together(self, compute: Callable[[], Tuple[Any, List[Array]]]) -> Tuple[List[Any], List[Array]]:
        """`compute` makes a rank's own numbers and vectors; this the numbers of all, and the sums of the vectors. An
        exception on one rank is raised on all."""
        numbers: Any = None
        vectors: List[Array] = []
        failure: Optional[Exception] = None
        try:
            numbers, vectors = compute()
        except Exception as error:
            failure = error
        answers = self.ranks.exchange((numbers, failure and f"{type(failure).__name__}: {failure}"))
        for rank, (_, reason) in enumerate(answers):
            if reason is not None:
                raise Error(f"rank {rank} of {self.ranks.size}: {reason}") from failure
        return [numbers for numbers, _ in answers], [self.ranks.add_up(vector) for vector in vectors]

    def _vector(self, vector: Any, what: str, dtype: np.dtype[Any]) -> Array:
        """One that may be overwritten."""
        array: Array = np.require(vector, dtype, ["C", "W"])
        if array.shape != (self.num_parameters, ):
            raise ValueError(f"the model's {what} has the shape {array.shape}; it must be ({self.num_parameters},)")
        return array
