"""Builds the wheel: the modules, and the messages of proto/hfopt/v1 as Python. A source distribution has the .proto
files instead, and builds from them.

protoc and grpc_python_plugin on PATH are preferred to the package grpcio-tools: messages work with a runtime that is at
least as new as the compiler they come from, so those of a distribution's compiler work with its own packages and with
all later releases.

HFOPT_WHEEL_SERVER=build/release/server/hfopt-server puts that program into the wheel, for machines like the one it was
built on.
"""
import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70
    from wheel.bdist_wheel import bdist_wheel

HERE = pathlib.Path(__file__).resolve().parent
# A source distribution has the .proto files beside this file.
PROTOS = HERE / "proto" if (HERE / "proto").is_dir() else HERE.parent.parent / "proto"
SERVER = os.environ.get("HFOPT_WHEEL_SERVER")


def generate_messages(folder):
    """hfopt/v1/*_pb2.py and *_pb2_grpc.py in the folder."""
    files = sorted((PROTOS / "hfopt/v1").glob("*.proto"))
    if not files:
        raise SystemExit(
            f"{PROTOS}/hfopt/v1 has no .proto files: build in a checkout of the whole repository (pip install "
            "client/python), or from a source distribution")
    plugin = shutil.which("grpc_python_plugin")
    if shutil.which("protoc") and plugin:
        command = ["protoc", f"--plugin=protoc-gen-grpc_python={plugin}"]
    else:
        command = [sys.executable, "-m", "grpc_tools.protoc"]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, f"-I{PROTOS}", f"--python_out={folder}", f"--grpc_python_out={folder}", *map(str, files)],
                   check=True)


class Build(build_py):
    def run(self):
        super().run()
        folder = HERE if getattr(self, "editable_mode", False) else pathlib.Path(self.build_lib)
        generate_messages(folder)
        if SERVER:
            (folder / "hfopt/bin").mkdir(exist_ok=True)
            shutil.copy(SERVER, folder / "hfopt/bin/hfopt-server")


class Source(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(PROTOS / "hfopt/v1", pathlib.Path(base_dir) / "proto/hfopt/v1")


class Package(Distribution):
    def has_ext_modules(self):  # whether it is for one platform
        return bool(SERVER)


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if SERVER else (python, abi, platform)


setup(distclass=Package, cmdclass={"build_py": Build, "bdist_wheel": Wheel, "sdist": Source})
