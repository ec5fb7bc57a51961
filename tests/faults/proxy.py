"""A TCP proxy between a worker and its server: the network that misbehaves. One accident for each connection, at a byte of our choice."""
from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Set, Tuple

SLICE_BYTES = 16 * 1024  # moved at once, and all that the proxy holds of a direction beside its sockets' buffers
SOCKET_BUFFER_BYTES = 64 * 1024

UP, DOWN = "up", "down"  # from the worker to the server, and back


@dataclass(frozen=True)
class Accident:
    """What happens to a connection when `after` bytes have passed in a direction, counted over it alone."""
    # cut: closed in good order; reset: closed with RST; half-open: nothing passes any more in this direction; silence: in neither;
    # flip: a bit is inverted; garbage: bytes are inserted
    kind: str
    direction: str
    after: int


@dataclass(frozen=True)
class Link:
    delay_seconds: float = 0  # each way
    bytes_per_second: float = 0  # in each direction; 0: as fast as it goes
    slow_bytes: int = 0  # that are held to this rate, over all connections and both directions; 0: all
    accidents: Tuple[Accident, ...] = ()  # of the first connection, the second ...; the later ones have none


class _Connection:
    def __init__(self, proxy: Proxy, worker: asyncio.StreamWriter, accident: Optional[Accident]) -> None:
        self._proxy, self._accident = proxy, accident
        self._ends = [worker]
        self._over = asyncio.Event()
        self.stuck = self.silent = False

    async def serve(self, from_worker: asyncio.StreamReader) -> None:
        try:
            from_server, server = await asyncio.open_connection(*self._proxy.target, limit=SLICE_BYTES)
        except OSError:
            self.close()
            return
        _limit_buffers(server)
        self._ends.append(server)
        pumps = [asyncio.ensure_future(self._pump(UP, from_worker, server)), asyncio.ensure_future(self._pump(DOWN, from_server, self._ends[0]))]
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait([*pumps, over], return_when=asyncio.FIRST_COMPLETED)
        # A stream of gRPC is of no use to anybody when one direction has ended.
        for task in (*pumps, over):
            task.cancel()
        await asyncio.gather(*pumps, over, return_exceptions=True)
        self.close()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[Tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.ensure_future(self._send(late, writer)) if self._proxy.link.delay_seconds else None
        passed = 0
        try:
            while True:
                data = await reader.read(SLICE_BYTES)
                if not data:
                    await late.join()
                    return
                accident = self._accident
                if self.silent:
                    await asyncio.Event().wait()
                if accident is not None and accident.direction == direction and passed + len(data) > accident.after:
                    data = await self._happen(accident, data, accident.after - passed, writer)
                passed += len(data)
                if sender is not None:
                    late.put_nowait((time.monotonic() + self._proxy.link.delay_seconds, data))
                else:
                    writer.write(data)
                    await writer.drain()
                await self._proxy.pace(len(data))
        except OSError:
            pass
        finally:
            if sender is not None:
                sender.cancel()

    @staticmethod
    async def _send(late: asyncio.Queue[Tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await late.get()
            await asyncio.sleep(due - time.monotonic())
            writer.write(data)
            await writer.drain()
            late.task_done()

    async def _happen(self, accident: Accident, data: bytes, at: int, writer: asyncio.StreamWriter) -> bytes:
        """What passes in the place of `data`, the accident being at its byte `at`. Does not come back if nothing passes any more."""
        self._accident = None
        if accident.kind in ("flip", "garbage"):
            self._proxy.happened.append(accident)
            wrong = bytes([data[at] ^ 0x10]) if accident.kind == "flip" else bytes(range(200, 256)) + data[at:at + 1]
            return data[:at] + wrong + data[at + 1:]
        writer.write(data[:at])
        await writer.drain()
        self.stuck = True
        self.silent = accident.kind == "silence"
        if accident.kind in ("cut", "reset"):
            self.close(reset=accident.kind == "reset")
        self._proxy.happened.append(accident)  # who sees it in the list sees also what it did
        await asyncio.Event().wait()
        raise AssertionError

    def close(self, reset: bool = False) -> None:
        for end in self._ends:
            if reset:
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.transport.abort()
            else:
                end.close()
        self._over.set()


class Proxy:
    """Listens on a port of the system's choice, in a thread of its own. Its methods may be called from any thread."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.target: Tuple[str, int] = ("", 0)
        self.happened: List[Accident] = []
        self.dialled_at: List[float] = []  # when a connection was asked for, also one that was refused
        self._refusing = False
        self._connections: Set[_Connection] = set()
        self._accidents = iter(link.accidents)
        self._slow_bytes_left: float = link.slow_bytes or float("inf")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.address: str = self._call(self._listen)

    def _call(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result()

    async def _listen(self) -> str:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=SLICE_BYTES)
        return "127.0.0.1:%d" % listener.getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialled_at.append(time.monotonic())
        _limit_buffers(writer)
        connection = _Connection(self, writer, None if self._refusing else next(self._accidents, None))
        if self._refusing:
            connection.close(reset=True)
            return
        self._connections.add(connection)
        try:
            await connection.serve(reader)
        finally:
            self._connections.discard(connection)

    async def pace(self, size: int) -> None:
        if self.link.bytes_per_second and self._slow_bytes_left > 0:
            self._slow_bytes_left -= size
            await asyncio.sleep(size / self.link.bytes_per_second)

    def is_slow(self) -> bool:
        return bool(self.link.bytes_per_second) and self._slow_bytes_left > 0

    def refuse(self, refuse: bool) -> None:
        """Resets every connection as soon as it is made, and those that are there."""
        async def change() -> None:
            self._refusing = refuse
            for connection in list(self._connections) if refuse else []:
                connection.close(reset=True)
        self._call(change)

    def end_silence(self) -> None:
        """As a router that has forgotten the connections on which nothing passes, and is sent something of one."""
        async def end() -> None:
            for connection in [c for c in self._connections if c.stuck]:
                connection.close(reset=True)
        self._call(end)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for connection in list(self._connections):
                connection.close(reset=True)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
        self._call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _limit_buffers(writer: asyncio.StreamWriter) -> None:
    """So that a slow link is felt at its ends, as a real one is."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    writer.transport.set_write_buffer_limits(high=SLICE_BYTES)
