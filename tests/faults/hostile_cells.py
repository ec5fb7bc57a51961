"""Strangers at the server's port who speak no HTTP/2, or too much of it, while a training goes on."""
from __future__ import annotations

import random
import socket
import struct
from typing import Callable, List

from cell import Cell
from cluster import LONG, Cluster, Failure, await_condition

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
MOST_MEMORY = 384 << 20  # that the server may take more than before; half of what endless headers would, were they kept

SLOWLY = {"server": "evaluation.dispatch=sleep(2)"}  # so that the run outlasts the strangers


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def request(path: bytes) -> bytes:
    """The header block of a call, in HPACK's literals without a table."""
    def literal(name: bytes, value: bytes) -> bytes:
        return name + bytes([len(value)]) + value
    return (b"\x83\x86" + literal(b"\x04", path) + literal(b"\x01", b"server") + literal(b"\x0f\x10", b"application/grpc")
            + literal(b"\x00\x02te", b"trailers"))


SESSION = request(b"/hfopt.v1.EvaluationService/Session")
HELLO = PREFACE + frame(SETTINGS, 0, 0)


class Stranger:
    """One connection. What the server thinks of it is read and thrown away."""

    def __init__(self, cluster: Cluster) -> None:
        self._socket = socket.create_connection(cluster.address)
        self._socket.settimeout(5)

    def say(self, data: bytes) -> bool:
        """Whether the server still listens."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        self._socket.setblocking(False)
        try:
            while self._socket.recv(65536):
                pass
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self._socket.settimeout(5)

    def leave(self) -> None:
        self._socket.close()


Attack = Callable[[Cluster, random.Random], List[Stranger]]


def noise(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    return each_says(cluster, [chance.randbytes(65536) for _ in range(50)])


def other_protocols(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    client_hello = b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03" + chance.randbytes(192)
    return each_says(cluster, 20 * [b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", client_hello, b"\0", b"\n" * 100_000])


def broken_frames(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    def any_frame() -> bytes:
        return frame(chance.randrange(12), chance.randrange(256), chance.choice((0, 1, 1, 3, 2, 2**31 - 1)), chance.randbytes(chance.randrange(64)))
    talks = [HELLO + b"".join(any_frame() for _ in range(500)) for _ in range(25)]
    talks += [HELLO + frame(HEADERS, END_HEADERS, 1, SESSION) + b"".join(any_frame() for _ in range(500)) for _ in range(25)]
    talks += [(HELLO + frame(HEADERS, END_HEADERS, 1, SESSION))[:length] for length in range(1, 150, 7)]
    return each_says(cluster, talks)


def broken_messages(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    """Well-formed HTTP/2 around what is no message, or one of 4 GiB."""
    bodies = [b"\x00\xff\xff\xff\xff", b"\x01\x00\x00\x00\x04none", b"\xff" * 5] + [b"\x00\x00\x00\x01\x00" + chance.randbytes(256) for _ in range(40)]
    return each_says(cluster, [HELLO + frame(HEADERS, END_HEADERS, 1, SESSION) + frame(DATA, 0, 1, body) for body in bodies])


def rapid_reset(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    """CVE-2023-44487: calls that are cancelled as soon as they are made."""
    stranger = Stranger(cluster)
    stranger.say(HELLO)
    for stream in range(1, 20_000, 2):
        if not stranger.say(frame(HEADERS, END_HEADERS, stream, SESSION) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")):
            break
    return [stranger]


def endless_headers(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    """CVE-2024-27316: a header block that never ends. gRPC 1.51 keeps what comes of it (server/THREAT_MODEL.md), and drops it with the connection."""
    more = frame(CONTINUATION, 0, 1, (b"\x00\x01x\x7f\x81\x7d" + b"y" * 16_000)[:16_384])
    for _ in range(12):
        stranger = Stranger(cluster)
        stranger.say(HELLO + frame(HEADERS, 0, 1, SESSION))
        for _ in range((32 << 20) // len(more)):
            if not stranger.say(more):
                break
        connections = cluster.connections()
        stranger.leave()
        await_condition("the stranger is forgotten", lambda: cluster.connections() < connections)
    return []


def floods(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    return each_says(cluster, [HELLO + frame(PING, 0, 0, bytes(8)) * 50_000, HELLO + frame(SETTINGS, 0, 0) * 50_000,
                               HELLO + frame(HEADERS, END_HEADERS, 1, SESSION) + frame(DATA, 0, 1) * 50_000])


def silent_crowd(cluster: Cluster, chance: random.Random) -> List[Stranger]:
    """Stay, and say nothing or half a word, until the run is over."""
    return each_says(cluster, [b""] * 200 + [HELLO[:10]] * 200 + [HELLO + frame(HEADERS, END_HEADERS, 1, SESSION)] * 200)


def each_says(cluster: Cluster, talks: List[bytes]) -> List[Stranger]:
    strangers = []
    for talk in talks:
        strangers.append(Stranger(cluster))
        strangers[-1].say(talk)
    return strangers


def hostile(name: str, attack: Attack, tls: bool = False) -> Cell:
    strangers: List[Stranger] = []

    def disturb(cluster: Cluster) -> None:
        await_condition("an iteration is done", lambda: cluster.iteration() >= 1)
        before = cluster.server.memory
        strangers.extend(attack(cluster, random.Random(1)))
        after = cluster.iteration()
        if after > LONG.iterations:
            raise Failure("the run ended before the strangers had come")
        await_condition("the run goes on", lambda: cluster.iteration() > after)
        if cluster.server.memory > before + MOST_MEMORY:
            raise Failure(f"the server has {cluster.server.memory} bytes, and had {before}")

    def verify(cluster: Cluster, result: object) -> None:
        for stranger in strangers:
            stranger.leave()
    return Cell(f"hostile/{name}", LONG, SLOWLY, disturb, tls=tls, verify=verify)


def hostile_cells() -> List[Cell]:
    attacks = (noise, other_protocols, broken_frames, broken_messages, rapid_reset, endless_headers, floods, silent_crowd)
    cells = [hostile(attack.__name__.replace("_", "-"), attack) for attack in attacks]
    return cells + [hostile(f"{attack.__name__.replace('_', '-')}-tls", attack, tls=True) for attack in (noise, other_protocols, silent_crowd)]
