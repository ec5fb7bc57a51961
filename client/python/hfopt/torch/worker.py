"""A worker of as many processes as torchrun starts: one `hfopt.torch.WorkerGroup`.

    torchrun --nproc-per-node 4 --max-restarts 3 -m hfopt.torch.worker --server HOST:PORT --run digits \
        --worker-id group-1 my_training:make

makes in each process what my_training.make returns, which has to be the same in all of them: module, loss, training and
held-out data, and perhaps a dict of further arguments, for `hfopt.torch.as_model`; or an `hfopt.Model`. TLS and tokens
are given by the environment (`hfopt.Security.from_environment`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from typing import List, Optional

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from ..errors import Error
from ..model import Model, is_model
from ..security import Security
from . import TorchModel, WorkerGroup


def make_model(factory: str, arguments: List[str]) -> Model:
    """What the function MODULE:FACTORY makes of the arguments."""
    module, _, name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (AttributeError, ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module:
            raise  # of an import inside it
        raise Error(f"{factory} names no function: {error}; give MODULE:FUNCTION of a module in this folder or on "
                    "PYTHONPATH") from None
    made = function(*arguments)
    if is_model(made):
        model: Model = made
        return model
    if not isinstance(made, tuple) or len(made) not in (4, 5):
        raise Error(f"{factory} made {type(made).__name__}; it has to return (module, loss, train_data, heldout_data), "
                    "perhaps with a dict of further arguments of hfopt.torch.as_model, or an hfopt.Model")
    options = made[4] if len(made) == 5 else {}
    return TorchModel(*made[:4], **options)


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torchrun ... -m hfopt.torch.worker",
        description="Works for a run with all processes of torchrun as one worker.")
    parser.add_argument("--server", default="localhost:7447", help="address of the hfopt-server (default: %(default)s)")
    parser.add_argument("--run", required=True, help="id of the run to work for; waited for if it is not there yet")
    parser.add_argument("--worker-id", required=True,
                        help="of the group: stable over restarts, one for each group of a run")
    parser.add_argument("--shards", type=lambda text: [int(shard) for shard in text.split(",")], default=[],
                        metavar="S,S,...", help="logical shards whose data the group has (default: any)")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS",
                        help="after which a silent rank is taken for lost (default: %(default)g)")
    parser.add_argument("--backend",
                        help="of torch.distributed, for vectors (default: nccl for models on GPUs, else gloo)")
    parser.add_argument("--give-up-after", type=float, default=600.0, metavar="SECONDS",
                        help="without a session (default: %(default)g)")
    parser.add_argument("factory", metavar="MODULE:FACTORY", help="function that makes the model")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="of the function, as text")
    return parser.parse_args(arguments)


def work(flags: argparse.Namespace) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    model = make_model(flags.factory, flags.arguments)
    group = WorkerGroup(model, flags.run, flags.worker_id, shards=flags.shards, timeout=flags.timeout,
                        backend=flags.backend, give_up_after=flags.give_up_after, log=say)
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: group.leave())  # at rank 0, with which the others end
    finished = group.run(flags.server, Security.from_environment())
    if group.rank == 0:
        say(f"run {flags.run}: finished: {finished.reason}: {finished.detail}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Optional[List[str]] = None) -> None:
    flags = parse(arguments)
    try:
        record(work)(flags)  # which tells torchrun the reason
    except Error as error:
        raise SystemExit(f"hfopt.torch.worker: {error}") from None


if __name__ == "__main__":
    main()
