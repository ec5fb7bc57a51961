"""hfopt trains models with Hessian-free (truncated Gauss-Newton) optimization, hosted by an hfopt-server.

    result = hfopt.fit(model)                      # a private server, this process as its worker
    result = hfopt.fit(module, hfopt.losses.cross_entropy, train_data, heldout_data)  # a torch.nn.Module
    result = hfopt.least_squares(residuals, x0, jac)
    print(hfopt.check(model))                      # are its derivatives right?

`hfopt.Model` is what any model has to offer; hfopt.torch, hfopt.jax and hfopt.numpy make one of what you have.
"""
from __future__ import annotations

import importlib as _importlib
import os as _os
import pathlib as _pathlib
from typing import Any as _Any

# gRPC's fork handlers wait for its threads, at times for ever, and print to standard error, in every fork of a process
# that has a connection: that of a DataLoader's workers, for example. Nothing needs them: a connection of ours is used
# only by the process that made it. Read when grpc is imported, so it has to come first.
_os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if not (_pathlib.Path(__file__).parent / "v1").is_dir():
    # Run from source: the generated messages lie where the build put them.
    __path__ = __import__("pkgutil").extend_path(__path__, __name__)
try:
    from .v1 import evaluation_service_pb2 as _generated  # noqa: F401
except ModuleNotFoundError as _error:
    if not (_error.name or "").startswith("hfopt.v1"):
        raise
    raise ImportError(
        "hfopt's messages have not been generated. From source: build the target hfopt_python_stubs and put "
        "build/<preset>/python on PYTHONPATH beside client/python; or install the package: pip install client/python"
    ) from None

from . import numpy
from .allocator import keep_freed_pages
from .derivative_check import CheckReport, check
from .estimator import LeastSquaresRegressor
from .errors import Error, Interrupted
from .model import Model
from .numpy import least_squares
from .options import option_names
from .parameter_file import load_parameters, save_parameters
from .run_client import Parameters, RunClient
from .samples import SplitMix64, shuffled_indices
from .security import Security
from .training import History, Result, TrainingRun, fit, serve
from .worker import Finished, Worker

__version__ = "0.1.0"
__all__ = [
    "CheckReport", "Error", "Finished", "History", "Interrupted", "LeastSquaresRegressor", "Model", "Parameters",
    "Result", "RunClient", "Security", "SplitMix64", "TrainingRun", "Worker", "check", "fit", "keep_freed_pages",
    "least_squares", "load_parameters", "numpy", "option_names", "save_parameters", "serve", "shuffled_indices"]


def __getattr__(name: str) -> _Any:
    if name in ("torch", "jax", "losses"):  # imported when used
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module hfopt has no attribute {name!r}")
