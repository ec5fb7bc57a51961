"""A worker: serves a run with a model, as the conversation in proto/hfopt/v1/evaluation_service.proto has it."""
from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import grpc
import numpy as np

from .errors import PERMANENT, Error, from_grpc
from .evaluator import Evaluated, Evaluation, Evaluator, Vectors, vector_names
from .model import Model, element_types, has_initial_parameters, has_second_moment
from .security import Security
from .shared_segment import SharedSegment, host_name
from .v1 import evaluation_service_pb2 as service_pb2
from .v1 import vector_pb2
from .wire import (BFLOAT16, DTYPES, ELEMENT_TYPES, ChunkSize, VectorAssembler, chunks_of, find_chunk, frame_chunk,
                   from_bfloat16, make_channel, to_bfloat16)

DRAINED = "DRAINED"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to reach the server
_FAREWELL = 5.0  # how long the server may take to close a session that the worker has left

# How long the thread that called `run` waits at a time, in seconds. A signal that reaches another thread, or this one
# on its way into the wait, does not end the wait, and Python runs the handler in the main thread only.
_LONGEST_WAIT = 0.2


@dataclass(frozen=True)
class Finished:
    """Why a worker's work ended: the name of the run's Termination.Reason, or DRAINED after `leave`."""
    reason: str  # "CONVERGED", "ITERATION_BUDGET", "DRAINED", ...
    detail: str  # in words


class _Offence(Exception):
    """The server broke the protocol."""


class _Session:
    """What belongs to one stream."""

    def __init__(self, hello: service_pb2.Hello):
        self.hello = hello
        self.welcomed = self.finished = self.over = False
        self.dtype: np.dtype[Any] = np.dtype("<f8")
        self.lease = 3.0  # seconds
        self.chunk_size = ChunkSize(self.lease)
        self.transfers: Dict[int, Tuple[bytes, VectorAssembler]] = {}
        self.from_server: Optional[SharedSegment] = None
        self.to_server: Optional[SharedSegment] = None
        self.shared: Set[bytes] = set()  # names of resident vectors in from_server
        self.result: Optional[Finished] = None


