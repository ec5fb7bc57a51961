"""The code of client/python/from-pytorch.md runs as it is printed."""

import contextlib
import io
import os
import pathlib
import re
import unittest

import gauss_newton as check

check.require("torch", "apt-get install python3-torch, or pip install torch", __name__)

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])


class FromPytorchTest(unittest.TestCase):

    def test_the_code_runs(self):
        page = (SOURCE / "client/python/from-pytorch.md").read_text()
        blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        self.assertEqual(len(blocks), 2)
        variables, printed, folder = {}, io.StringIO(), os.getcwd()
        os.chdir(SOURCE)
        try:
            with contextlib.redirect_stdout(printed):
                for block in blocks:
                    exec(compile(block, "from-pytorch.md", "exec"), variables)
        finally:
            os.chdir(folder)
        self.assertIn("held-out digits wrong", printed.getvalue())
        self.assertLess(variables["errors"], 60)
        self.assertEqual(len(variables["result"].parameters), 64 * 32 + 32 + 32 * 10 + 10)


if __name__ == "__main__":
    unittest.main()
