"""Workers that join a run, leave it and come back."""
from __future__ import annotations

import signal
from typing import List

from cell import Cell
from cluster import LONG, Cluster, Failure, await_condition

SLOWLY = {"server": "evaluation.dispatch=sleep(2)"}  # so that the run outlasts the start of processes


def others_take_part(cluster: Cluster, *names: str) -> None:
    """From now on, once more."""
    before = cluster.answers()
    await_condition(f"{', '.join(names)} have answered", lambda: all(cluster.answers().get(name, 0) > before.get(name, 0) for name in names))


def one_six_two(cluster: Cluster) -> None:
    """One worker has all six shards, then six have one each, then two have three each."""
    others_take_part(cluster, "a")
    cluster.hire("b", "c", "d", "e", "f")
    others_take_part(cluster, *"abcdef")
    cluster.let_go(signal.SIGTERM, "c", "d")
    left = [cluster.processes[name].exit_code for name in "cd"]
    if left != [0, 0]:
        raise Failure(f"workers that were asked to leave ended with {left}")
    cluster.let_go(signal.SIGKILL, "a", "e")
    others_take_part(cluster, "b", "f")
    if cluster.iteration() > LONG.iterations:
        raise Failure("the run ended before all of it had happened")


def comes_back(cluster: Cluster) -> None:
    """Killed and started again under its name, three times: a newer incarnation each time."""
    for _ in range(3):
        others_take_part(cluster, "b")
        cluster.processes["b"].kill()
        cluster.restart_killed()
    others_take_part(cluster, "a", "b")


def twin(cluster: Cluster) -> None:
    """A second process under the name of one that is at work: the newer one is taken, the older one told so and ends."""
    others_take_part(cluster, "a", "b")
    older = cluster.processes["b"]
    cluster.start("b")
    await_condition("the older b ends", lambda: older.exit_code is not None)
    if older.exit_code == 0 or "replaced by a newer session of worker b" not in older.output():
        raise Failure(f"the older b ended with {older.exit_code}:\n{older.output()}")
    others_take_part(cluster, "a", "b")


def private_shards(cluster: Cluster) -> None:
    """Nobody else has the data of b's shards: the run waits for it, and says for which."""
    others_take_part(cluster, "a", "b")
    cluster.processes["b"].kill()
    cluster.await_detail("3 of 6 shards served; waiting for a worker with shard 3, 4, 5")
    cluster.restart_killed()
    others_take_part(cluster, "a", "b")


def elastic_cells() -> List[Cell]:
    return [
        Cell("elastic/1-6-2", LONG, SLOWLY, one_six_two, first_workers=("a",)),
        Cell("elastic/comes-back", LONG, SLOWLY, comes_back, first_workers=("a", "b")),
        Cell("elastic/twin", LONG, SLOWLY, twin, first_workers=("a", "b")),
        Cell("elastic/private-shards", LONG, SLOWLY, private_shards, first_workers=("a", "b"), private_shards={"a": "0,1,2", "b": "3,4,5"}),
    ]
