#!/usr/bin/python3
"""Many workers in one process, each with a connection and a session of its own, on plain generated stubs: for
tests/bench/load.

    load_worker.py --build DIR --server HOST:PORT --examples N --workers RUN/WORKER_ID ...

The model is linear least squares, f(x) = sum_i (a_i x - b_i)^2 / 2 over the examples i; the held-out examples are the
same ones. Numbers are added in an order that depends on nothing (no BLAS), so equal questions have equal answers. A
session that breaks is not dialled again: it counts as an error."""
from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

PARAMETERS = 50


class LeastSquares:
    def __init__(self, examples: int) -> None:
        draws = np.random.RandomState(7).standard_normal((examples, PARAMETERS + 1))
        self.examples, self._a, self._b = examples, draws[:, :-1].copy(), draws[:, -1].copy()

    def solution(self) -> np.ndarray:
        return np.linalg.lstsq(self._a, self._b, rcond=None)[0]

    def window(self, slice_: Any) -> Tuple[np.ndarray, np.ndarray]:
        """Rows a_i and b_i of a Slice."""
        low, high = (k * self.examples // slice_.shards for k in (slice_.shard, slice_.shard + 1))
        indices = low + (slice_.begin + np.arange(slice_.count)) % (high - low)
        return self._a[indices], self._b[indices]


def times(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (a * x).sum(axis=1)


def transposed_times(a: np.ndarray, r: np.ndarray) -> np.ndarray:
    return (a * r[:, np.newaxis]).sum(axis=0)


class Session:
    """One worker's, from Hello to Finished."""
    def __init__(self, stub: Any, model: LeastSquares, run: str, worker: str) -> None:
        self._model, self._run, self._worker = model, run, worker
        self._call = stub.Session()
        self._writing = asyncio.Lock()  # writes follow each other
        self._transfers: Dict[int, Tuple[bytes, bytearray, int]] = {}  # name, bytes, how many of them are missing
        self._vectors: Dict[bytes, np.ndarray] = {}
        self._next_transfer = 1

    async def run(self) -> None:
        """Raises when it ends in another way than by Finished."""
        from hfopt.v1 import evaluation_service_pb2, vector_pb2
        await self._write(hello=evaluation_service_pb2.Hello(protocol_version=1,
                                                             worker_id=self._worker,
                                                             incarnation=time.time_ns(),
                                                             run_id=self._run,
                                                             num_parameters=PARAMETERS,
                                                             training_examples=self._model.examples,
                                                             held_out_examples=self._model.examples,
                                                             model_signature="least squares",
                                                             element_types=[vector_pb2.ELEMENT_TYPE_FLOAT64],
                                                             initial_parameters=True))
        renewals = None
        try:
            while True:
                message = await self._call.read()
                if not message:  # the end of the stream
                    raise RuntimeError(
                        f"{self._run}/{self._worker}: {await self._call.code()}: {await self._call.details()}")
                kind = message.WhichOneof("message")
                if kind == "welcome":
                    renewals = asyncio.create_task(self._renew(message.welcome.lease_seconds / 3))
                elif kind == "vector_header":
                    header = message.vector_header
                    self._transfers[header.transfer] = (header.name, bytearray(8 * header.size), 8 * header.size)
                elif kind == "vector_chunk":
                    self._take(message.vector_chunk)
                elif kind == "evaluation":
                    await self._answer(message.evaluation)
                elif kind == "release":
                    for name in message.release.vectors:
                        self._vectors.pop(name, None)
                elif kind == "finished":
                    break
        finally:
            if renewals is not None:
                renewals.cancel()
        await self._call.done_writing()
        while await self._call.read():
            pass

    async def _write(self, **message: Any) -> None:
        from hfopt.v1 import evaluation_service_pb2
        async with self._writing:
            await self._call.write(evaluation_service_pb2.SessionRequest(**message))

    async def _renew(self, seconds: float) -> None:
        from hfopt.v1 import evaluation_service_pb2
        while True:
            await asyncio.sleep(seconds)
            await self._write(lease_renewal=evaluation_service_pb2.LeaseRenewal())

    def _take(self, chunk: Any) -> None:
        name, data, missing = self._transfers[chunk.transfer]
        data[chunk.offset:chunk.offset + len(chunk.data)] = chunk.data
        missing -= len(chunk.data)
        if missing:
            self._transfers[chunk.transfer] = (name, data, missing)
        else:
            del self._transfers[chunk.transfer]
            self._vectors[name] = np.frombuffer(data, "<f8")

    def _point(self, point: Any) -> np.ndarray:
        x = self._vectors[point.base]
        for term in point.terms:
            x = x + term.coefficient * self._vectors[term.vector]
        return x

    async def _send(self, vector: np.ndarray) -> int:
        from hfopt.v1 import vector_pb2
        transfer, self._next_transfer = self._next_transfer, self._next_transfer + 1
        await self._write(vector_header=vector_pb2.VectorHeader(
            transfer=transfer, size=len(vector), element_type=vector_pb2.ELEMENT_TYPE_FLOAT64))
        await self._write(vector_chunk=vector_pb2.VectorChunk(transfer=transfer, data=vector.astype("<f8").tobytes()))
        return transfer

    async def _answer(self, request: Any) -> None:
        from hfopt.v1 import evaluation_pb2
        begin = time.perf_counter()
        answer = evaluation_pb2.Answer(request_id=request.id)
        kind = request.WhichOneof("kind")
        if kind == "initial_parameters":
            vector = np.zeros(PARAMETERS)
            field = (answer.initial_parameters, "parameters_transfer")
        else:
            a, b = self._model.window(request.slice)
            weight = float(len(a))
            if kind == "losses":
                answer.losses.loss_sums.extend(
                    float(((times(a, self._point(point)) - b)**2).sum()) / 2 for point in request.losses.points)
                answer.losses.weight = weight
                field = None
            elif kind == "gradient":
                residuals = times(a, self._point(request.gradient.point)) - b
                vector = transposed_times(a, residuals)
                answer.gradient.loss_sum, answer.gradient.weight = float((residuals**2).sum()) / 2, weight
                field = (answer.gradient, "gradient_transfer")
            else:
                vector = transposed_times(a, times(a, self._vectors[request.product.direction]))
                answer.product.weight = weight
                field = (answer.product, "product_transfer")
        answer.compute_seconds = time.perf_counter() - begin
        if field is not None:
            setattr(*field, await self._send(vector))
        await self._write(answer=answer)


async def work(server: str, model: LeastSquares, workers: List[str]) -> int:
    """How many sessions did not end as they should."""
    import grpc
    from hfopt.v1 import evaluation_service_pb2_grpc
    channels = [grpc.aio.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in workers]
    sessions = [
        Session(evaluation_service_pb2_grpc.EvaluationServiceStub(channel), model, *worker.split("/")).run()
        for channel, worker in zip(channels, workers)
    ]
    errors = [error for error in await asyncio.gather(*sessions, return_exceptions=True) if error is not None]
    for error in errors:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    await asyncio.gather(*(channel.close() for channel in channels))
    return len(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--examples", type=int, required=True, help="of the data set")
    parser.add_argument("--workers", nargs="+", metavar="RUN/WORKER_ID", required=True)
    flags = parser.parse_args()
    sys.path.insert(0, str(flags.build / "python"))
    return 1 if asyncio.run(work(flags.server, LeastSquares(flags.examples), flags.workers)) else 0


if __name__ == "__main__":
    sys.exit(main())
