"""RunService with Python's types: what people and programs do with runs."""
from __future__ import annotations

import os
import random
import time
import uuid
from dataclasses import dataclass, field
from datetime import timezone
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import grpc
import numpy as np

from .errors import Error, from_grpc
from .model import Array
from .options import short_name
from .security import Security
from .v1 import run_pb2, run_service_pb2, vector_pb2
from .wire import DTYPES, UPLOAD_CHUNK_BYTES, VectorAssembler, chunks_of, make_channel

_SERVICE = run_service_pb2.DESCRIPTOR.services_by_name["RunService"]
_VERSIONS = {
    "best": run_service_pb2.DownloadParametersRequest.VERSION_BEST,
    "last": run_service_pb2.DownloadParametersRequest.VERSION_LAST
}


@dataclass(frozen=True)
class Parameters:
    """The parameters of a run after some iteration."""
    theta: Array  # of the shape (num_parameters,), float32 or float64
    iteration: int  # after which they are
    held_out_loss: float  # at them, a mean
    metadata: Dict[str, str] = field(default_factory=dict)  # of the file they were read from


class RunClient:
    """Runs of the server at an address ("localhost:7447", "unix:/path"). A run is named by its id ("an4", not
    "runs/an4"). `security`: TLS, certificates, a token.

    Every function blocks, at most `timeout` seconds but for transfers of parameters and `watch`, and raises hfopt.Error
    when the server refuses or is not there. Thread-safe. The connection is made at the first call, and belongs to the
    process that made it.
    """

    def __init__(self, address: str, timeout: float = 30.0, security: Security = Security()):
        self.address, self.timeout, self.security = address, timeout, security
        self._channel: Optional[grpc.Channel] = None
        self._process: Optional[int] = None

    def close(self) -> None:
        """Ends the connection; the next call makes a new one."""
        if self._channel is not None and self._process == os.getpid():
            self._channel.close()
        self._channel = None

    def __enter__(self) -> RunClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def create(self, run_id: str, options: run_pb2.RunOptions, request_id: str = "") -> run_pb2.Run:
        """Answers the run with every option filled in. ALREADY_EXISTS when there is one of this id with other options.
        `request_id` is for callers that repeat the call after a failure: any text unique to this creation; empty: a
        random one."""
        return self._call("CreateRun", run_id=run_id, options=options, request_id=request_id or uuid.uuid4().hex).run

    def get(self, run_id: str) -> run_pb2.Run:
        """A run as it stands: hfopt.v1.Run of proto/hfopt/v1/run.proto. NOT_FOUND where there is none."""
        return self._call("GetRun", name=f"runs/{run_id}").run

    def list(self) -> List[run_pb2.Run]:
        """All runs, by name."""
        runs: List[run_pb2.Run] = []
        token = ""
        while True:
            page = self._call("ListRuns", page_token=token)
            runs += page.runs
            token = page.next_page_token
            if not token:
                return runs

    def start(self, run_id: str) -> run_pb2.Run:
        """Begins a run that was created. FAILED_PRECONDITION when it has begun already."""
        return self._call("StartRun", name=f"runs/{run_id}").run

    def pause(self, run_id: str) -> run_pb2.Run:
        """Stops a run so that `resume` goes on with it; the iteration under way is done again then."""
        return self._call("PauseRun", name=f"runs/{run_id}").run

    def resume(self, run_id: str) -> run_pb2.Run:
        """Continues a paused or failed run."""
        return self._call("ResumeRun", name=f"runs/{run_id}").run

    def cancel(self, run_id: str) -> run_pb2.Run:
        """Ends a run for good, with the parameters that it has."""
        return self._call("CancelRun", name=f"runs/{run_id}").run

    def delete(self, run_id: str) -> None:
        """Removes a run that is not running, with its checkpoints."""
        self._call("DeleteRun", name=f"runs/{run_id}")

    def watch(self, run_id: str, after_iteration: int = 0, stopped: Callable[[], bool] = lambda: False,
              give_up_after: float = 600.0) -> Iterator[Union[run_pb2.IterationReport, run_pb2.Run]]:
        """Reports of iterations after `after_iteration`, each once and in order, and the run at each change of its
        state, until it has ended or failed: also across broken streams and restarts of the server, unless it was away
        for `give_up_after` seconds."""
        pause, lost_since = 0.1, None
        while True:
            begin = time.monotonic()
            try:
                for event in self._call("WatchRun", timeout=None, name=f"runs/{run_id}",
                                        after_iteration=after_iteration):
                    pause, lost_since = 0.1, None
                    if event.HasField("iteration"):
                        after_iteration = event.iteration.iteration
                        yield event.iteration
                    elif event.HasField("run"):
                        yield event.run
                        if event.run.state in (run_pb2.RUN_STATE_ENDED, run_pb2.RUN_STATE_FAILED):
                            return
            except grpc.RpcError as error:
                if stopped():
                    return
                lost_since = begin if lost_since is None else lost_since
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() - lost_since > give_up_after:
                    raise from_grpc(error, f"hfopt-server at {self.address}") from None
            if stopped():
                return
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(5.0, 2 * pause)

    def upload_parameters(self, run_id: str, theta: Any) -> run_pb2.Run:
        """Sets the initial parameters of a run that has not started, in the element type of the run."""
        element_type = self.get(run_id).options.element_type
        vector = np.ascontiguousarray(theta, DTYPES[element_type])
        if vector.ndim != 1:
            raise ValueError(f"initial parameters of the shape {vector.shape}; they must be one vector")

        def messages() -> Iterator[Any]:
            header = run_service_pb2.UploadParametersHeader(name=f"runs/{run_id}", size=len(vector),
                                                            element_type=element_type)
            yield run_service_pb2.UploadParametersRequest(header=header)
            for offset, data in chunks_of(vector, most=UPLOAD_CHUNK_BYTES):
                chunk = vector_pb2.VectorChunk(offset=offset, data=bytes(data))
                yield run_service_pb2.UploadParametersRequest(chunk=chunk)

        return self._call("UploadParameters", timeout=None, messages=messages()).run

    def download_parameters(self, run_id: str, version: Union[str, int] = "best") -> Parameters:
        """The best parameters (lowest held-out loss), the "last" ones, or those after a certain iteration if they are
        kept."""
        asked = {"iteration": version} if isinstance(version, int) else {"version": _VERSIONS[version]}
        header, assembler = None, None
        try:
            for message in self._call("DownloadParameters", timeout=None, name=f"runs/{run_id}", **asked):
                if message.HasField("header"):
                    header = message.header
                    assembler = VectorAssembler(0, header.size, DTYPES[header.element_type])
                elif assembler is not None:
                    assembler.put(message.chunk.offset, memoryview(message.chunk.data))
        except grpc.RpcError as error:
            raise from_grpc(error, f"hfopt-server at {self.address}") from None
        if header is None or assembler is None or not assembler.complete:
            raise Error(f"hfopt-server at {self.address}: the parameters of run {run_id} were cut off", "DATA_LOSS")
        return Parameters(assembler.vector, header.iteration, header.held_out_loss)

    def _call(self, method: str, timeout: Optional[float] = -1.0, messages: Any = None, **fields: Any) -> Any:
        """Calls a method by its descriptor. Streams of answers are left to the caller with their errors."""
        description = _SERVICE.methods_by_name[method]
        request_type, response_type = _class(description.input_type), _class(description.output_type)
        kind = {"UploadParameters": "stream_unary", "WatchRun": "unary_stream",
                "DownloadParameters": "unary_stream"}.get(method, "unary_unary")
        make_call = getattr(self._connection(), kind)
        call = make_call(f"/{_SERVICE.full_name}/{method}", request_serializer=request_type.SerializeToString,
                         response_deserializer=response_type.FromString)
        try:
            return call(messages or request_type(**fields), timeout=self.timeout if timeout == -1.0 else timeout,
                        metadata=self.security.metadata())
        except grpc.RpcError as error:
            raise from_grpc(error, f"hfopt-server at {self.address}") from None

    def _connection(self) -> grpc.Channel:
        if self._channel is None:
            self._channel, self._process = make_channel(self.address, self.security), os.getpid()
        if self._process != os.getpid():
            raise Error(
                f"this connection belongs to process {self._process}, and process {os.getpid()} was forked from it: "
                "connections do not survive a fork; make a RunClient of its own in the new process")
        return self._channel


def _class(descriptor: Any) -> Any:
    return getattr(run_service_pb2, descriptor.name)


def flatten(message: Any, prefix: str = "") -> Dict[str, Any]:
    """A report as one row of a table: names joined by points, enums by their short names, absent sums as 0."""
    row: Dict[str, Any] = {}
    for f in message.DESCRIPTOR.fields:
        name, value = prefix + f.name, getattr(message, f.name)
        if f.message_type is None:
            row[name] = short_name(f.enum_type, value) if f.enum_type is not None else value
        elif f.message_type.GetOptions().map_entry:
            row.update({f"{name}.{key}": value[key] for key in sorted(value)})
        elif f.message_type.full_name == "google.protobuf.Timestamp":
            row[name] = value.ToDatetime().replace(tzinfo=timezone.utc)
        else:
            row.update(flatten(value, name + "."))
    return row
