"""hfopt.fit and least_squares with the real server."""
import functools
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from unittest import mock

import numpy as np

import digits
import hfopt
from hfopt.local_server import LocalServer
from hfopt.training import run_options

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])
DIGITS = SOURCE / "client/models/digits"
FEW = {"samples.initial_gradient_examples": 700, "samples.growth": "variance", "preconditioner.lbfgs": "frozen"}
MAKE_DIGITS = functools.partial(digits.DigitsModel, DIGITS)


def fail(error):
    raise error


class FitTest(unittest.TestCase):
    def setUp(self):
        self.model = digits.DigitsModel(DIGITS)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def fit(self, **arguments):
        return hfopt.fit(self.model,
                         **{"progress": False, "max_iterations": 4, "dtype": "float64", "options": FEW, **arguments})

    def test_trains(self):
        result = hfopt.fit(self.model, max_iterations=8, progress=False)
        self.assertEqual((result.reason, result.detail), ("iteration_budget", "8 iterations"))
        self.assertGreater(result.iteration, 5)  # the last one that was accepted
        self.assertEqual((result.parameters.dtype, result.parameters.shape), (np.float32, (2410,)))
        loss, weight, metrics = self.model.loss(result.parameters, True, np.arange(397))
        self.assertAlmostEqual(loss / weight, result.held_out_loss, places=5)
        self.assertLess(metrics["errors"] / weight, 0.1)
        self.assertEqual([report["iteration"] for report in result.history], list(range(1, 9)))
        self.assertEqual(result.history[result.iteration - 1]["held_out_loss"], result.held_out_loss)
        self.assertIn("<hfopt.Result: iteration budget (8 iterations); held-out loss 0.", repr(result))
        self.assertIn("<td", result._repr_html_())
        self.assertIsNone(result.directory)

    def test_computes_in_what_the_model_prefers_unless_it_is_told(self):
        both = ("float64", "float32")
        for types, arguments, expected in ((both, {}, "float64"), (both[::-1], {}, "float32"),
                                           (both[:1], {}, "float64"), (both, {"dtype": "float32"}, "float32"),
                                           (both[::-1], {"preset": "deterministic"}, "float64")):
            with self.subTest(types=types, **arguments), mock.patch.object(self.model, "element_types", types,
                                                                           create=True):
                result = hfopt.fit(self.model, max_iterations=1, progress=False, **arguments)
                self.assertEqual(result.parameters.dtype, expected)

    def test_leaves_nothing_behind(self):
        threads = threading.active_count()
        with mock.patch("tempfile.tempdir", self.folder):
            self.fit(max_iterations=1)
        self.assertEqual(os.listdir(self.folder), [])
        self.assertLessEqual(threading.active_count(), threads + 1)  # gRPC may keep one

    def test_has_the_same_bits_however_vectors_travel(self):
        in_memory = self.fit()
        with mock.patch("hfopt.worker.host_name", return_value=""):
            through_grpc = self.fit()
        np.testing.assert_array_equal(in_memory.parameters, through_grpc.parameters)

    def test_vectors_go_through_shared_memory(self):
        workers = []
        self.fit(callbacks=[lambda report, run: workers.extend(run._client.get(run.run_id).workers)])
        self.assertEqual([(w.worker_id, w.shared_memory) for w in workers[:1]], [("fit", True)])

    def test_goes_on_in_a_directory(self):
        whole = self.fit(max_iterations=6)

        class Stop(Exception):
            pass

        def stop(report, run):
            raise Stop

        with self.assertRaises(Stop):
            self.fit(max_iterations=6, directory=self.folder, callbacks=[stop])
        seen = []
        rest = self.fit(max_iterations=6, directory=self.folder,
                        callbacks=[lambda report, run: seen.append(report["iteration"])])
        np.testing.assert_array_equal(rest.parameters, whole.parameters)
        self.assertEqual([report["iteration"] for report in rest.history], [1, 2, 3, 4, 5, 6])
        self.assertEqual(seen[-1], 6)
        self.assertGreater(seen[0], 1)
        self.assertEqual(rest.directory, self.folder)
        # An ended training is answered at once.
        again = self.fit(directory=self.folder, resume=True, max_iterations=99)
        np.testing.assert_array_equal(again.parameters, whole.parameters)
        with self.assertRaisesRegex(hfopt.Error, "(?s)training with other options.*resume=True"):
            self.fit(directory=self.folder, max_iterations=7)
        with self.assertRaisesRegex(hfopt.Error, "resume: there is a training already"):
            self.fit(directory=self.folder, max_iterations=6, resume=False)

    def test_a_training_is_gone_on_with_by_its_own_model_alone(self):
        self.fit(directory=self.folder)
        for change, name in ({"num_parameters": 3}, "num_parameters is 2410, that of these is 3"), (
                {"signature": "another"}, "signature is mlp 64-32-10.*, that of these is another"):
            model = digits.DigitsModel(DIGITS)
            for attribute, value in change.items():
                setattr(model, attribute, value)
            with self.subTest(name), self.assertRaisesRegex(hfopt.Error, f"another model or other data: its {name}"):
                hfopt.fit(model, directory=self.folder, resume=True, progress=False)

    def test_resume_demands_a_training(self):
        with self.assertRaisesRegex(hfopt.Error, "resume: there is no training to go on with"):
            self.fit(directory=self.folder, resume=True)

    def test_ctrl_c_leaves_a_run_that_can_be_resumed(self):
        # In a process of its own, which gets the signal from within the linearization of its second iteration: the first
        # three are of the check before. There are iterations enough for the signal to be heard before the last.
        program = f"""if True:
            import os, signal, sys
            import digits, hfopt
            model = digits.DigitsModel({str(DIGITS)!r})
            linearizations, linearize = [], model.linearize
            def interrupting(*arguments):
                linearizations.append(arguments)
                if len(linearizations) == 5:
                    os.kill(os.getpid(), signal.SIGINT)
                return linearize(*arguments)
            model.linearize = interrupting
            try:
                hfopt.fit(model, options={FEW!r}, dtype="float64", max_iterations=8, directory={self.folder!r},
                          progress=False)
            except hfopt.Interrupted as interrupted:
                print(interrupted)
                print(interrupted.result.reason, interrupted.result.iteration)
                raise
            """
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertIn(f"stopped. To go on: hfopt.fit(..., directory='{self.folder}', resume=True)", process.stdout)
        self.assertRegex(process.stdout, "interrupted [1-7]\n")
        resumed, whole = self.fit(directory=self.folder, resume=True, max_iterations=8), self.fit(max_iterations=8)
        np.testing.assert_array_equal(resumed.parameters, whole.parameters)

    def test_a_callback_sees_parameters_and_can_stop(self):
        seen = []

        def callback(report, run):
            seen.append(run.parameters())
            if report["iteration"] >= 2:
                run.stop()
                run.stop()  # as callbacks for further iterations may

        result = self.fit(max_iterations=50, callbacks=[callback])
        self.assertEqual(result.reason, "cancelled")
        self.assertEqual(seen[0].shape, (2410,))
        self.assertLess(len(result.history), 50)

    def test_says_where_a_run_lies_when_a_callback_raises(self):
        def stop(report, run):
            raise ZeroDivisionError

        said = io.StringIO()
        with mock.patch("sys.stderr", said), self.assertRaises(ZeroDivisionError) as raised:
            self.fit(directory=self.folder, callbacks=[stop])
        said = "\n".join(getattr(raised.exception, "__notes__", [said.getvalue()]))  # Python 3.11 has notes
        self.assertIn(f"To go on: hfopt.fit(..., directory={self.folder!r}, resume=True)", said)

    def test_says_how_to_go_on_at_a_server_when_a_callback_raises(self):
        def stop(report, run):
            raise ZeroDivisionError

        server = LocalServer(self.folder, fail)
        self.addCleanup(server.stop)
        said = io.StringIO()
        with mock.patch("sys.stderr", said), self.assertRaises(ZeroDivisionError) as raised:
            self.fit(server=server.address, callbacks=[stop])  # as a run whose name is made by fit
        said = "\n".join(getattr(raised.exception, "__notes__", [said.getvalue()]))
        with hfopt.RunClient(server.address) as client:
            run, = client.list()
        run_id = run.name.split("/", 1)[1]
        self.assertIn(f"To go on: hfopt.fit(..., server={server.address!r}, run={run_id!r})", said)
        self.assertEqual(self.fit(server=server.address, run=run_id).reason, "iteration_budget")

    def test_arguments_that_are_none(self):
        for arguments, error, message in (
            ({"max_iteration": 3}, TypeError, "there is no argument max_iteration; do you mean max_iterations?"),
            ({"zzz": 3}, TypeError, "there is no argument zzz$"),
            ({"seed": -1}, ValueError, "seed is -1; allowed: 0 to 18446744073709551615"),
            ({"seed": 1.5}, TypeError, "seed is 1.5; give a whole number"),
            ({"shards": 1.5}, TypeError, "shards is 1.5; give a whole number"),
            ({"server": "far:"}, hfopt.Error, "server is \"far:\"; give HOST, HOST:PORT or unix:PATH"),
            ({"shards": -1}, ValueError, "shards is -1; give 1 or more"),
            ({"shards": 0}, ValueError, "shards is 0; give 1 or more")):
            with self.subTest(arguments), self.assertRaisesRegex(error, message):
                self.fit(**arguments)

    def test_callbacks_are_functions(self):
        for callbacks in print, [print, "x"]:
            with self.subTest(callbacks), self.assertRaisesRegex(TypeError, r"callbacks is .*callbacks=\[f\]"):
                self.fit(callbacks=callbacks)

    def test_the_models_own_error_is_shown(self):
        def linearize(*_):
            raise ZeroDivisionError("of the model")

        self.model.linearize = linearize
        with self.assertRaisesRegex(hfopt.Error, "the run failed: .*ZeroDivisionError: of the model") as failure:
            self.fit()
        self.assertIsInstance(failure.exception.__cause__, ZeroDivisionError)

    def test_says_what_is_wrong_with_options(self):
        for arguments, message in (
            ({"options": {"preconditioner.lbfg": 1}}, "no option \"lbfg\" in preconditioner; allowed: lbfgs, memory"),
            ({"options": {"preconditioner.lbfgs": "cold"}}, "is \"cold\"; allowed: none, frozen, flexible"),
            ({"options": {"stop": 1}}, "stop is a group of options; name one of them: max_iterations"),
            ({"options": {"stop.patience": -1}}, "stop.patience is \"-1\"; allowed: a whole number from 0"),
            ({"preset": "fast"}, "allowed: accelerated, published, deterministic"),
            ({"dtype": "float16"}, "dtype is float16; allowed: float32, float64"),
            ({"initial_parameters": np.zeros(3)}, r"has the shape \(3,\); the model needs \(2410,\)"),
        ):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                self.fit(**arguments)
        with self.assertRaisesRegex(hfopt.Error, "damping.initial"):  # of the server
            self.fit(options={"damping.initial": -1})
        self.assertIn("preconditioner.lbfgs=none|frozen|flexible", hfopt.option_names())
        with self.assertRaisesRegex(TypeError, "int is neither an hfopt.Model nor"):
            hfopt.fit(3)

    def test_says_what_is_wrong_with_the_server(self):
        for environment, message in (
            ({"HFOPT_SERVER": "/nowhere"}, "HFOPT_SERVER is \"/nowhere\", which is no program"),
            ({"HFOPT_SERVER": "", "PATH": ""}, "neither on PATH nor in this package. Build it .* set HFOPT_SERVER"),
            ({"HFOPT_SERVER": "/bin/false"}, "hfopt-server ended with code 1"),
        ):
            with self.subTest(message), mock.patch.dict(os.environ, environment), \
                    self.assertRaisesRegex(hfopt.Error, message):
                self.fit()

    def test_leaves_the_server_its_instruction_set(self):
        server = pathlib.Path(self.folder) / "hfopt-server"
        server.write_text("#!/bin/sh\necho \"$HFOPT_CPU and $HFOPT_ADDRESS.\" >&2; exit 1\n")
        server.chmod(0o755)
        environment = {"HFOPT_SERVER": str(server), "HFOPT_CPU": "x86-64-v3", "HFOPT_ADDRESS": "of another server"}
        with mock.patch.dict(os.environ, environment), \
                self.assertRaisesRegex(hfopt.Error, "hfopt-server ended with code 1: x86-64-v3 and \\."):
            self.fit()

    def test_does_not_wait_for_ever_for_a_server_that_does_not_listen(self):
        server = pathlib.Path(self.folder) / "hfopt-server"
        server.write_text("#!/bin/sh\necho 'reading runs' >&2; exec sleep 50\n")
        server.chmod(0o755)
        with mock.patch.dict(os.environ, {"HFOPT_SERVER": str(server)}), \
                mock.patch("hfopt.local_server._LONGEST_START", 1.0), self.assertRaisesRegex(
                    hfopt.Error, "(?s)hfopt-server does not listen after 1 seconds.* words: reading runs\nIts log: "):
            self.fit()

    def test_says_so_when_the_server_is_killed(self):
        servers = []

        def kill(report, run):
            if report["iteration"] == 1:
                os.kill(servers[0]._process.pid, signal.SIGKILL)

        start = LocalServer.__init__

        def remember(server, *arguments):
            servers.append(server)
            start(server, *arguments)

        with mock.patch.object(LocalServer, "__init__", remember), self.assertRaisesRegex(
                hfopt.Error,
                f"(?s)hfopt-server was ended by SIGKILL: .*Its log: {self.folder}/server.log\nTo go on: .*resume=True"):
            self.fit(directory=self.folder, callbacks=[kill])
        np.testing.assert_array_equal(self.fit(directory=self.folder, resume=True).parameters, self.fit().parameters)

    def test_the_model_may_fork(self):
        gradient = self.model.gradient

        def forking(*arguments):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                self.assertEqual(pool.map(abs, [-1, 2, -3]), [1, 2, 3])
            return gradient(*arguments)

        self.model.gradient = forking
        forked = self.fit(max_iterations=2)
        self.model.gradient = gradient
        np.testing.assert_array_equal(forked.parameters, self.fit(max_iterations=2).parameters)

    def test_a_forked_process_may_train(self):
        process = multiprocessing.get_context("fork").Process(target=lambda: self.fit(max_iterations=1))
        process.start()
        process.join(60)
        self.assertEqual(process.exitcode, 0)

    def test_forks_do_without_grpcs_handlers_unless_they_are_asked_for(self):
        # The handlers can hang; grpc reads the variable when it is imported, which hfopt does.
        program = "import os, sys; assert 'grpc' not in sys.modules\nimport hfopt\nassert 'grpc' in sys.modules\n" \
                  "print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
        for given in None, "0", "1":
            environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
            environment.update({} if given is None else {"GRPC_ENABLE_FORK_SUPPORT": given})
            with self.subTest(given):
                said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60,
                                      stdout=subprocess.PIPE, text=True).stdout
                self.assertEqual(said, f"{given or '0'}\n")

    def test_several_processes_have_the_same_bits(self):
        alone = self.fit(shards=3)
        together = hfopt.fit(MAKE_DIGITS, workers=3, progress=False, max_iterations=4, dtype="float64", options=FEW)
        np.testing.assert_array_equal(together.parameters, alone.parameters)
        self.assertIsInstance(together.model, digits.DigitsModel)
        self.assertEqual(multiprocessing.active_children(), [])

    def test_all_processes_work(self):
        # Each shard is large enough to be computed while the others are, and there are callbacks until all have worked.
        answers = {}

        def stop_when_all_have(report, run):
            answers.update({w.worker_id: w.answers for w in run._client.get(run.run_id).workers})
            if len(answers) == 3 and all(answers.values()):
                run.stop()

        result = hfopt.fit(MAKE_DIGITS, workers=3, progress=False, max_iterations=0,
                           options={**FEW, "stop.max_rejections": 10**9}, callbacks=[stop_when_all_have])
        self.assertEqual(result.reason, "cancelled")
        self.assertEqual(sorted(answers), ["fit", "fit-2", "fit-3"])

    def test_no_process_outlives_the_one_that_trains(self):
        program = ("import functools, os, signal, digits, hfopt\n"
                   "def die(report, run):\n"
                   "    if len(run._client.get(run.run_id).workers) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
                   "if __name__ == '__main__':\n"
                   f"    make = functools.partial(digits.DigitsModel, {str(DIGITS)!r})\n"
                   "    hfopt.fit(make, workers=2, max_iterations=0, callbacks=[die], progress=False)\n")
        script = pathlib.Path(self.folder) / "script.py"
        script.write_text(program)
        # All of its processes hold its standard error, which ends when the last of them has.
        trainer = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE,
                                   env={**os.environ, "TMPDIR": self.folder})
        _, said = trainer.communicate(timeout=120)
        self.assertEqual(trainer.returncode, -signal.SIGKILL, said)

    def test_says_what_is_wrong_with_workers(self):
        for model, arguments, error, message in (
            (self.model, {"workers": 2}, TypeError, "model is a function that makes the model in each process, and not "
             "DigitsModel"),
            (lambda: self.model, {"workers": 2}, TypeError, "cannot be sent to another process"),
            (dict, {"workers": 2}, TypeError, "answered dict, not an hfopt.Model"),
            (MAKE_DIGITS, {"workers": 0}, ValueError, "workers is 0, shards is None; give 1 worker or more"),
            (MAKE_DIGITS, {"workers": 3, "shards": 2}, ValueError, "workers is 3, shards is 2"),
        ):
            with self.subTest(message), self.assertRaisesRegex(error, message):
                hfopt.fit(model, progress=False, **arguments)

    def test_begins_from_given_parameters(self):
        theta = self.model.initial_parameters(5, np.float64)
        np.testing.assert_array_equal(self.fit(initial_parameters=theta).parameters, self.fit(seed=5).parameters)

    def test_prints_a_line_for_each_iteration(self):
        with mock.patch("sys.stderr", io.StringIO()) as err:
            self.fit(progress=True, max_iterations=2)
        self.assertRegex(
            err.getvalue(),
            r"(?m)^iteration 1: held-out [0-9.]+, errors [0-9.]+, lambda [0-9.e-]+, rho .*, CG \d+ \(.*\), step .* s\n"
            r"iteration 2: ")

    def test_parameters_in_files(self):
        result = self.fit(max_iterations=2)
        path = os.path.join(self.folder, "theta.safetensors")
        result.save(path)
        loaded = hfopt.load_parameters(path)
        np.testing.assert_array_equal(loaded.theta, result.parameters)
        self.assertEqual((loaded.iteration, loaded.held_out_loss, loaded.metadata["hfopt.run"]),
                         (2, result.held_out_loss, "fit"))
        for size in 4, 100, os.path.getsize(path) - 1:
            os.truncate(path, size) if size != 4 else result.save(path) or os.truncate(path, 4)
            with self.subTest(size), self.assertRaises(ValueError):
                hfopt.load_parameters(path)
            result.save(path)
        self.assertEqual(os.listdir(self.folder), ["theta.safetensors"])


