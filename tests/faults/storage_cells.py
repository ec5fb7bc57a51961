"""Disks that are full or cannot be written, on a small file system of their own."""
from __future__ import annotations

from typing import List

from cell import Cell, resume
from cluster import SMALL, Cluster, Failure, await_condition


def full_disk(cluster: Cluster) -> None:
    """Nothing more can be written after the first iteration. The run says so, and which directory, and waits with what it has computed."""
    await_condition("the server stops after the first iteration", cluster.server.is_stopped)
    cluster.disk.fill()
    resume([cluster.server])
    detail = cluster.await_detail("waiting for space").state_detail
    if str(cluster.state) not in detail or "(0 bytes free)" not in detail:
        raise Failure(f"directory and space are not in: {detail}")


def full_disk_emptied(cluster: Cluster) -> None:
    full_disk(cluster)
    cluster.disk.empty()


def full_disk_and_kill(cluster: Cluster) -> None:
    full_disk(cluster)
    cluster.server.kill()
    cluster.disk.empty()
    cluster.restart_killed()


def read_only(cluster: Cluster) -> None:
    """The directory of the run cannot be written. That is an error for a person; then the run is resumed."""
    await_condition("the server stops after the first iteration", cluster.server.is_stopped)
    run = str(cluster.state / "runs/r")
    cluster.disk.run("mount", "--bind", run, run)
    cluster.disk.run("mount", "-o", "remount,bind,ro", run)
    resume([cluster.server])
    detail = cluster.await_detail("cannot save the checkpoint of iteration 2").state_detail
    if run not in detail or "Read-only file system" not in detail:
        raise Failure(f"directory and reason are not in: {detail}")
    cluster.disk.run("umount", run)
    cluster.work_was_lost = True
    cluster.resume()


STORAGE = {"full-disk": full_disk_emptied, "full-disk-and-kill": full_disk_and_kill, "read-only": read_only}


def storage_cell(name: str) -> Cell:
    return Cell(f"storage/{name}", SMALL, {"server": "run.published=stop@1"}, STORAGE[name], {"server": "run.published"}, own_disk=True)


def storage_cells() -> List[Cell]:
    return [storage_cell(name) for name in STORAGE]
