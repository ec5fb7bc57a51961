"""client/python/reference writes a page for each module, on which every public name is described."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import gauss_newton as check
import reference_test

check.require("pdoc", "pip install pdoc; the distribution has none", __name__)

PROGRAM = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/python/reference"


def write(folder, **environment):
    return subprocess.run([sys.executable, "-W", "ignore", PROGRAM, folder], capture_output=True, text=True,
                          env={**os.environ, **environment})


class ReferencePagesTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name) / "pages"
        cls.done = write(cls.folder)

    def setUp(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr)

    def page(self, module):
        return (self.folder / (module.replace(".", "/") + ".html")).read_text(encoding="utf-8")

    def docs(self, page, name):
        """What stands below a name on a page, up to the next name; None where the name is not there."""
        sections = re.split('<(?:section|div) id="', page)[1:]
        section = next((s for s in sections if s.startswith(f'{name}"')), None)
        found = re.search(r'(?s)<div class="docstring">(.*?)</div>\s*\n', section or "")
        return None if section is None else re.sub("<[^>]*>", "", found.group(1)).strip() if found else ""

    def test_every_public_name_is_on_its_page_and_described(self):
        missing, seen = [], 0
        for module in reference_test.ReferenceTest().modules():
            page = self.page(module.__name__)
            missing += [] if re.search(r'<div class="docstring">\s*<p>\w', page) else [module.__name__]
            for name, thing in reference_test.public(module):
                if thing not in sys.modules.values():  # modules have their own pages
                    seen += 1
                    missing += [] if self.docs(page, name.rpartition(".")[2]) else [name]
        self.assertEqual(missing, [])
        self.assertGreater(seen, 35)

    def test_modules_are_linked_from_the_index(self):
        index = (self.folder / "index.html").read_text(encoding="utf-8")
        self.assertIn("hfopt.html", index)
        for module in reference_test.ReferenceTest().modules():
            self.assertTrue(self.page(module.__name__))

    def test_arguments_stay_as_they_are_laid_out(self):
        found = re.findall(r"(?s)<pre>(.*?)</pre>", self.page("hfopt"))
        text = re.sub("<[^>]*>", "", "\n".join(found))
        for line in ("\n  directory     of the private server: checkpoints, log.",
                     "\nfun      fun(x, *args, **kwargs) -&gt; residuals, m numbers"):
            self.assertTrue(line in text, line)

    def test_what_stands_beside_a_field_is_its_description(self):
        for module, name, text in (("hfopt", "Result.parameters", "those of the lowest held-out loss: 1-D"),
                                   ("hfopt", "Model.signature", "what the model is, for people and for the check"),
                                   ("hfopt.numpy", "FunctionModel.linearize", "The function v -> sum of J'HJ v")):
            self.assertRegex(self.docs(self.page(module), name), "^" + re.escape(text))

    def test_says_what_is_missing(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "pdoc.py").write_text("raise ImportError")
            said = write(self.folder, PYTHONPATH=folder + os.pathsep + os.environ["PYTHONPATH"])
        self.assertEqual(said.returncode, 1)
        self.assertIn("pdoc is not installed: pip install pdoc", said.stderr)


if __name__ == "__main__":
    unittest.main()
