"""hfopt.torch.WorkerGroup and the worker of torchrun: K processes are one worker, which answers what one process
does."""

import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import numpy as np

import gauss_newton as check

torch = check.require("torch", "apt-get install python3-torch, or pip install torch", __name__)
import torch.distributed as distributed

import hfopt
import hfopt.torch
from hfopt.evaluator import Evaluation, Evaluator, vector_names
from hfopt.local_server import LocalServer
from hfopt.training import run_options
from hfopt.v1 import evaluation_pb2, evaluation_service_pb2

# That of PyTorch 1.13 takes its own defaults for faults under Python 3.11.
TORCHRUN = ["--redirects", "9:1", "--tee", "9:1"] if torch.__version__.startswith("1.") else []
torch.set_num_threads(1)
DTYPE = np.dtype("float64")
OPTIONS = {"samples.initial_gradient_examples": 40, "samples.growth": "variance", "damping.initial": 0.1}
HELD_OUT, TRAINING = evaluation_pb2.DATA_SET_HELD_OUT, evaluation_pb2.DATA_SET_TRAINING


def parts(regularization=0.01):
    """What a factory returns: a small classifier, 101 + 31 examples."""
    random = np.random.default_rng(7)
    x, y = random.standard_normal((132, 6)), random.integers(0, 3, 132)
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    training, held_out, options = (x[:101], y[:101]), (x[101:], y[101:]), {"regularization": regularization}
    return module, hfopt.losses.cross_entropy(), training, held_out, options


def make(regularization=0.01):
    *arguments, options = parts(regularization)
    return hfopt.torch.as_model(*arguments, **options)


# Ranks without torchrun, made of a process that has imported everything.


def be_rank(rank, size, folder, results, function, arguments):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        results.send(function(*arguments))
    except hfopt.Error as error:
        results.send(error)


