"""The Python worker's conversation with a scripted server."""
import contextlib
import os
import pathlib
import signal
import tempfile
import threading
import time
import unittest
from collections import deque
from concurrent import futures
from unittest import mock

import grpc
import numpy as np

import digits
import hfopt
from hfopt.wire import from_bfloat16, to_bfloat16
from hfopt.v1 import evaluation_pb2, evaluation_service_pb2_grpc, vector_pb2
from hfopt.v1.evaluation_service_pb2 import Cancel, Finished, Release, SessionResponse, Welcome

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])


class Abort(Exception):
    pass


class Server(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """Plays the i-th script, a generator function of the worker's messages, to the i-th session."""

    def __init__(self, *scripts):
        self.scripts, self.sessions, self.error = scripts, 0, None

    def Session(self, requests, context):
        script = self.scripts[self.sessions]
        self.sessions += 1
        try:
            yield from script(requests)
        except Abort as e:
            context.abort(*e.args)
        except Exception as e:  # of the test
            self.error = self.error or e
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, repr(e))


def welcome(element_type=vector_pb2.ELEMENT_TYPE_FLOAT64, lease=60):
    return SessionResponse(
        welcome=Welcome(protocol_version=1, element_type=element_type, shards=2, lease_seconds=lease))


def vector(name, values, chunk=4096, element_type=vector_pb2.ELEMENT_TYPE_FLOAT64):
    data = values.tobytes()
    yield SessionResponse(vector_header=vector_pb2.VectorHeader(
        transfer=5, name=name, size=len(values), element_type=element_type))
    for offset in range(0, len(data), chunk):
        part = vector_pb2.VectorChunk(transfer=5, offset=offset, data=data[offset:offset + chunk])
        yield SessionResponse(vector_chunk=part)


def request(id, count=20, **kind):
    window = evaluation_pb2.Slice(data_set=evaluation_pb2.DATA_SET_TRAINING, shard=1, shards=2, begin=690, count=count)
    return SessionResponse(evaluation=evaluation_pb2.EvaluationRequest(id=id, slice=window, **kind))


def read_answer(messages):
    vectors = {}
    for message in messages:
        kind = message.WhichOneof("message")
        if kind == "vector_header":
            vectors[message.vector_header.transfer] = b""
        elif kind == "vector_chunk":
            vectors[message.vector_chunk.transfer] += message.vector_chunk.data
        else:
            return message.answer, {t: np.frombuffer(b, "<f8") for t, b in vectors.items()}


def chunk_at(offset, size):
    return SessionResponse(vector_chunk=vector_pb2.VectorChunk(transfer=5, offset=offset, data=bytes(size)))


POINT = evaluation_pb2.Point(base=b"theta", terms=[evaluation_pb2.Term(coefficient=-0.5, vector=b"v")])
INDICES = np.r_[700 + 690:1400, 700:710]  # the window wraps round in its shard


