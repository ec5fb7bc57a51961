"""Parameters in files of the safetensors format, as `hfopt params download` and the server's checkpoints have them:
tensor "theta"."""
from __future__ import annotations

import json
import os
from typing import Any, Dict, Mapping, Optional

import numpy as np

from .run_client import Parameters

_TENSOR = "theta"
_DTYPES: Dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_LONGEST_HEADER = 100 << 20  # the format's own limit


def save_parameters(path: Any, parameters: Any, metadata: Optional[Mapping[str, str]] = None) -> None:
    """Writes `parameters`, one vector (an hfopt.Parameters, or an array of float32 or float64), and the texts of
    `metadata` to the file at `path`, which is replaced as a whole, once all is on disk. ValueError for anything but one
    vector; TypeError for metadata that are no texts, which the format has alone; OSError when it cannot be written."""
    texts = dict(metadata or {})
    for name, text in texts.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError(f"metadata: {name!r} is {text!r}; names and values must be texts, for example "
                            f"{str(name)!r}: {str(text)!r}")
    if isinstance(parameters, Parameters):
        texts = {**parameters.metadata, "hfopt.iteration": str(parameters.iteration),
                 "hfopt.held_out_loss": repr(parameters.held_out_loss), **texts}
        parameters = parameters.theta
    theta = np.asarray(parameters)
    dtype = next((name for name, known in _DTYPES.items() if known == theta.dtype.newbyteorder("<")), None)
    if dtype is None or theta.ndim != 1:
        raise ValueError(
            f"parameters of the type {theta.dtype} and the shape {theta.shape}; they must be one vector of float32 or "
            "float64")
    header = {
        "__metadata__": texts, _TENSOR: {"dtype": dtype, "shape": list(theta.shape), "data_offsets": [0, theta.nbytes]}
    }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.write(np.ascontiguousarray(theta, _DTYPES[dtype]).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def load_parameters(path: Any) -> Parameters:
    """Reads the file at `path` that `save_parameters`, `hfopt params download` or `hfopt train` wrote, or a checkpoint
    of a server. ValueError, with the reason, when that is no such file; OSError when it cannot be read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is no safetensors file: its header would have {length} of {size} bytes")
        try:
            header = json.loads(file.read(length))
            metadata = dict(header.get("__metadata__", {}))
            iteration = int(metadata.get("hfopt.iteration", 0))
            held_out_loss = float(metadata.get("hfopt.held_out_loss", "nan"))
            tensor = header[_TENSOR]
            dtype, (n,), (begin, end) = _DTYPES[tensor["dtype"]], tensor["shape"], tensor["data_offsets"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} has no vector \"{_TENSOR}\" of F32 or F64: {error!r}") from None
        numbers = all(type(x) is int for x in (n, begin, end))
        if not numbers or not 0 <= begin <= end <= size - 8 - length or end - begin != n * dtype.itemsize:
            raise ValueError(
                f"{path} is damaged: \"{_TENSOR}\" of {n} numbers is at bytes {begin} to {end} of {size - 8 - length}")
        file.seek(8 + length + begin)
        theta = np.fromfile(file, dtype, n)
    theta.flags.writeable = False
    return Parameters(theta, iteration, held_out_loss, metadata)