class Ranks:
    """Calls a function in all ranks of torch.distributed; `results` are what it returned, or the hfopt.Error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfopt.torch"])

    def __init__(self, size, function, *arguments):
        self._folder = tempfile.TemporaryDirectory()
        self._results, self.processes = [], []
        for rank in range(size):
            result, end = self.context.Pipe(duplex=False)
            self._results.append(result)
            self.processes.append(self.context.Process(
                target=be_rank, args=(rank, size, self._folder.name, end, function, arguments), daemon=True))
            self.processes[-1].start()
            end.close()

    def results(self):
        results = [result.recv() for result in self._results]
        for process in self.processes:
            process.join()
        self._folder.cleanup()
        return results


# What ranks do.


def evaluate(requests, vectors, make_model=make):
    """At rank 0 the answers of a group to requests, and of a single process: numbers and vectors of each; and how many
    vectors were sent to the others. A request that is None forgets all."""
    model = make_model()
    group = hfopt.torch.WorkerGroup(model, "run", "group")
    if group.rank:
        group._follow()
        return [model.calls] if hasattr(model, "calls") else None
    sent, send = [], group._ranks.send
    group._ranks.send = lambda vector: (sent.append(vector), send(vector))
    answers = []
    for evaluator in group._evaluator, Evaluator(model, 64):
        answers.append([])
        for request in requests:
            if request is None:
                evaluator.forget({})
                continue
            named = {name: vectors[name] for name in vector_names(request)}
            evaluated = evaluator.evaluate(Evaluation(request, named), DTYPE)
            evaluated.answer.compute_seconds = 0
            answers[-1].append((evaluated.answer.SerializeToString(), [vector for _, vector in evaluated.vectors]))
    group._ranks.tell("end", hfopt.Finished("", ""), None)
    return answers, len(sent)


class FailsOnRank2:
    """A model whose second gradient fails on rank 2."""

    def __init__(self):
        self._model, self._gradients = make(), 0
        self.num_parameters, self.num_examples = self._model.num_parameters, self._model.num_examples
        self.signature, self.loss, self.linearize = "fails", self._model.loss, self._model.linearize

    def gradient(self, *arguments):
        self._gradients += 1
        if distributed.get_rank() == 2 and self._gradients == 2:
            raise ZeroDivisionError("of the model")
        return self._model.gradient(*arguments)


class CountsLinearizations:
    """A model whose products do not tell their weight."""

    def __init__(self):
        self._model, self.calls = make(), 0
        self.num_parameters, self.num_examples = self._model.num_parameters, self._model.num_examples
        self.signature, self.loss, self.gradient = "counts", self._model.loss, self._model.gradient

    def linearize(self, *arguments):
        self.calls += 1
        linearization = self._model.linearize(*arguments)
        return lambda v: linearization(v)


def work(address, run):
    return hfopt.torch.WorkerGroup(make(), run, "group").run(address)


def differ():
    hfopt.torch.WorkerGroup(make(regularization=distributed.get_rank()), "run", "group")


def be_idle(seconds):
    """A group that serves a run that has nothing to do until rank 0 has said 8 times, in all for twice the timeout,
    that it waits."""
    import worker_test
    group = hfopt.torch.WorkerGroup(make(), "run", "group", timeout=seconds)
    if group.rank:
        return group.run("")
    said, enough, tell = [], threading.Event(), group._ranks.tell

    def count(kind, *content):
        tell(kind, *content)
        said.append(kind)
        if said.count("wait") == 8:
            enough.set()

    def script(messages):
        next(messages)
        yield worker_test.welcome()
        enough.wait()
        finished = evaluation_service_pb2.Finished(reason="CONVERGED", detail="at last")
        yield evaluation_service_pb2.SessionResponse(finished=finished)

    group._ranks.tell = count
    test = worker_test.WorkerTest()
    test.worker = group
    return test.serve(script)


def be_silent(seconds):
    """Rank 0 says nothing until rank 1 has given up."""
    group = hfopt.torch.WorkerGroup(make(), "run", "group", timeout=seconds)
    if group.rank == 0:
        distributed.recv(torch.zeros(1), 1)
        return None
    try:
        return group.run("")
    finally:
        distributed.send(torch.zeros(1), 0)


# What torchrun runs.


def dying():
    """Kills rank 1 at its 20th product, rank 0 at its 30th after the restart."""
    model = make()
    start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    linearize, products = model.linearize, []

    def wrapped(*arguments):
        linearization = linearize(*arguments)
        product = linearization._product

        def count(v):
            products.append(1)
            if (start, rank, len(products)) in ((0, 1, 20), (1, 0, 30)):
                os.kill(os.getpid(), signal.SIGKILL)
            return product(v)

        linearization._product = count
        return linearization

    model.linearize = wrapped
    return model


def fail(error):
    raise error


class GroupTest(unittest.TestCase):

    def setUp(self):
        self.n = 6 * 5 + 5 + 5 * 3 + 3
        random = np.random.default_rng(1)
        self.vectors = {name: random.standard_normal(self.n) for name in (b"theta", b"v", b"w")}
        for vector in self.vectors.values():
            vector.flags.writeable = False
        self.point = evaluation_pb2.Point(base=b"theta", terms=[evaluation_pb2.Term(coefficient=-0.5, vector=b"v")])

    def request(self, begin, count, data_set=TRAINING, shard=1, **kind):
        window = evaluation_pb2.Slice(data_set=data_set, shard=shard, shards=2, begin=begin, count=count)
        return evaluation_pb2.EvaluationRequest(id=3, slice=window, **kind)

    def product(self, direction, *window):
        return self.request(*window, product=evaluation_pb2.ProductRequest(point=self.point, direction=direction))

    def gradient(self, *window, **extras):
        return self.request(*window, gradient=evaluation_pb2.GradientRequest(point=self.point, **extras))

    def test_answers_are_those_of_a_single_process(self):
        points = [evaluation_pb2.Point(base=b"theta"), self.point]
        losses = evaluation_pb2.LossesRequest(points=points)
        requests = [
            self.request(40, 29, losses=losses),  # wraps round in its shard of 51
            self.request(3, 13, HELD_OUT, losses=losses),
            self.request(0, 2, losses=losses),  # less than a rank each
            self.gradient(40, 29),
            self.gradient(40, 29, sub_batches=4, second_moment=True),
            self.gradient(5, 1, sub_batches=1, second_moment=True),
            self.product(b"w", 40, 29),
            self.product(b"v", 40, 29),
            self.product(b"w", 0, 1),
            self.request(0, 52, losses=losses),  # a window that is none
            self.gradient(0, 51),
        ]
        for size in 2, 3, 4:
            with self.subTest(size):
                answers, sent = Ranks(size, evaluate, requests, self.vectors).results()[0]
                self.assertEqual(sent, 3)  # each vector once, for all requests
                for (encoded, vectors), (expected_encoded, expected_vectors) in zip(*answers):
                    answer, expected = map(evaluation_pb2.Answer.FromString, (encoded, expected_encoded))
                    self.assertEqual(answer.WhichOneof("result"), expected.WhichOneof("result"))
                    self.assertEqual(answer.failure, expected.failure)
                    self.check_numbers(answer, expected)
                    self.assertEqual(len(vectors), len(expected_vectors))
                    for a, b in zip(vectors, expected_vectors):
                        self.assertEqual(a.dtype, DTYPE)
                        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())

    def check_numbers(self, answer, expected):
        """All loss sums, weights, metrics and norms."""
        a, b = answer.losses, expected.losses
        np.testing.assert_allclose(a.loss_sums, b.loss_sums, rtol=1e-12)
        self.assertEqual((a.weight, a.metrics), (b.weight, b.metrics))
        self.assertEqual(answer.product, expected.product)
        a, b = answer.gradient, expected.gradient
        np.testing.assert_allclose([a.loss_sum, *(s.squared_norm for s in a.sub_batches)],
                                   [b.loss_sum, *(s.squared_norm for s in b.sub_batches)], rtol=1e-12)
        self.assertEqual([a.weight, *(s.weight for s in a.sub_batches)], [b.weight, *(s.weight for s in b.sub_batches)])

    def test_keeps_and_forgets_linearizations_together(self):
        products = [self.product(b"w", 0, 20), self.product(b"v", 0, 20), None, self.product(b"w", 0, 20)]
        (answers, sent), (calls, ) = Ranks(2, evaluate, products, self.vectors, CountsLinearizations).results()
        self.assertEqual(calls, 2)
        self.assertEqual(sent, 3 + 3)
        np.testing.assert_array_equal(answers[0][0][1][0], answers[0][2][1][0])
        self.assertEqual(evaluation_pb2.Answer.FromString(answers[0][0][0]).product.weight, 20)

    def test_an_error_on_one_rank_is_the_answer_of_the_group(self):
        requests = [self.gradient(0, 30), self.gradient(1, 30), self.gradient(2, 30)]
        answers, _ = Ranks(3, evaluate, requests, self.vectors, FailsOnRank2).results()[0]
        first, second, third = (evaluation_pb2.Answer.FromString(encoded) for encoded, _ in answers[0])
        self.assertEqual(second.failure.message,
                         "gradient on training shard 1 of 2: Error: rank 2 of 3: ZeroDivisionError: of the model")
        self.assertEqual((first.gradient.weight, third.gradient.weight), (30, 30))

    def test_ranks_with_different_models_are_refused(self):
        for rank, error in enumerate(Ranks(2, differ).results()):
            self.assertRegex(str(error), f"rank {rank} and rank {1 - rank} of the worker group differ in signature: "
                             "torch Sequential.* and torch Sequential.*; all need the same model and data")

    def test_an_idle_group_stays_alive(self):
        self.assertEqual(Ranks(2, be_idle, 1).results(), [hfopt.Finished("CONVERGED", "at last")] * 2)

    def test_a_silent_rank_is_taken_for_lost(self):
        error = Ranks(2, be_silent, 0.5).results()[1]
        self.assertRegex(str(error),
                         "rank 1 of 2: the worker group broke: another rank has ended, or was silent for 0.5 s")

    def test_needs_processes_to_make_a_group_of(self):
        with self.assertRaisesRegex(hfopt.Error, "start this program with torchrun, or call"):
            hfopt.torch.WorkerGroup(make(), "run", "group")


class TrainingTest(unittest.TestCase):
    """With the real server."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.server = LocalServer(folder.name, fail)
        cls.addClassCleanup(cls.server.stop)
        cls.client = hfopt.RunClient(cls.server.address)
        cls.addClassCleanup(cls.client.close)

    @classmethod
    def create(cls, run):
        cls.client.create(run, run_options(options=OPTIONS, dtype=DTYPE, shards=2, max_iterations=6))
        cls.client.start(run)

    def torchrun(self, size, run, factory):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size),
                   "--max_restarts", "2", "--monitor_interval", "0.1", *TORCHRUN, "-m", "hfopt.torch.worker", "--",
                   "--server", self.server.address, "--run", run, "--worker-id", "group", f"group_test:{factory}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parent, env=environment, stderr=subprocess.PIPE,
                                   text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    @classmethod
    @functools.lru_cache(None)
    def train(cls, size):
        """Parameters, bytes sent and bytes received of a run with a group of this size, or, of size 0, without one."""
        run_id = f"size-{size}"
        cls.create(run_id)
        if size:
            Ranks(size, work, cls.server.address, run_id).results()
        else:
            hfopt.serve(make(), run_id, cls.server.address, "single")
        worker, = cls.client.get(run_id).workers
        return cls.client.download_parameters(run_id).theta, worker.bytes_sent, worker.bytes_received

    def test_a_group_trains_as_a_single_process_does_with_no_more_bytes(self):
        theta, *bytes_of_one = self.train(0)
        for size in 2, 3, 4:
            with self.subTest(size):
                of_group, *bytes_of_group = self.train(size)
                # Six iterations amplify the rounding of sums in another order, 1e-16; by it one comparison of losses
                # may come out otherwise, which costs a vector.
                np.testing.assert_allclose(of_group, theta, rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(bytes_of_group, bytes_of_one, rtol=0.05)

    def test_a_group_whose_ranks_are_killed_ends_with_the_same_bits(self):
        self.create("killed")
        _, said = self.torchrun(2, "killed", "dying").communicate(timeout=120)
        self.assertIn("run killed: finished: ITERATION_BUDGET: 6 iterations", said)
        self.assertEqual(said.count("in session as group"), 3, said)
        self.assertIn("rank 0 of 2: the worker group broke: another rank has ended, or was silent for 1800 s", said)
        np.testing.assert_array_equal(self.client.download_parameters("killed").theta, self.train(2)[0])

    def test_a_group_leaves_on_a_signal(self):
        self.create("long")
        group = self.torchrun(2, "long", "parts")
        said = []
        for line in group.stderr:
            said.append(line)
            if "in session" in line:
                group.send_signal(signal.SIGTERM)
                break
        said += group.stderr
        self.assertIn("run long: finished: DRAINED: left the run as asked\n", said)


if __name__ == "__main__":
    unittest.main()