# Three threads, one lock:
#   - the reader dials, reads, and dials again; it alone decides how everything ends, by setting _outcome;
#   - a thread of gRPC asks _requests for what to write: answers and, when nothing was sent for a third of the lease, a
#     renewal;
#   - the thread that called `run` computes.
# _changed guards what they share, and is held neither in a call of gRPC that may block nor in a call of the model.
class Worker:
    """Serves one run with a model: dials the server, answers its requests, and dials again whenever the session breaks,
    without losing vectors that it holds or answers that it computed.

        Worker(model, run="digits", worker_id="host-1").run("localhost:7447")

    model      what is served: `hfopt.Model`
    run        id of the run to join
    worker_id  stable over restarts, one for each worker of a run: 1 to 63 of [a-z0-9-]; by default of host and process
    shards     logical shards whose data the model has; empty: any
    shared_memory       whether vectors may be handed over in shared memory by a server on this machine
    max_linearizations  kept at once; each is as large as the model makes it
    give_up_after       seconds without a lasting session after which `run` raises
    log        told, in one line for people, when a session begins, is lost or is tried again; called from threads of
               the worker
    """

    def __init__(self, model: Model, run: str, worker_id: Optional[str] = None, *, shards: Iterable[int] = (),
                 shared_memory: bool = True, max_linearizations: int = 64, give_up_after: float = 600.0,
                 log: Optional[Callable[[str], None]] = None):
        self.model, self.run_id, self.worker_id = model, run, worker_id or default_worker_id()
        for name, value in ("run", self.run_id), ("worker_id", self.worker_id):
            if not re.fullmatch("[a-z0-9-]{1,63}", value):
                raise ValueError(f"{name}: '{value}' is not 1 to 63 of [a-z0-9-]")
        training, held_out = model.num_examples
        if model.num_parameters <= 0 or training <= 0 or held_out <= 0:
            raise ValueError(
                f"the model has {model.num_parameters} parameters, {training} training examples and {held_out} "
                "held-out examples; it needs some")
        self.shards, self.shared_memory, self.give_up_after = tuple(shards), shared_memory, give_up_after
        self.incarnation = time.time_ns()
        self._log = log or (lambda line: None)
        self._evaluator = self._make_evaluator(max(1, max_linearizations))
        self._process: Optional[int] = None

        self._changed = threading.Condition()  # guards the following; its lock may be taken again by a signal handler
        self._resident: Vectors = {}
        self._released = False  # some of them, or replaced: linearizations that use them are to be dropped
        self._queue: Deque[Evaluation] = deque()  # not begun
        self._calls: Deque[Callable[[], None]] = deque()  # for the computing thread
        self._running: Optional[int] = None  # id of the request that is computed
        self._running_is_cancelled = False
        self._outbox: Deque[Evaluated] = deque()  # computed, not sent; the front may be on its way
        self._dtype: Optional[np.dtype[Any]] = None
        self._session: Optional[_Session] = None
        self._call: Any = None
        self._leaving = False
        self._outcome: Optional[Finished] = None
        self._error: Optional[BaseException] = None
        self.uses_shared_memory = False  # in the session that is, or was last

    def run(self, address: str, security: Security = Security()) -> Finished:
        """Blocks until the run ends or the worker has left. The model is called from this thread only. To be called
        once.

        Raises hfopt.Error when the server refuses for good (its message says why), and after `give_up_after`.
        """
        self._check_process()
        if self._process is not None:
            raise Error("a worker runs once; make a new one")
        self._process = os.getpid()
        with make_channel(address, security) as channel:  # made here, so that it belongs to the process that uses it
            reader = threading.Thread(target=self._converse, args=(channel, address, security), name="hfopt-reader",
                                      daemon=True)
            reader.start()
            try:
                self._compute()
            except BaseException:
                self.leave()
                self.leave()  # at once
                raise
            finally:
                while reader.is_alive():
                    reader.join(_LONGEST_WAIT)
        if self._error:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def leave(self) -> None:
        """Leaves: the running computation is finished and answered, requests not yet begun are left to other workers,
        and `run` returns DRAINED. A second call does not wait for the server any more. From any thread, and from a
        signal handler."""
        self._check_process()
        with self._changed:
            # An open session is left in good order; a half-open one has nothing to lose.
            call = self._call if self._leaving or self._session is None or not self._session.welcomed else None
            self._leaving = True
            self._changed.notify_all()
        if call is not None:
            call.cancel()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Has the computing thread call a function between two evaluations. What it raises ends `run`. From any
        thread."""
        with self._changed:
            self._calls.append(function)
            self._changed.notify_all()

    @property
    def model_error(self) -> Optional[BaseException]:
        """The last exception of the model, if there was one."""
        return self._evaluator.last_error

    def _make_evaluator(self, max_linearizations: int) -> Evaluator:
        return Evaluator(self.model, max_linearizations)

    def _check_process(self) -> None:
        if self._process not in (None, os.getpid()):
            raise Error(
                f"this worker runs in process {self._process}, and process {os.getpid()} was forked from it: "
                "connections do not survive a fork; make a worker of its own in the new process")

    # --- The computing thread

    def _compute(self) -> None:
        while True:
            function: Optional[Callable[[], None]] = None
            evaluation: Optional[Evaluation] = None
            with self._changed:
                # A signal handler may call `leave` between any two lines, in spite of the lock: it only sets flags.
                if self._leaving:
                    self._queue.clear()
                if not (self._outcome or self._error or self._released or self._queue or self._calls):
                    self._changed.wait(_LONGEST_WAIT)
                    continue
                if self._calls:
                    function = self._calls.popleft()
                elif self._outcome or self._error:
                    return
                elif self._released:
                    self._released = False
                    resident = dict(self._resident)
                else:
                    evaluation = self._queue.popleft()
                    self._running, self._running_is_cancelled = evaluation.request.id, False
                    dtype = self._dtype
            if function:
                function()
            elif evaluation is None:
                self._evaluator.forget(resident)
                resident = {}  # what is released later is not to be held here
            else:
                assert dtype is not None
                self._finish(evaluation.vectors, self._evaluator.evaluate(evaluation, dtype))

    def _finish(self, vectors: Vectors, evaluated: Evaluated) -> None:
        with self._changed:
            # A request that was queued before a vector was released or its session broke brings back what was dropped
            # then: it goes before the next one, which may name a vector of the same content in other memory.
            if any(self._resident.get(name) is not vector for name, vector in vectors.items()):
                self._released = True
            self._running = None
            if not self._running_is_cancelled:
                self._outbox.append(evaluated)
            self._changed.notify_all()

    # --- The thread of gRPC that writes

    def _requests(self, session: _Session) -> Iterator[bytes]:
        renewal = service_pb2.SessionRequest(lease_renewal=service_pb2.LeaseRenewal()).SerializeToString()
        drain = service_pb2.SessionRequest(drain=service_pb2.Drain()).SerializeToString()
        yield service_pb2.SessionRequest(hello=session.hello).SerializeToString()
        with self._changed:
            self._changed.wait_for(lambda: session.welcomed or session.over)
        if session.to_server is not None:
            yield service_pb2.SessionRequest(
                shared_memory_attached=service_pb2.SharedMemoryAttached()).SerializeToString()
        last_write, said_drain = time.monotonic(), False
        while True:
            message: Any = None
            with self._changed:
                while message is None:
                    left = last_write + session.lease / 3 - time.monotonic()
                    if session.over or session.finished:
                        return
                    if said_drain and self._running is None and not self._outbox:
                        self._cancel_after(_FAREWELL, session)
                        return  # closes our half: everything is said
                    if self._leaving and not said_drain:
                        said_drain, message = True, drain
                    elif self._outbox:
                        message = self._outbox[0]
                    elif left <= 0:
                        message = renewal
                    else:
                        self._changed.wait(left)
            if isinstance(message, Evaluated):
                yield from self._frames(session, message)
                with self._changed:
                    # An answer cut off by a broken stream is sent again in the next session.
                    if not session.over and self._outbox and self._outbox[0] is message:
                        self._outbox.popleft()
            else:
                yield message
            last_write = time.monotonic()

    def _frames(self, session: _Session, evaluated: Evaluated) -> Iterator[bytes]:
        """First the vectors, then the answer that names them."""
        for transfer, vector in evaluated.vectors:
            header = vector_pb2.VectorHeader(transfer=transfer, size=len(vector),
                                             element_type=ELEMENT_TYPES[vector.dtype.name])
            halves = to_bfloat16(vector) if evaluated.bfloat16 else None
            slot = None
            if session.to_server is not None:
                slot = session.to_server.write(vector if halves is None else from_bfloat16(halves))
            if slot is not None:
                header.slot = slot
            elif halves is not None:
                vector, header.element_type = halves, vector_pb2.ELEMENT_TYPE_BFLOAT16
            yield service_pb2.SessionRequest(vector_header=header).SerializeToString()
            if slot is None:
                for offset, data in chunks_of(vector, session.chunk_size):
                    yield frame_chunk(transfer, offset, data)
        yield service_pb2.SessionRequest(answer=evaluated.answer).SerializeToString()

    def _cancel_after(self, seconds: float, session: _Session) -> None:
        def cancel(call: Any = self._call) -> None:
            with self._changed:
                over = self._changed.wait_for(lambda: session.over, seconds)
            if not over:
                call.cancel()

        threading.Thread(target=cancel, name="hfopt-farewell", daemon=True).start()

    # --- The reader

    def _converse(self, channel: grpc.Channel, address: str, security: Security) -> None:
        try:
            outcome: Any = self._dial_until_the_end(channel, address, security)
        except BaseException as error:
            outcome = error
        with self._changed:
            if isinstance(outcome, BaseException):
                self._error = outcome
            else:
                self._outcome = outcome
            self._changed.notify_all()

    def _dial_until_the_end(self, channel: grpc.Channel, address: str, security: Security) -> Finished:
        open_session = channel.stream_stream("/hfopt.v1.EvaluationService/Session")  # of bytes: see wire.py
        pause, lost_since = _FIRST_PAUSE, None
        while True:
            session, begin = _Session(self._hello()), time.monotonic()
            error: Exception = Error("the server closed the session without a reason", "UNAVAILABLE")
            try:
                self._serve(session, open_session, security)
            except grpc.RpcError as e:
                error = from_grpc(e, f"run {self.run_id} at {address}")
            except _Offence as e:
                error = Error(f"run {self.run_id} at {address}: the server broke the protocol: {e}", "DATA_LOSS")
            if session.result:
                return session.result
            if isinstance(error, Error) and error.code in PERMANENT:
                raise error
            now = time.monotonic()
            if session.welcomed and now - begin > _LONGEST_PAUSE:
                lost_since, pause = None, _FIRST_PAUSE
            lost_since = now if lost_since is None else lost_since
            with self._changed:
                if self._leaving:
                    return Finished(DRAINED, "left the run as asked")
                if now - lost_since + pause > self.give_up_after:
                    raise Error(
                        f"run {self.run_id}: gave up, no lasting session for {self.give_up_after:g} s; the last error: "
                        f"{error}",
                        getattr(error, "code", None))
                self._log(
                    f"run {self.run_id}: {'lost the session' if session.welcomed else 'no session'}: {error}; dialling "
                    "again")
                self._changed.wait_for(lambda: self._leaving, pause * random.uniform(0.5, 1))
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _hello(self) -> service_pb2.Hello:
        training, held_out = self.model.num_examples
        hello = service_pb2.Hello(
            protocol_version=1, worker_id=self.worker_id, incarnation=self.incarnation, run_id=self.run_id,
            num_parameters=self.model.num_parameters, training_examples=training, held_out_examples=held_out,
            model_signature=self.model.signature, element_types=[ELEMENT_TYPES[t] for t in element_types(self.model)],
            shards=self.shards, second_moment=has_second_moment(self.model), sub_batches=True,
            initial_parameters=has_initial_parameters(self.model),
            bfloat16="float32" in element_types(self.model), host=host_name() if self.shared_memory else "")
        with self._changed:
            hello.held_vectors.extend(self._resident)
            pending: List[int] = [e.answer.request_id for e in self._outbox]
            if self._running is not None and not self._running_is_cancelled:
                pending.append(self._running)
            hello.pending_requests.extend(pending + [e.request.id for e in self._queue])
        return hello

    def _serve(self, session: _Session, open_session: Any, security: Security) -> None:
        """Dials and serves until the stream ends."""
        call = open_session(self._requests(session), metadata=security.metadata())
        with self._changed:
            self._session, self._call = session, call
            if self._leaving:
                call.cancel()
        try:
            for message in call:
                self._handle(session, message)
        except BaseException:
            call.cancel()
            raise
        finally:
            with self._changed:
                session.over = True
                self._session = self._call = None
                # Shared memory is of one session.
                for name in session.shared:
                    self._resident.pop(name, None)
                self._released = True
                self._changed.notify_all()

    def _handle(self, session: _Session, message: bytes) -> None:
        chunk = find_chunk(message)
        if chunk is not None:
            self._on_chunk(session, *chunk)
            return
        try:
            response = service_pb2.SessionResponse.FromString(message)
        except Exception:
            raise _Offence("a message that is no encoding of hfopt.v1.SessionResponse") from None
        kind = response.WhichOneof("message")
        if not session.welcomed and kind != "welcome":
            raise _Offence(f"its first message is {kind}, not welcome")
        if kind is not None:  # otherwise of a later version
            getattr(self, "_on_" + kind)(session, getattr(response, kind))

    def _on_welcome(self, session: _Session, welcome: service_pb2.Welcome) -> None:
        if session.welcomed:
            raise _Offence("a second welcome in one session")
        dtype = DTYPES.get(welcome.element_type)
        if dtype is None or dtype.name not in element_types(self.model):
            raise Error(
                f"run {self.run_id} uses the element type {'?' if dtype is None else dtype.name}, but this worker "
                f"computes in {', '.join(element_types(self.model))}", "FAILED_PRECONDITION")
        if not welcome.lease_seconds > 0:
            raise _Offence(f"welcome.lease_seconds is {welcome.lease_seconds}, not above 0")
        session.dtype, session.lease = dtype, min(max(welcome.lease_seconds, 0.003), 3600.0)
        session.chunk_size = ChunkSize(session.lease)
        way = self._share_memory(session, welcome)
        with self._changed:
            self._dtype, session.welcomed = dtype, True
            self.uses_shared_memory = session.to_server is not None
            self._changed.notify_all()
        self._log(f"run {self.run_id}: in session as {self.worker_id}, {welcome.shards} shards, vectors through {way}")

    def _share_memory(self, session: _Session, welcome: service_pb2.Welcome) -> str:
        if not welcome.HasField("shared_memory") or not self.shared_memory:
            return "gRPC"
        offer, size = welcome.shared_memory, self.model.num_parameters * session.dtype.itemsize
        if offer.to_worker.slot_bytes != size or offer.to_server.slot_bytes != size:
            return "gRPC, the shared memory that was offered is for vectors of another size"
        try:
            from_server = SharedSegment(offer.to_worker, writes=False)
            to_server = SharedSegment(offer.to_server, writes=True)
        except (OSError, ValueError) as error:
            return f"gRPC, shared memory cannot be had: {error}"
        session.from_server, session.to_server = from_server, to_server
        return "shared memory"

    def _on_vector_header(self, session: _Session, header: vector_pb2.VectorHeader) -> None:
        transfer = header.transfer
        if not header.name:
            raise _Offence(f"transfer {transfer}: the vector has no name")
        if transfer in session.transfers:
            raise _Offence(f"transfer {transfer}: begun twice")
        halves = (header.element_type == vector_pb2.ELEMENT_TYPE_BFLOAT16 and session.dtype == np.float32
                  and not header.HasField("slot"))
        if header.size != self.model.num_parameters or not (halves or DTYPES.get(header.element_type) == session.dtype):
            raise _Offence(f"transfer {transfer}: {header.size} elements of type {header.element_type}; expected "
                           f"{self.model.num_parameters} of {session.dtype.name}")
        if header.HasField("slot"):
            if session.from_server is None:
                raise _Offence(f"transfer {transfer}: in memory that is not shared")
            try:
                vector = session.from_server.vector(header.slot, session.dtype)
            except ValueError as error:
                raise _Offence(str(error)) from None
            with self._changed:
                self._keep(header.name, vector)
                session.shared.add(header.name)
        else:
            session.transfers[transfer] = header.name, VectorAssembler(transfer, header.size,
                                                                      BFLOAT16 if halves else session.dtype)

    def _on_vector_chunk(self, session: _Session, chunk: vector_pb2.VectorChunk) -> None:
        self._on_chunk(session, chunk.transfer, chunk.offset, memoryview(chunk.data))

    def _on_chunk(self, session: _Session, transfer: int, offset: int, data: memoryview) -> None:
        if transfer not in session.transfers:
            raise _Offence(f"transfer {transfer}: chunk without a header before it")
        name, assembler = session.transfers[transfer]
        try:
            complete = assembler.put(offset, data)
        except ValueError as error:
            raise _Offence(str(error)) from None
        if complete:
            del session.transfers[transfer]
            vector = assembler.vector
            if vector.dtype == BFLOAT16:
                vector = from_bfloat16(vector)
                vector.flags.writeable = False
            with self._changed:
                self._keep(name, vector)
                session.shared.discard(name)

    def _keep(self, name: bytes, vector: Any) -> None:
        if name in self._resident:
            self._released = True
        self._resident[name] = vector

    def _on_evaluation(self, session: _Session, request: Any) -> None:
        with self._changed:
            if request.id == self._running:
                self._running_is_cancelled = False  # cancelled, and then wanted after all
            known = (request.id == self._running or any(e.request.id == request.id for e in self._queue)
                     or any(e.answer.request_id == request.id for e in self._outbox))
            if known or self._leaving:
                return
            names = vector_names(request)
            missing = [name for name in names if name not in self._resident]
            if missing:
                raise _Offence(
                    f"request {request.id} names the vector {missing[0].hex()}, which is not here: it was never sent "
                    "or has been released")
            self._queue.append(Evaluation(request, {name: self._resident[name] for name in names}))
            self._changed.notify_all()

    def _on_cancel(self, session: _Session, cancel: service_pb2.Cancel) -> None:
        with self._changed:
            if self._running == cancel.request_id:
                self._running_is_cancelled = True
            self._queue = deque(e for e in self._queue if e.request.id != cancel.request_id)
            # The front of the outbox may be on its way; the server drops it by its id.
            if self._outbox:
                first, *others = self._outbox
                self._outbox = deque([first, *(e for e in others if e.answer.request_id != cancel.request_id)])

    def _on_release(self, session: _Session, release: service_pb2.Release) -> None:
        with self._changed:
            for name in release.vectors:
                self._resident.pop(name, None)
                session.shared.discard(name)
            self._released = True
            self._changed.notify_all()

    def _on_finished(self, session: _Session, finished: service_pb2.Finished) -> None:
        session.result = Finished(finished.reason, finished.detail)
        with self._changed:
            session.finished = True
            self._changed.notify_all()


def default_worker_id() -> str:
    host = re.sub("[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-") or "worker"
    return f"{host[:48]}-{os.getpid()}"
