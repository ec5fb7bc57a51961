"""A cell of the matrix: what happens to a training that has to end with the bits of an undisturbed one."""
from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Tuple

from cluster import WORKERS, Cluster, Model, Process, Result
from proxy import Link

ATTACH_FAILS = "worker.attach=error"  # vectors go in chunks then


@dataclass
class Cell:
    name: str
    model: Model
    rules: Dict[str, str]  # process -> failpoints
    disturb: Callable[[Cluster], None]
    expected: Dict[str, str] = field(default_factory=dict)  # process -> the failpoint that has to act in it
    own_disk: bool = False
    links: Dict[str, Link] = field(default_factory=dict)  # process -> its way to the server
    tls: bool = False
    journal: bool = False  # the server keeps the answers of the iteration under way
    first_workers: Tuple[str, ...] = WORKERS
    private_shards: Dict[str, str] = field(default_factory=dict)  # worker -> those that it alone can serve
    verify: Callable[[Cluster, Result], None] = lambda cluster, result: None  # what has to hold at the end besides the bits


def rule(point: str, action: str) -> str:
    """"x@3", "crash" -> "x=crash@3"."""
    name, _, passage = point.partition("@")
    return f"{name}={action}@{passage}"


def armed(chunks: bool, rules: Dict[str, str]) -> Dict[str, str]:
    """With every worker's vectors going through gRPC if wanted."""
    if not chunks:
        return rules
    return {**rules, **{name: ";".join(filter(None, (ATTACH_FAILS, rules.get(name, "")))) for name in WORKERS}}


def resume(processes: List[Process]) -> None:
    for process in processes:
        process.signal(signal.SIGCONT)
