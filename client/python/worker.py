#!/usr/bin/python3
"""A worker of hfopt on plain generated stubs: the conversation of proto/hfopt/v1/evaluation_service.proto, step by step.

    PYTHONPATH=build/release/python client/python/worker.py --run digits --worker-id py-1 --data client/models/digits

Copy it and put your own model in the place of digits.DigitsModel to have the model trained. client/README.md has the steps in words.
"""
import argparse
import queue
import random
import signal
import threading
import time

import grpc
import numpy as np

from digits import DigitsModel
from hfopt.v1 import evaluation_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc, vector_pb2
from hfopt.v1.evaluation_service_pb2 import SessionRequest

CHUNK_BYTES = 1 << 20
DTYPES = {vector_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"), vector_pb2.ELEMENT_TYPE_FLOAT64: np.dtype("<f8")}
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}  # dialling again cannot help


class Worker:
    """What outlives a session: identity, resident vectors, linearizations."""

    def __init__(self, model, run_id, worker_id):
        self.model, self.run_id, self.worker_id = model, run_id, worker_id
        self.incarnation = time.time_ns()
        self.vectors = {}  # name -> array
        self.linearizations = {}  # (point, slice) -> (names of the point's vectors, weight, product function)
        self.outbox, self.call = queue.SimpleQueue(), None
        self.welcomed = self.computing = self.leaving = False

    def run(self, channel):
        """Serves the run until it ends or leave() was called; dials again when the session breaks."""
        stub, pause = evaluation_service_pb2_grpc.EvaluationServiceStub(channel), 0.1
        while not self.leaving:
            begin = time.monotonic()
            try:
                finished = self.serve(stub)
                if finished:
                    return f"{finished.reason} {finished.detail}"
                error = "the server closed the session"
            except grpc.RpcError as e:
                if e.code() in REFUSALS:
                    raise SystemExit(f"refused: {e.details()}")
                error = f"{e.code().name}: {e.details()}"
            if self.leaving:
                break
            pause = 0.1 if time.monotonic() - begin > 5 else min(5, 2 * pause)
            print(f"no session: {error}; dialling again", flush=True)
            time.sleep(pause * random.uniform(0.5, 1))
        return "left as asked"

    def serve(self, stub):
        """One session. Returns Finished, or None when the stream ended without a reason."""
        self.outbox = queue.SimpleQueue()  # gRPC sends from it in a thread of its own; None ends our half of the stream
        self.next_transfer = 1
        self.outbox.put(SessionRequest(hello=self.hello()))
        transfers, finished, over = {}, None, threading.Event()
        try:
            # wait_for_ready: while there is no server, gRPC goes on dialling.
            self.call = stub.Session(iter(self.outbox.get, None), wait_for_ready=True)
            for response in self.call:
                kind = response.WhichOneof("message")
                if kind == "welcome":
                    self.welcomed = True
                    self.dtype = DTYPES[response.welcome.element_type]
                    threading.Thread(target=self.renew_lease, args=(response.welcome.lease_seconds / 3, over),
                                     daemon=True).start()
                elif kind == "vector_header":
                    header = response.vector_header
                    if header.size != self.model.num_parameters or DTYPES.get(header.element_type) != self.dtype:
                        raise ValueError(f"transfer {header.transfer}: {header.size} numbers of type {header.element_type}, "
                                         f"not {self.model.num_parameters} of {self.dtype}")
                    transfers[header.transfer] = header.name, bytearray(header.size * self.dtype.itemsize), []
                elif kind == "vector_chunk":
                    self.put_in_place(response.vector_chunk, transfers)
                elif kind == "evaluation":
                    self.answer(response.evaluation)
                elif kind == "release":
                    self.release(response.release.vectors)
                elif kind == "finished":
                    finished = response.finished
                # "cancel" needs nothing: requests are answered one by one, and the server drops answers it no longer wants.
            return finished
        finally:
            self.welcomed = False
            over.set()
            self.outbox.put(None)

    def leave(self, *_):
        """Announces that the worker goes, once its current answer is sent."""
        self.leaving = True
        if self.call and not self.welcomed:
            self.call.cancel()
        self.outbox.put(SessionRequest(drain=evaluation_service_pb2.Drain()))
        if not self.computing:
            self.outbox.put(None)

    def hello(self):
        training, held_out = self.model.num_examples
        return evaluation_service_pb2.Hello(
            protocol_version=1, worker_id=self.worker_id, incarnation=self.incarnation, run_id=self.run_id,
            num_parameters=self.model.num_parameters, training_examples=training, held_out_examples=held_out,
            model_signature=self.model.signature, element_types=list(DTYPES), second_moment=True, sub_batches=True,
            initial_parameters=True, held_vectors=list(self.vectors))  # no pending_requests: a new session has none

    def renew_lease(self, interval, over):
        while not over.wait(interval):
            self.outbox.put(SessionRequest(lease_renewal=evaluation_service_pb2.LeaseRenewal()))

    def put_in_place(self, chunk, transfers):
        name, buffer, parts = transfers[chunk.transfer]
        begin, end = chunk.offset, chunk.offset + len(chunk.data)
        if end > len(buffer) or any(begin < e and b < end for b, e in parts):
            raise ValueError(f"transfer {chunk.transfer}: bytes {begin} to {end} of {len(buffer)} overlap others or pass the end")
        buffer[begin:end] = chunk.data
        parts.append((begin, end))
        if sum(e - b for b, e in parts) == len(buffer):
            self.vectors[name] = np.frombuffer(buffer, self.dtype)
            del transfers[chunk.transfer]

    def release(self, names):
        for name in names:
            self.vectors.pop(name, None)
        self.linearizations = {k: kept for k, kept in self.linearizations.items() if not kept[0] & set(names)}

    def answer(self, request):
        """Computes and sends: first the vectors, then the answer that names them."""
        if self.leaving:
            return
        self.computing, begin = True, time.perf_counter()
        try:
            with np.errstate(all="ignore"):  # a non-finite loss is an answer
                result, vectors = getattr(self, request.WhichOneof("kind"))(request)
        except Exception as e:  # the model could not answer; the session goes on
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(e, MemoryError) else grpc.StatusCode.INTERNAL
            result, vectors = {"failure": evaluation_pb2.Failure(code=code.value[0], message=repr(e))}, []
        seconds = time.perf_counter() - begin
        for transfer, vector in vectors:
            self.send_vector(transfer, vector)
        self.outbox.put(SessionRequest(answer=evaluation_pb2.Answer(request_id=request.id, compute_seconds=seconds, **result)))
        self.computing = False
        if self.leaving:
            self.outbox.put(None)

    def send_vector(self, transfer, vector):
        data = vector.astype(self.dtype, copy=False).tobytes()
        self.outbox.put(SessionRequest(vector_header=vector_pb2.VectorHeader(
            transfer=transfer, size=len(vector), element_type=next(t for t, d in DTYPES.items() if d == self.dtype))))
        for offset in range(0, len(data), CHUNK_BYTES):
            self.outbox.put(SessionRequest(vector_chunk=vector_pb2.VectorChunk(
                transfer=transfer, offset=offset, data=data[offset:offset + CHUNK_BYTES])))

    # The four kinds of requests. Each returns the answer's field and the vectors it names.

    def losses(self, request):
        points = [self.model.loss(self.point(p), *self.examples(request.slice)) for p in request.losses.points]
        metrics = [evaluation_pb2.MetricSums(name=name, sums=[m[name] for _, _, m in points]) for name in points[0][2]]
        return {"losses": evaluation_pb2.LossesAnswer(loss_sums=[loss for loss, _, _ in points], weight=points[0][1],
                                                      metrics=metrics)}, []

    def gradient(self, request):
        asked, (held_out, indices) = request.gradient, self.examples(request.slice)
        theta, parts, count = self.point(asked.point), asked.sub_batches or 1, len(indices)
        answer = evaluation_pb2.GradientAnswer(gradient_transfer=self.new_transfer())
        total = moment = None
        for p in range(parts):
            part = indices[p * count // parts:(p + 1) * count // parts]
            loss, weight, gradient, squares = self.model.gradient(theta, held_out, part, asked.second_moment)
            answer.loss_sum += loss
            answer.weight += weight
            total = gradient if total is None else total + gradient
            moment = squares if moment is None else moment + squares
            if asked.sub_batches:
                answer.sub_batches.add(squared_norm=np.square(gradient, dtype=np.float64).sum(), weight=weight)
        vectors = [(answer.gradient_transfer, total)]
        if asked.second_moment:
            answer.second_moment_transfer = self.new_transfer()
            vectors.append((answer.second_moment_transfer, moment))
        return {"gradient": answer}, vectors

    def product(self, request):
        asked = request.product
        key = asked.point.SerializeToString(), request.slice.SerializeToString()
        if key not in self.linearizations:
            names = {asked.point.base} | {term.vector for term in asked.point.terms}
            held_out, indices = self.examples(request.slice)
            self.linearizations[key] = names, len(indices), self.model.linearize(self.point(asked.point), held_out, indices)
        _, weight, product = self.linearizations[key]
        answer = evaluation_pb2.ProductAnswer(product_transfer=self.new_transfer(), weight=weight)
        return {"product": answer}, [(answer.product_transfer, product(self.vectors[asked.direction]))]

    def initial_parameters(self, request):
        answer = evaluation_pb2.InitialParametersAnswer(parameters_transfer=self.new_transfer())
        theta = self.model.initial_parameters(request.initial_parameters.seed, self.dtype)
        return {"initial_parameters": answer}, [(answer.parameters_transfer, theta)]

    def new_transfer(self):
        self.next_transfer += 1
        return self.next_transfer

    def point(self, point):
        """base + sum of coefficient * vector, term by term in the element type."""
        theta = self.vectors[point.base]
        for term in point.terms:
            theta = theta + self.dtype.type(term.coefficient) * self.vectors[term.vector]
        return theta

    def examples(self, window):
        """The sampling rule: which data set, and the examples' indices in it."""
        if window.data_set not in (evaluation_pb2.DATA_SET_TRAINING, evaluation_pb2.DATA_SET_HELD_OUT):
            raise ValueError(f"{window.data_set} is no data set")
        held_out = window.data_set == evaluation_pb2.DATA_SET_HELD_OUT
        n = self.model.num_examples[held_out]
        lo, hi = window.shard * n // window.shards, (window.shard + 1) * n // window.shards
        if window.begin >= hi - lo or window.count > hi - lo:
            raise ValueError(f"window of {window.count} from {window.begin} does not fit into a shard of {hi - lo}")
        return held_out, lo + (window.begin + np.arange(window.count)) % (hi - lo)


def main():
    parser = argparse.ArgumentParser(description="Serves an hfopt run with a small classifier of handwritten digits.")
    parser.add_argument("--server", default="127.0.0.1:7447", help="address of the hfopt-server")
    parser.add_argument("--run", required=True, help="id of the run to work for")
    parser.add_argument("--worker-id", required=True, help="one for each worker of a run; the same when it is started again")
    parser.add_argument("--data", required=True, help="folder with images.npy and labels.npy")
    flags = parser.parse_args()
    worker = Worker(DigitsModel(flags.data), flags.run, flags.worker_id)
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, worker.leave)
    # Keepalive as the server expects it; quick reconnects.
    options = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000),
               ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
               ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2_000)]
    with grpc.insecure_channel(flags.server, options) as channel:
        print(worker.run(channel), flush=True)


if __name__ == "__main__":
    main()
