"""What people see of a training: a bar on a terminal, a table in a notebook, lines elsewhere."""
import importlib.util
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np

import digits
import hfopt
from hfopt import progress

DIGITS = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/models/digits"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class ProgressTest(unittest.TestCase):
    def shown(self, file, **modules):
        """What a training of three iterations writes where these modules are None, that is, missing."""
        with mock.patch.dict(sys.modules, modules), mock.patch("sys.stderr", file):
            self.result = hfopt.fit(digits.DigitsModel(DIGITS), max_iterations=3)
        return file.getvalue()

    def test_writes_lines_without_a_terminal(self):
        lines = self.shown(io.StringIO()).splitlines()
        self.assertEqual([line.split(":")[0] for line in lines], ["iteration 1", "iteration 2", "iteration 3"])
        self.assertIn(f"held-out {self.result.held_out_loss:.6g}, errors ", lines[-1])

    def test_writes_lines_on_a_terminal_without_a_library(self):
        self.assertEqual(self.shown(Terminal(), **{"rich": None, "rich.console": None, "tqdm": None}).count("\n"), 3)

    @unittest.skipUnless(importlib.util.find_spec("tqdm"), "tqdm is not installed: its bar is not tested")
    def test_shows_a_bar_of_tqdm(self):
        text = self.shown(Terminal(), **{"rich": None, "rich.console": None})
        self.assertRegex(text, rf"fit: 100%.*3/3 .*held-out {self.result.held_out_loss:.6g}, errors ")

    @unittest.skipUnless(importlib.util.find_spec("rich"), "rich is not installed: its bar is not tested")
    def test_shows_a_bar_of_rich(self):
        with mock.patch.dict(os.environ, {"COLUMNS": "150", "TERM": "xterm"}):
            text = self.shown(Terminal())
        self.assertIn("iteration 3, held-out", text)

    def test_shows_a_table_in_a_notebook(self):
        updates = []

        class Handle:
            def update(self, shown):
                updates.append(shown)

        def display(shown, display_id):
            self.assertTrue(display_id)
            updates.append(shown)
            return Handle()

        with mock.patch("hfopt.progress._in_notebook", lambda: progress._Notebook(display, str)):
            self.assertEqual(self.shown(io.StringIO()), "")
        self.assertEqual(len(updates), 4)
        self.assertEqual(updates[0], "run fit: starting")
        self.assertEqual(updates[-1].count("<tr>"), 4)
        self.assertIn("<th>held-out</th><th>errors</th>", updates[-1])

    def test_what_cannot_begin_says_why_however_it_is_shown(self):
        def interrupt(*_):
            raise KeyboardInterrupt

        no_server = mock.patch.dict(os.environ, {"HFOPT_SERVER": "/nowhere"})
        interrupted = mock.patch("hfopt.run_client.RunClient.create", interrupt)
        for make in (progress.Progress, lambda: progress._Tqdm(None), lambda: progress._Rich(mock.Mock()),
                     lambda: progress._Notebook(None, str)):
            for failing, error, message in ((no_server, hfopt.Error, "HFOPT_SERVER is \"/nowhere\""),
                                            (interrupted, hfopt.Interrupted, "stopped. To go on: ")):
                shown = make()
                with self.subTest(type(shown).__name__, error=error.__name__), failing, \
                        mock.patch("hfopt.training.make_progress", lambda wanted: shown), \
                        mock.patch("sys.stderr", io.StringIO()), tempfile.TemporaryDirectory() as folder, \
                        self.assertRaisesRegex(error, message):
                    hfopt.fit(digits.DigitsModel(DIGITS), max_iterations=1, directory=folder)

    def test_is_silent_when_asked(self):
        with mock.patch("sys.stderr", io.StringIO()) as err, mock.patch("sys.stdout", io.StringIO()) as out:
            hfopt.fit(digits.DigitsModel(DIGITS), max_iterations=1, progress=False)
        self.assertEqual(out.getvalue() + err.getvalue(), "")

    @unittest.skipUnless(importlib.util.find_spec("pandas"), "pandas is not installed: History.to_frame is not tested")
    def test_the_history_is_a_table(self):
        self.shown(io.StringIO())
        frame = self.result.history.to_frame()
        self.assertEqual(list(frame.index), [1, 2, 3])
        self.assertEqual(frame["held_out_loss"].iloc[-1], self.result.held_out_loss)
        self.assertIn(frame["cg_stop"].iloc[0], ("small_progress", "max_iterations"))


class ParameterFileTest(unittest.TestCase):
    def test_a_damaged_header_is_a_value_error(self):
        def file(size=8, metadata=None, **tensor):
            whole = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **tensor}
            header = json.dumps({"theta": whole, "__metadata__": {} if metadata is None else metadata}).encode()
            return len(header).to_bytes(8, "little") + header + bytes(size)

        deep = b"[" * 100000
        damaged = {
            "texts for offsets": file(data_offsets=["0", "8"]), "fractions": file(data_offsets=[0.0, 8.0]),
            "a fraction of a number": file(shape=[2.0]), "nothing": file(data_offsets=[None, 8]),
            "lists": file(data_offsets=[[0], [8]]), "one offset": file(data_offsets=[8]), "truths": file(shape=[True]),
            "beyond the end": file(data_offsets=[8, 16]), "below the beginning": file(data_offsets=[-8, 0]),
            "a list for a type": file(dtype=["F32"]), "a text for metadata": file(metadata="x"),
            "an iteration that is none": file(metadata={"hfopt.iteration": "first"}),
            "an endless iteration": file(metadata={"hfopt.iteration": float("inf")}),
            "a loss that is none": file(metadata={"hfopt.held_out_loss": [1]}),
            "nested without end": len(deep).to_bytes(8, "little") + deep,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "theta"
            path.write_bytes(file())
            self.assertEqual(hfopt.load_parameters(path).theta.tolist(), [0, 0])
            for name, content in damaged.items():
                path.write_bytes(content)
                with self.subTest(name), self.assertRaisesRegex(ValueError, f"{path} (is damaged: |has no vector )"):
                    hfopt.load_parameters(path)

    def test_metadata_are_texts(self):
        with tempfile.TemporaryDirectory() as folder:
            for metadata, message in (({"epoch": 3}, "metadata: 'epoch' is 3; .* must be texts, .* 'epoch': '3'"),
                                      ({3: "epoch"}, "metadata: 3 is 'epoch'; .* '3': 'epoch'")):
                with self.subTest(metadata), self.assertRaisesRegex(TypeError, message):
                    hfopt.save_parameters(f"{folder}/theta", np.zeros(2), metadata)
            self.assertEqual(os.listdir(folder), [])

    @unittest.skipUnless(importlib.util.find_spec("safetensors"),
                         "safetensors is not installed: its reading of our files is not tested")
    def test_others_read_our_files_and_we_theirs(self):
        from safetensors.numpy import load_file, save_file
        with tempfile.TemporaryDirectory() as folder:
            for dtype in np.float32, np.float64:
                theta = np.linspace(0, 1, 7, dtype=dtype)
                hfopt.save_parameters(f"{folder}/ours", theta, {"who": "we"})
                np.testing.assert_array_equal(load_file(f"{folder}/ours")["theta"], theta)
                save_file({"a": np.zeros(3), "theta": theta}, f"{folder}/theirs")
                np.testing.assert_array_equal(hfopt.load_parameters(f"{folder}/theirs").theta, theta)


if __name__ == "__main__":
    unittest.main()
