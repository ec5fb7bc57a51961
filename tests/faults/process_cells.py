"""Server and workers killed and stopped at named places."""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import List

from cell import Cell, armed, resume, rule
from cluster import LARGE, LEASE_SECONDS, SMALL, Cluster, Failure, Result, await_condition


@dataclass(frozen=True)
class Place:
    """A moment of a training, as the server and as a worker passes it: failpoint@passage, in the second iteration where there is a choice."""
    name: str
    server: str
    worker: str = ""  # "": only the server passes it; workers are hit while it is held there
    chunks: bool = False  # vectors go through gRPC, not through shared memory


PLACES = (
    Place("before-answer", "evaluation.dispatch@31", "worker.answer@12"),
    Place("upload-chunks", "session.receive_chunk@67", "worker.send_chunk@22", chunks=True),
    Place("upload-shared", "session.receive_slot@25", "worker.send_slot@9"),
    Place("uploaded-chunks", "session.answer@37", "worker.uploaded@12", chunks=True),
    Place("uploaded-shared", "session.answer@37", "worker.uploaded@12"),
    Place("gradient", "evaluation.gradient@4", "worker.gradient@2"),
    Place("cg-solve", "evaluation.product@22", "worker.product@8"),
    Place("backtracking", "evaluation.backtracking@2", "worker.backtracking@2"),
    Place("line-search", "evaluation.line_search@2", "worker.line_search@2"),
    Place("checkpoint-write", "file.write@5"),
    Place("checkpoint-rename", "checkpoint.rename@3"),
)
VICTIMS = ("server", "worker", "workers", "server+workers")

# The failpoints that are no place above: what passes them crashes there.
OTHER_POINTS = {
    "session.hello": "server@2",
    "session.send_chunk": "server@8",
    "session.send_slot": "server@4",
    "run.report": "server@2",
    "run.checkpoint": "server@2",
    "run.published": "server@2",
    "run.end": "server@1",
    "catalogue.write": "server@9",
    "checkpoint.best": "server@2",
    "checkpoint.rename_best": "server@2",
    "checkpoint.sync": "server@3",
    "checkpoint.prune": "server@3",
    "file.sync": "server@3",
    "worker.hello": "a@1",
    "worker.welcome": "a@1",
    "worker.attach": "a@2",
    "worker.receive_chunk": "a@5",
    "worker.receive_slot": "a@4",
    "worker.request": "a@12",
    "worker.initial_parameters": "a@1",
    "worker.answered": "a@12",
    "worker.finished": "a@1",
}


def outlast_lease(since: float) -> None:
    """A stopped server can be seen doing nothing; what is waited for is the time after which it has to think its workers lost."""
    await_condition("the lease is over", lambda: time.monotonic() > since + 1.2 * LEASE_SECONDS)


def kill_cell(victim: str, place: Place) -> Cell:
    on_server = victim.startswith("server") or not place.worker
    trigger = "server" if on_server else "a"
    point = place.server if on_server else place.worker
    held = on_server and not victim.startswith("server")  # the server only marks the moment

    def disturb(cluster: Cluster) -> None:
        process = cluster.processes[trigger]
        if held:
            await_condition(f"{trigger} stops at {point}", process.is_stopped)
        elif on_server:
            await_condition(f"{trigger} crashes at {point}", process.was_killed)
        else:
            cluster.await_moment(f"{trigger} crashes at {point}", process.was_killed)
        if victim == "worker":
            cluster.processes["a"].kill()
        elif victim.endswith("workers"):
            for worker in cluster.workers:
                worker.kill()
        if held:
            resume([process])
        cluster.restart_killed()

    rules = armed(place.chunks, {trigger: rule(point, "stop" if held else "crash")})
    return Cell(f"kill/{victim}/{place.name}", LARGE if place.chunks else SMALL, rules, disturb, {trigger: point.partition("@")[0]})


def stop_cell(victim: str, place: Place) -> Cell:
    on_server = victim.startswith("server") or not place.worker
    trigger = "server" if on_server else "a"
    point = place.server if on_server else place.worker

    def disturb(cluster: Cluster) -> None:
        stops = cluster.processes[trigger].is_stopped
        if on_server:
            await_condition(f"{trigger} stops at {point}", stops)
        else:
            cluster.await_moment(f"{trigger} stops at {point}", stops)
        since = time.monotonic()
        stopped = {"server": [], "worker": cluster.workers[:1]}.get(victim, cluster.workers)
        for worker in stopped:
            worker.stop()
        if victim.startswith("server"):
            outlast_lease(since)
        resume([cluster.server])
        if len(stopped) == 1:
            before = cluster.iteration()
            await_condition("the others finish an iteration", lambda: cluster.iteration() > before)
        elif stopped:
            await_condition("the run waits for workers", cluster.is_waiting_for_workers)
        resume(stopped)

    rules = armed(place.chunks, {trigger: rule(point, "stop")})
    return Cell(f"stop/{victim}/{place.name}", LARGE if place.chunks else SMALL, rules, disturb, {trigger: point.partition("@")[0]})


def point_cell(point: str, where: str) -> Cell:
    process, _, passage = where.partition("@")
    chunks = point.endswith("_chunk")
    rules = armed(chunks, {process: f"{point}=crash@{passage}"})
    return Cell(f"point/{point}", LARGE if chunks else SMALL, rules, lambda cluster: None, {process: point})


def journal_cell(point: str) -> Cell:
    """The server is killed in the middle of an iteration, and goes on in the middle of it."""
    def disturb(cluster: Cluster) -> None:
        await_condition(f"the server crashes at {point}", cluster.server.was_killed)
        cluster.restart_killed()

    def verify(cluster: Cluster, result: Result) -> None:
        if " answers of its journal" not in cluster.server.output():
            raise Failure("the server did not go on after answers of its journal")
    name = point.partition("@")[0]
    return Cell(f"journal/{name}", SMALL, {"server": rule(point, "crash")}, disturb, {"server": name}, journal=True, verify=verify)


JOURNAL_POINTS = ("journal.write@8", "journal.sync@8", "evaluation.product@22", "evaluation.backtracking@2",
                  "evaluation.line_search@2", "run.report@2", "checkpoint.rename@3")


def process_cells() -> List[Cell]:
    cells = [journal_cell(point) for point in JOURNAL_POINTS]
    cells += [kill_cell(victim, place) for place in PLACES for victim in VICTIMS]
    cells += [stop_cell(victim, place) for place in PLACES for victim in VICTIMS]
    return cells + [point_cell(point, where) for point, where in OTHER_POINTS.items()]