class WorkerTest(unittest.TestCase):
    def setUp(self):
        self.model = digits.DigitsModel(SOURCE / "client/models/digits")
        self.theta = self.model.initial_parameters(1, np.float64)
        self.v = np.random.default_rng(1).standard_normal(len(self.theta))
        self.x = self.theta + -0.5 * self.v
        self.worker = hfopt.Worker(self.model, "digits", "py-1")

    def serve(self, *scripts):
        server, service = grpc.server(futures.ThreadPoolExecutor(4)), Server(*scripts)
        evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server(service, server)
        with tempfile.TemporaryDirectory() as folder:
            server.add_insecure_port(f"unix:{folder}/socket")
            server.start()
            try:
                return self.worker.run(f"unix:{folder}/socket")
            finally:
                server.stop(None).wait()
                if service.error:
                    raise service.error

    def test_holds_the_whole_conversation(self):
        def script(messages):
            hello = next(messages).hello
            self.assertEqual((hello.run_id, hello.worker_id, hello.num_parameters), ("digits", "py-1", 2410))
            self.assertEqual((hello.training_examples, hello.held_out_examples), (1400, 397))
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield from vector(b"v", self.v)

            points = [evaluation_pb2.Point(base=b"theta"), POINT]
            yield request(1, losses=evaluation_pb2.LossesRequest(points=points))
            answer, _ = read_answer(messages)
            self.assertEqual(answer.request_id, 1)
            expected = [self.model.loss(t, False, INDICES) for t in (self.theta, self.x)]
            self.assertEqual(list(answer.losses.loss_sums), [e[0] for e in expected])
            self.assertEqual(list(answer.losses.metrics[0].sums), [e[2]["errors"] for e in expected])
            self.assertEqual(answer.losses.weight, 20)

            yield request(2, gradient=evaluation_pb2.GradientRequest(point=POINT, sub_batches=3, second_moment=True))
            answer, vectors = read_answer(messages)
            _, _, gradient, squares = self.model.gradient(self.x, False, INDICES, squares=True)
            np.testing.assert_allclose(vectors[answer.gradient.gradient_transfer], gradient, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(vectors[answer.gradient.second_moment_transfer], squares, rtol=1e-9, atol=1e-12)
            self.assertEqual([s.weight for s in answer.gradient.sub_batches], [6, 7, 7])

            for id in 3, 4:
                yield request(id, product=evaluation_pb2.ProductRequest(point=POINT, direction=b"v"))
                answer, vectors = read_answer(messages)
                np.testing.assert_array_equal(vectors[answer.product.product_transfer],
                                              self.model.linearize(self.x, False, INDICES)(self.v))
            self.assertEqual(len(self.worker._evaluator._linearizations), 1)

            yield SessionResponse(release=Release(vectors=[b"v"]))
            yield request(5, initial_parameters=evaluation_pb2.InitialParametersRequest(seed=1))
            answer, vectors = read_answer(messages)
            np.testing.assert_array_equal(vectors[answer.initial_parameters.parameters_transfer], self.theta)
            self.assertEqual((len(self.worker._evaluator._linearizations), set(self.worker._resident)), (0, {b"theta"}))
            yield SessionResponse(cancel=Cancel(request_id=5))
            yield SessionResponse(finished=Finished(reason="CONVERGED", detail="at once"))

        self.assertEqual(self.serve(script), hfopt.Finished("CONVERGED", "at once"))

    def test_takes_directions_and_gives_products_in_bfloat16(self):
        self.theta, self.v = self.theta.astype(np.float32), self.v.astype(np.float32)
        halves = to_bfloat16(self.v)
        product = evaluation_pb2.ProductRequest(point=evaluation_pb2.Point(base=b"theta"), direction=b"v", bfloat16=True)
        answered = {}

        def script(messages):
            self.assertTrue(next(messages).hello.bfloat16)
            yield welcome(vector_pb2.ELEMENT_TYPE_FLOAT32)
            yield from vector(b"theta", self.theta, element_type=vector_pb2.ELEMENT_TYPE_FLOAT32)
            yield from vector(b"v", halves, element_type=vector_pb2.ELEMENT_TYPE_BFLOAT16)
            yield request(1, product=product)
            header = next(messages).vector_header
            answered["type"], answered["bytes"] = header.element_type, next(messages).vector_chunk.data
            self.assertEqual(next(messages).answer.request_id, 1)
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(script)
        rounded = from_bfloat16(halves)
        exact = self.model.linearize(self.theta, False, INDICES)(rounded)
        self.assertEqual(answered["type"], vector_pb2.ELEMENT_TYPE_BFLOAT16)
        np.testing.assert_array_equal(np.frombuffer(answered["bytes"], "<u2"), to_bfloat16(exact))
        self.assertGreater(np.abs(exact - from_bfloat16(to_bfloat16(exact))).max(), 0)

    def test_answers_what_it_cannot_compute_with_a_failure(self):
        def script(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield request(1, count=701,
                          losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            answer, _ = read_answer(messages)
            self.assertIn(
                "losses on training shard 1 of 2: ValueError: slice: window of 701 from 690 does not fit into shard 1 "
                "of 2, which has 700 of the 1400 examples", answer.failure.message)
            self.assertEqual(answer.failure.code, grpc.StatusCode.INTERNAL.value[0])
            losses = evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")])
            window = evaluation_pb2.Slice(shards=2, count=3)
            yield SessionResponse(evaluation=evaluation_pb2.EvaluationRequest(id=2, slice=window, losses=losses))
            answer, _ = read_answer(messages)
            self.assertIn("slice.data_set: 0 is neither TRAINING (1) nor HELD_OUT (2)", answer.failure.message)
            yield SessionResponse(finished=Finished(reason="CANCELLED"))

        self.serve(script)

    def test_dials_again_and_states_what_it_holds(self):
        def first(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield from list(vector(b"v", self.v))[:-1]
            raise Abort(grpc.StatusCode.UNAVAILABLE, "the link broke")

        def second(messages):
            hello = next(messages).hello
            self.assertEqual(list(hello.held_vectors), [b"theta"])
            self.assertEqual(hello.incarnation, self.worker.incarnation)
            yield welcome()
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(first, second)

    def test_renews_its_lease_while_the_model_computes(self):
        may_answer = threading.Event()
        self.model.loss = lambda *_: (may_answer.wait(60), 1, {})

        def script(messages):
            next(messages)
            yield welcome(lease=0.03)
            yield from vector(b"theta", self.theta)
            yield request(1, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            for _ in range(5):
                self.assertEqual(next(messages).WhichOneof("message"), "lease_renewal")
            may_answer.set()
            while next(messages).WhichOneof("message") != "answer":
                pass
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(script)

    def test_leaves_after_its_current_answer(self):
        def script(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            loss = self.model.loss
            self.model.loss = lambda *a: (self.worker.leave(), loss(*a))[1]
            yield request(1, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            self.assertEqual(next(messages).WhichOneof("message"), "drain")
            self.assertEqual(next(messages).answer.request_id, 1)
            self.assertIsNone(next(messages, None))

        self.assertEqual(self.serve(script).reason, "DRAINED")

    def test_leaves_when_the_signal_reaches_another_thread(self):
        """As the system may choose; Python's handler then waits until the main thread runs again."""
        def script(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield request(1, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            self.assertEqual(next(messages).answer.request_id, 1)
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            said.append(next(messages).WhichOneof("message"))
            self.assertIsNone(next(messages, None))

        said = []
        before = signal.signal(signal.SIGUSR1, lambda *_: self.worker.leave())
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        hopeless = threading.Timer(10, self.worker.leave)
        hopeless.start()
        self.addCleanup(hopeless.cancel)
        begin = time.monotonic()
        self.assertEqual(self.serve(script).reason, "DRAINED")
        self.assertLess(time.monotonic() - begin, 9)
        self.assertEqual(said, ["drain"])

    def test_leaves_what_is_queued_when_a_signal_comes_as_it_is_taken(self):
        class Queue(deque):
            def popleft(queue):
                self.worker.leave()
                return super().popleft()

        def script(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield request(1, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            self.assertEqual(next(messages).WhichOneof("message"), "drain")
            self.assertEqual(next(messages).answer.request_id, 1)
            self.assertIsNone(next(messages, None))

        self.worker._queue = Queue()
        self.assertEqual(self.serve(script).reason, "DRAINED")

    def test_ends_when_it_is_refused(self):
        def script(messages):
            next(messages)
            raise Abort(grpc.StatusCode.INVALID_ARGUMENT, "num_parameters: 2410, but the run has 4")
            yield

        with self.assertRaisesRegex(hfopt.Error,
                                    "run digits at unix:.*: num_parameters: 2410, but the run has 4") as refusal:
            self.serve(script)
        self.assertEqual(refusal.exception.code, "INVALID_ARGUMENT")

    def test_sends_an_answer_again_that_a_broken_stream_cut_off_and_computes_it_once(self):
        broken, computed = threading.Event(), []
        loss = self.model.loss

        def slow(*arguments):
            computed.append(1)
            self.assertTrue(broken.wait(60))
            return loss(*arguments)

        self.model.loss = slow

        def first(messages):
            next(messages)
            yield welcome(lease=0.03)
            yield from vector(b"theta", self.theta)
            yield request(7, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            while not computed:  # it has the request once it renews its lease
                next(messages)
            raise Abort(grpc.StatusCode.UNAVAILABLE, "the link broke")

        def second(messages):
            hello = next(messages).hello
            self.assertEqual((list(hello.held_vectors), list(hello.pending_requests)), ([b"theta"], [7]))
            yield welcome()
            broken.set()
            self.assertEqual(read_answer(messages)[0].request_id, 7)
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(first, second)
        self.assertEqual(len(computed), 1)

    def test_ignores_the_second_copy_of_a_request(self):
        loss, computed = self.model.loss, []

        def wait_for_v(*arguments):
            computed.append(1)
            while b"v" not in self.worker._resident:
                pass
            return loss(*arguments)

        self.model.loss = wait_for_v

        def script(messages):
            next(messages)
            yield welcome()
            yield from vector(b"theta", self.theta)
            for id in 7, 7, 8, 7:
                yield request(id, losses=evaluation_pb2.LossesRequest(points=[evaluation_pb2.Point(base=b"theta")]))
            yield from vector(b"v", self.v)
            self.assertEqual([read_answer(messages)[0].request_id for _ in range(2)], [7, 8])
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(script)
        self.assertEqual(len(computed), 2)

    def test_asks_the_loss_for_a_weight_that_nobody_tells(self):
        class Frames:
            """Each example has two frames."""
            num_parameters, num_examples, signature = self.model.num_parameters, self.model.num_examples, "frames"
            linearize = self.model.linearize
            losses = 0

            def loss(this, *arguments):
                this.losses += 1
                loss, weight, metrics = self.model.loss(*arguments)
                return loss, 2 * weight, metrics

            def gradient(this, *arguments):
                loss, weight, *gradients = self.model.gradient(*arguments)
                return loss, 2 * weight, *gradients

        self.worker = hfopt.Worker(Frames(), "digits", "py-1")
        product = evaluation_pb2.ProductRequest(point=evaluation_pb2.Point(base=b"theta"), direction=b"v")

        def script(messages):
            self.assertFalse(next(messages).hello.initial_parameters)
            yield welcome()
            yield from vector(b"theta", self.theta)
            yield from vector(b"v", self.v)
            for id, count in (1, 10), (2, 12), (3, 12):
                yield request(id, count, product=product)
                self.assertEqual(read_answer(messages)[0].product.weight, 2 * count)
            yield request(4, 9, gradient=evaluation_pb2.GradientRequest(point=evaluation_pb2.Point(base=b"theta")))
            self.assertEqual(read_answer(messages)[0].gradient.weight, 18)
            yield request(5, 9, product=product)
            self.assertEqual(read_answer(messages)[0].product.weight, 18)
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(script)
        self.assertEqual(self.worker.model.losses, 2)  # once for each slice of which no gradient was asked

    def test_dials_again_when_the_server_breaks_the_protocol(self):
        theta = list(vector(b"theta", self.theta))
        offences = {
            "no welcome first": [SessionResponse(finished=Finished())],
            "a chunk beyond the end": [welcome(), theta[0], chunk_at(8 * len(self.theta) - 4, 8)],
            "an overlap": [welcome(), theta[0], theta[1], chunk_at(4090, 16)],
            "an unknown transfer": [welcome(), chunk_at(0, 8)],
            "another size": [welcome(), *list(vector(b"theta", self.theta[1:]))[:1]],
            "a vector that is not here": [
                welcome(), request(1, product=evaluation_pb2.ProductRequest(point=POINT, direction=b"v"))],
            "a slot without shared memory": [welcome(), SessionResponse(vector_header=vector_pb2.VectorHeader(
                transfer=1, name=b"v", size=2410, element_type=vector_pb2.ELEMENT_TYPE_FLOAT64, slot=1))]}
        log = []

        def script(responses):
            def play(messages):
                next(messages)
                yield from responses
                with contextlib.suppress(grpc.RpcError):  # until it hangs up
                    for _ in messages:
                        pass
            return play

        def last(messages):
            next(messages)
            yield welcome()
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.worker = hfopt.Worker(self.model, "digits", "py-1", log=log.append)
        with mock.patch("hfopt.worker._LONGEST_PAUSE", 0.1):
            self.serve(*map(script, offences.values()), last)
        told = [line for line in log if "broke the protocol" in line]
        self.assertEqual(len(told), len(offences), told)

    def test_says_what_is_wrong(self):
        self.assertRegex(hfopt.Worker(self.model, "digits").worker_id, f"^[a-z0-9-]+-{os.getpid()}$")
        for name, value in ("run", "A b"), ("run", ""), ("worker_id", "x_y"), ("worker_id", "x" * 64):
            with self.subTest(value), self.assertRaisesRegex(ValueError, f"{name}: '{value}' is not 1 to 63 of"):
                hfopt.Worker(self.model, **{"run": "digits", name: value})
        self.model.num_examples = (1400, 0)
        with self.assertRaisesRegex(ValueError,
                                    "2410 parameters, 1400 training examples and 0 held-out examples; it needs some"):
            hfopt.Worker(self.model, "digits")

    def test_gives_up_after_a_while(self):
        self.worker = hfopt.Worker(self.model, "digits", "py-1", give_up_after=0.15)
        with self.assertRaisesRegex(hfopt.Error, "gave up, no lasting session for 0.15 s; the last error: .*"):
            self.worker.run("unix:/nowhere/at/all")

    def test_says_so_when_it_is_used_after_a_fork(self):
        def script(messages):
            next(messages)
            yield welcome()
            yield SessionResponse(finished=Finished(reason="CONVERGED"))

        self.serve(script)
        with mock.patch("os.getpid", return_value=os.getpid() + 1):
            for use in (lambda: self.worker.run("unix:/tmp/socket"), self.worker.leave):
                with self.assertRaisesRegex(hfopt.Error, "was forked from it"):
                    use()


if __name__ == "__main__":
    unittest.main()
