"""Networks that delay, throttle, cut, reset, fall silent and corrupt, by a proxy between a worker and the server."""
from __future__ import annotations

import re
from typing import Callable, Dict, List, Tuple

from cell import Cell, armed
from cluster import LARGE, WORKERS, Cluster, Failure, Missed, Result, await_condition
from proxy import DOWN, UP, Accident, Link

# In the middle of the first vector that a worker sends, or is sent: vectors have 1,069,648 bytes. (A worker that is found slow is asked for less.)
IN_A_VECTOR = 600_000


def cell(name: str, links: Dict[str, Link], disturb: Callable[[Cluster], None] = lambda cluster: None, tls: bool = False,
         verify: Callable[[Cluster, Result], None] = lambda cluster, result: None) -> Cell:
    def verify_all(cluster: Cluster, result: Result) -> None:
        for process, link in links.items():
            happened = cluster.proxies[process].happened
            if tuple(happened) != link.accidents:
                raise Missed(f"of the accidents of {process}, {link.accidents}, only {happened} happened")
        verify(cluster, result)
    return Cell(f"network/{name}", LARGE, armed(True, {}), disturb, links=links, tls=tls, verify=verify_all)


def sessions(cluster: Cluster, worker: str) -> int:
    return cluster.processes[worker].output().count(": in session as ")


def comes_back(cluster: Cluster, result: Result) -> None:
    """Each worker of a link with accidents has dialled once more for each, and was in session again."""
    for name, proxy in cluster.proxies.items():
        if name in WORKERS and sessions(cluster, name) != 1 + len(proxy.link.accidents):
            raise Failure(f"{name} was in {sessions(cluster, name)} sessions; it had {len(proxy.link.accidents)} accidents")


def stays(cluster: Cluster, result: Result) -> None:
    """No worker lost its session or its lease: bytes were on their way all the time."""
    if any(sessions(cluster, name) != 1 for name in WORKERS) or result.reissued:
        raise Failure(f"sessions: {[sessions(cluster, name) for name in WORKERS]}, asked again: {result.reissued}")


def accident(kind: str, direction: str, tls: bool = False) -> Cell:
    return cell(f"{kind}/{direction}", {"a": Link(accidents=(Accident(kind, direction, IN_A_VECTOR),))}, tls=tls, verify=comes_back)


def accidents_for_everyone(kind: str) -> Cell:
    """The first connection of every worker breaks, at a byte of its own."""
    links = {name: Link(accidents=(Accident(kind, UP if i % 2 else DOWN, 300_000 + 200_000 * i),)) for i, name in enumerate(WORKERS)}
    return cell(f"{kind}/everyone", links, verify=comes_back)


def silence(kind: str, direction: str) -> Cell:
    """A connection on which nothing passes any more and nobody says so. The others take over when the lease is over."""
    def disturb(cluster: Cluster) -> None:
        cluster.await_moment("the link of a is silent", lambda: bool(cluster.proxies["a"].happened))
        before = cluster.iteration()
        await_condition("the others finish an iteration", lambda: cluster.iteration() > before)
        cluster.proxies["a"].end_silence()
    return cell(f"{kind}/{direction}", {"a": Link(accidents=(Accident(kind, direction, IN_A_VECTOR),))}, disturb)


def silence_for_ever() -> Cell:
    """Both sides notice by themselves, by their pings: the server drops the connection, the worker is told that the run has ended meanwhile."""
    def disturb(cluster: Cluster) -> None:
        await_condition("the link of a is silent", lambda: cluster.proxies["a"].happened)
        before = cluster.connections()
        await_condition("the others end the run", cluster.has_ended)
        await_condition("the others leave", lambda: cluster.connections() == before - 2)
        await_condition("the server has dropped the connection, and the worker its new one", lambda: cluster.connections() == before - 3)
    return cell("silence/for-ever", {"a": Link(accidents=(Accident("silence", UP, IN_A_VECTOR),))}, disturb)


def silent_from_the_start() -> Cell:
    """Somebody accepts the connection and never says a word."""
    return cell("silence/accepted", {"a": Link(accidents=(Accident("silence", UP, 0),))})


def partition(name: str, workers: Tuple[str, ...]) -> Cell:
    """Workers are cut off, dial in vain, each time after a longer and random pause, and come back."""
    def pauses(cluster: Cluster, worker: str) -> List[float]:
        found = re.findall(r"dialling again in (?:(\d+)ms|([\d.]+)s)", cluster.processes[worker].output())
        return [float(ms) / 1000 if ms else float(s) for ms, s in found]

    def disturb(cluster: Cluster) -> None:
        await_condition("an iteration is done", lambda: cluster.iteration() >= 1)
        for worker in workers:
            cluster.proxies[worker].refuse(True)
        if len(workers) == len(WORKERS):
            await_condition("the run waits for workers", cluster.is_waiting_for_workers)
        for worker in workers:
            await_condition(f"{worker} dials in vain", lambda: len(pauses(cluster, worker)) >= 4)
            cluster.proxies[worker].refuse(False)

    def verify(cluster: Cluster, result: Result) -> None:
        for worker in workers:
            for tries, pause in enumerate(pauses(cluster, worker)):
                longest = min(5.0, 0.1 * 2 ** tries)
                if not 0.5 * longest <= pause <= longest + 0.001:
                    raise Failure(f"pause {tries} of {worker} is {pause} s, not {0.5 * longest} to {longest} s")
        everyone = [pause for worker in workers for pause in pauses(cluster, worker)[:4]]
        if len(set(everyone)) == 1:
            raise Failure("all dialled at the same time")
    return cell(f"partition/{name}", {worker: Link() for worker in workers}, disturb, verify=verify)


def partition_and_kill() -> Cell:
    """The server dies while nobody can reach it, and is back before they can."""
    def disturb(cluster: Cluster) -> None:
        await_condition("an iteration is done", lambda: cluster.iteration() >= 1)
        for proxy in cluster.proxies.values():
            proxy.refuse(True)
        cluster.server.kill()
        cluster.restart_killed()
        for proxy in cluster.proxies.values():
            proxy.refuse(False)
    return cell("partition/everyone-and-kill", {worker: Link() for worker in WORKERS}, disturb)


def watcher() -> Cell:
    """Somebody who watches the run is thrown out again and again, and is told every iteration once."""
    accidents = tuple(Accident("reset", DOWN, 700 + 100 * i) for i in range(3))
    return cell("reset/watcher", {"watcher": Link(accidents=accidents)})


def network_cells() -> List[Cell]:
    slow = Link(bytes_per_second=256 * 1024, slow_bytes=3_000_000)
    return [
        *(accident(kind, direction) for kind in ("cut", "reset", "garbage") for direction in (UP, DOWN)),
        *(accident("flip", direction, tls=True) for direction in (UP, DOWN)),
        *(accidents_for_everyone(kind) for kind in ("cut", "reset")),
        *(silence(kind, direction) for kind in ("silence", "half-open") for direction in (UP, DOWN)),
        silence_for_ever(),
        silent_from_the_start(),
        partition("worker", ("a",)),
        partition("everyone", WORKERS),
        partition_and_kill(),
        watcher(),
        cell("delay/worker", {"a": Link(delay_seconds=0.02)}, verify=stays),
        cell("delay/everyone", {worker: Link(delay_seconds=0.02) for worker in WORKERS}, verify=stays),
        cell("throttle/worker", {"a": slow}),
        cell("throttle/everyone", {worker: slow for worker in WORKERS}, verify=stays),
    ]