class ServerTest(unittest.TestCase):
    """On a server that is there: remote runs, several workers."""

    def setUp(self):
        self.model = digits.DigitsModel(DIGITS)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.server = LocalServer(folder.name, fail)
        self.addCleanup(self.server.stop)
        self.client = hfopt.RunClient(self.server.address)
        self.addCleanup(self.client.close)

    def fit(self, run, **arguments):
        return hfopt.fit(self.model, server=self.server.address, run=run, progress=False, options=FEW, dtype="float64",
                         shards=2, max_iterations=4, **arguments)

    def test_fits_on_a_running_server(self):
        result = self.fit("one")
        self.assertEqual(self.client.get("one").best_held_out_loss, result.held_out_loss)
        self.assertEqual([run.name for run in self.client.list()], ["runs/one"])
        self.client.delete("one")
        with self.assertRaises(hfopt.Error) as missing:
            self.client.get("one")
        self.assertEqual(missing.exception.code, "NOT_FOUND")

    def test_one_and_two_workers_have_the_same_bits(self):
        one = self.fit("one")
        self.client.create("two", run_options(options=FEW, dtype="float64", shards=2, max_iterations=4))
        command = [sys.executable, digits.__file__, "--data", DIGITS, "--server", self.server.address, "--run", "two"]
        workers = [subprocess.Popen([*command, "--worker-id", f"py-{i}"], stdout=subprocess.DEVNULL) for i in (1, 2)]
        while len(self.client.get("two").workers) < 2:
            self.assertIsNone(workers[0].poll())
        self.client.start("two")
        for worker in workers:
            self.assertEqual(worker.wait(60), 0)
        run = self.client.get("two")
        self.assertEqual([w.answers > 0 for w in run.workers], [True, True])
        best = self.client.download_parameters("two")
        np.testing.assert_array_equal(best.theta, one.parameters)
        self.assertEqual(best.held_out_loss, one.held_out_loss)
        last = self.client.download_parameters("two", "last")
        self.assertEqual(last.iteration, 4)
        np.testing.assert_array_equal(self.client.download_parameters("two", 4).theta, last.theta)

    def test_serves_a_run_and_leaves_on_a_signal(self):
        self.client.create("long", run_options(dtype="float64"))
        command = [sys.executable, digits.__file__, "--data", DIGITS, "--server", self.server.address, "--run", "long"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.addCleanup(worker.stdout.close)
        self.client.start("long")
        for event in self.client.watch("long"):
            if hasattr(event, "held_out_loss"):
                break  # after its first iteration
        worker.send_signal(signal.SIGTERM)
        self.assertIn("DRAINED", worker.communicate(timeout=60)[0])
        self.assertEqual(worker.returncode, 0)

    def test_a_connection_does_not_survive_a_fork(self):
        self.client.list()
        with mock.patch("os.getpid", return_value=os.getpid() + 1), \
                self.assertRaisesRegex(hfopt.Error, "was forked from it"):
            self.client.list()


if __name__ == "__main__":
    unittest.main()
