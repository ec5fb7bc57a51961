"""client/python/tutorial.ipynb runs from top to bottom, and what is stored in it is what comes out."""

import os
import pathlib
import re
import shutil
import tempfile
import unittest

import gauss_newton as check

check.require("nbclient", "apt-get install python3-nbclient, or pip install nbclient", __name__)
check.require("ipykernel", "apt-get install python3-ipykernel, or pip install ipykernel", __name__)
check.require("pandas", "apt-get install python3-pandas, or pip install pandas", __name__)
check.require("matplotlib", "apt-get install python3-matplotlib, or pip install matplotlib", __name__)

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])
NOTEBOOK = SOURCE / "client/python/tutorial.ipynb"


def texts(cell):
    """What a cell wrote as plain text, with numbers of other machines and moments taken out."""
    plain = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return [re.sub(r"-?\d[\d.e+-]*", "#", text) for text in plain]


class TutorialTest(unittest.TestCase):

    def setUp(self):
        # Laid out as in the source, so that what the notebook writes is not left there.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "python"
        self.folder.mkdir()
        (self.folder.parent / "models").symlink_to(SOURCE / "client/models")
        for name in "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR":
            os.environ[name] = str(pathlib.Path(folder.name) / name)
        os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

    def test_runs_and_gives_what_is_stored(self):
        import nbclient
        import nbformat
        import traitlets.config

        stored, fresh = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
        sockets = {"transport": "ipc", "ip": str(self.folder.parent / "kernel")}
        client = nbclient.NotebookClient(fresh, timeout=300, kernel_name="python3",
                                         resources={"metadata": {"path": str(self.folder)}},
                                         config=traitlets.config.Config({"KernelManager": sockets}))
        client.execute()  # raises with the traceback of a cell that does

        codes = [(old, new) for old, new in zip(stored.cells, fresh.cells) if old.cell_type == "code"]
        for old, new in codes:
            with self.subTest(old.source.splitlines()[0]):
                self.assertEqual([sorted(output.get("data", {})) for output in old.outputs],
                                 [sorted(output.get("data", {})) for output in new.outputs])
                if "history[[" not in old.source:  # pandas has its own mind about columns
                    self.assertEqual(texts(old), texts(new))
        said = "".join(output.get("text", "") for _, new in codes for output in new.outputs)
        self.assertIn("failed: ['gradient', 'samples']", said)
        self.assertIn("the same bits as without the interruption: True", said)
        self.assertIn("the same bits as on a server of its own: True", said)
        self.assertLess(int(re.search(r"(\d+) of 397 held-out digits wrong", said).group(1)), 25)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_names_no_folder_of_the_machine_that_it_ran_on(self):
        self.assertNotRegex(NOTEBOOK.read_text(), r"(/home|/root|/tmp|/usr)/")


if __name__ == "__main__":
    unittest.main()
