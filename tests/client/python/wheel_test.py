"""The wheel: what is in it, and that it works alone."""
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])


def version(package):
    try:
        return int(importlib.metadata.version(package).split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return -1


@unittest.skipIf(
    version("setuptools") < 64 or version("wheel") < 0,
    "setuptools 64 or wheel is missing: the wheel is not tested (Debian: python3-setuptools, python3-wheel)")
class WheelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def copy_sources(self):
        source = self.folder / "source"  # setuptools writes beside what it builds
        shutil.copytree(SOURCE / "proto/hfopt", source / "proto/hfopt")
        ignore = shutil.ignore_patterns("build", "v1", "*.egg-info")
        shutil.copytree(SOURCE / "client/python", source / "client/python", ignore=ignore)
        return source / "client/python"

    def build(self, source=None, kind="wheel", **environment):
        build = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
        built = subprocess.run([sys.executable, "-c", build, str(self.folder)], cwd=source or self.copy_sources(),
                               capture_output=True, text=True, env={**os.environ, **environment})
        self.assertEqual(built.returncode, 0, built.stderr)
        file, = self.folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
        return file

    def test_has_everything_and_works_alone(self):
        wheel = self.build()
        self.assertEqual(wheel.name, "hfopt-0.1.0-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
            archive.extractall(self.folder / "installed")
        modules = {
            f"hfopt/{path.relative_to(SOURCE / 'client/python/hfopt')}"
            for pattern in ("*.py", "torch/*.py")
            for path in (SOURCE / "client/python/hfopt").glob(pattern)
        }
        messages = {
            f"hfopt/v1/{path.stem}_{kind}.py"
            for path in (SOURCE / "proto/hfopt/v1").glob("*.proto")
            for kind in ("pb2", "pb2_grpc")
        }
        self.assertEqual(names, modules | messages | {"hfopt/py.typed"})

        program = ("import hfopt, numpy; print(hfopt.__file__); "
                   "print(hfopt.least_squares(lambda x: x - 2, [0.0], lambda x: numpy.eye(1)).x.round(6).tolist())")
        ran = subprocess.run([sys.executable, "-c", program], cwd=self.folder, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(self.folder / "installed")})
        self.assertEqual(ran.stdout, f"{self.folder}/installed/hfopt/__init__.py\n[2.0]\n", ran.stderr)

    def test_a_source_distribution_builds_from_its_proto_files(self):
        archive = self.build(kind="sdist")
        self.assertEqual(archive.name, "hfopt-0.1.0.tar.gz")
        shutil.unpack_archive(archive, self.folder / "unpacked")
        source = self.folder / "unpacked/hfopt-0.1.0"
        protos = sorted(path.name for path in (SOURCE / "proto/hfopt/v1").glob("*.proto"))
        self.assertEqual(sorted(path.name for path in (source / "proto/hfopt/v1").iterdir()), protos)
        self.assertEqual(list(source.rglob("*_pb2*")), [])
        with zipfile.ZipFile(self.build(source)) as alone:
            names = set(alone.namelist())
        for name in protos:
            self.assertIn(f"hfopt/v1/{name[:-len('.proto')]}_pb2.py", names)
        self.assertIn("hfopt/py.typed", names)

    def test_may_have_the_server(self):
        wheel = self.build(HFOPT_WHEEL_SERVER=os.environ["HFOPT_SERVER"])
        self.assertRegex(wheel.name, "^hfopt-0.1.0-py3-none-linux_.*.whl$")
        shutil.unpack_archive(wheel, self.folder / "installed", "zip")
        server = self.folder / "installed/hfopt/bin/hfopt-server"
        self.assertEqual(server.stat().st_size, os.path.getsize(os.environ["HFOPT_SERVER"]))
        with zipfile.ZipFile(wheel) as archive:  # which pip keeps executable
            self.assertTrue(archive.getinfo("hfopt/bin/hfopt-server").external_attr >> 16 & 0o100)

    def test_says_what_is_missing_when_messages_are(self):
        program = "import hfopt"
        ran = subprocess.run([sys.executable, "-c", program], cwd=self.folder, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(SOURCE / "client/python")})
        self.assertIn("hfopt's messages have not been generated. From source: build the target hfopt_python_stubs",
                      ran.stderr)


if __name__ == "__main__":
    unittest.main()
