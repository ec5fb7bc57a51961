"""Vectors on the wire (proto/hfopt/v1/vector.proto): chunks framed and read without a copy by protobuf, channels,
element types."""
from __future__ import annotations

import time
from bisect import bisect
from typing import Any, Dict, Iterator, List, Optional, Tuple

import grpc
import numpy as np

from .model import Array
from .security import Security, is_local, with_port
from .v1 import vector_pb2

CHUNK_BYTES = 1 << 20  # the cheapest
UPLOAD_CHUNK_BYTES = 1 << 17  # one arrives within the server's --transfer-idle also on a link of 2 kB/s

DTYPES: Dict[int, np.dtype[Any]] = {
    vector_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"), vector_pb2.ELEMENT_TYPE_FLOAT64: np.dtype("<f8")
}
ELEMENT_TYPES = {dtype.name: element_type for element_type, dtype in DTYPES.items()}
BFLOAT16 = np.dtype("<u2")  # the upper halves of float32 numbers, ELEMENT_TYPE_BFLOAT16


def to_bfloat16(vector: Array) -> Array:
    """Float32 rounded to nearest, ties to even."""
    bits = vector.view("<u4")
    halves = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(vector), bits >> 16 | np.uint32(0x40), halves).astype(BFLOAT16)  # a quiet NaN stays one


def from_bfloat16(halves: Array) -> Array:
    """Float32, exactly."""
    vector: Array = (halves.astype("<u4") << np.uint32(16)).view("<f4")
    return vector


def make_channel(address: str, security: Security = Security()) -> grpc.Channel:
    """Keepalive as the server expects it, quick reconnects, and no bandwidth probing where there is no latency. With
    connections of its own: shared ones would let a channel begin in the pause that followed a failure of another, for
    example of a server that was here before."""
    address = with_port(address)
    security.check(address)
    options: List[Tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1)]
    if is_local(address):
        options.append(("grpc.http2.bdp_probe", 0))
    credentials = security.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


# A message that holds a chunk, SessionRequest and SessionResponse alike, is in the encoding of protobuf
#     chunk-tag length (transfer-tag transfer | offset-tag offset | data-tag size data)*
# By hand it costs one copy each way; the generated classes would cost three.
_CHUNK, _OFFSET, _DATA, _TRANSFER = 3 << 3 | 2, 1 << 3, 2 << 3 | 2, 3 << 3


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def frame_chunk(transfer: int, offset: int, data: memoryview) -> bytes:
    """The encoded SessionRequest with a VectorChunk."""
    inner = b"".join((_varint(_TRANSFER), _varint(transfer), _varint(_OFFSET), _varint(offset),
                      _varint(_DATA), _varint(len(data))))
    return b"".join((_varint(_CHUNK), _varint(len(inner) + len(data)), inner, data))


def find_chunk(message: bytes) -> Optional[Tuple[int, int, memoryview]]:
    """Transfer, offset and data of a SessionResponse that is one chunk in the usual form; None for any other."""
    if not message or message[0] != _CHUNK:
        return None
    transfer = offset = 0
    data: Optional[memoryview] = None
    try:
        length, at = _read_varint(message, 1)
        if at + length != len(message):
            return None
        while at < len(message):
            tag = message[at]
            value, at = _read_varint(message, at + 1)
            if tag == _TRANSFER:
                transfer = value
            elif tag == _OFFSET:
                offset = value
            elif tag == _DATA and data is None and at + value <= len(message):
                data = memoryview(message)[at:at + value]
                at += value
            else:
                return None
    except (IndexError, ValueError):
        return None
    return transfer, offset, memoryview(b"") if data is None else data


class VectorAssembler:
    """Puts the chunks of a transfer in their place in one array. ValueError for what breaks the rules of
    vector.proto."""

    def __init__(self, transfer: int, size: int, dtype: np.dtype[Any]):
        self.transfer = transfer
        self.vector: Array = np.empty(size, dtype)
        self._bytes = self.vector.data.cast("B") if size else memoryview(b"")
        self._missing = len(self._bytes)
        self._begins: List[int] = []  # of the ranges that are there, in order, apart from one another
        self._ends: List[int] = []

    def put(self, offset: int, data: memoryview) -> bool:
        """Whether the vector is complete now. It is read-only then."""
        end = offset + len(data)
        if end > len(self._bytes):
            raise ValueError(
                f"transfer {self.transfer}: bytes {offset} to {end} are beyond the vector's {len(self._bytes)}")
        i = bisect(self._begins, offset)
        if (i > 0 and self._ends[i - 1] > offset) or (i < len(self._begins) and self._begins[i] < end):
            raise ValueError(f"transfer {self.transfer}: bytes {offset} to {end} overlap with earlier ones")
        if i > 0 and self._ends[i - 1] == offset:
            self._ends[i - 1] = end
        else:
            self._begins.insert(i, offset)
            self._ends.insert(i, end)
        self._bytes[offset:end] = data
        self._missing -= len(data)
        if self.complete:
            self.vector.flags.writeable = False
        return self.complete

    @property
    def complete(self) -> bool:
        return self._missing == 0


class ChunkSize:
    """How many bytes of an answer's vector go in one message, by how long the link takes for them: the server hears
    nothing of a message before all of it has arrived, and one that is on its way for longer than the lease, in
    seconds, looks like silence."""
    SMALLEST = 16 * 1024

    def __init__(self, lease: float):
        self._lease = lease
        self.bytes = self.SMALLEST

    def sent(self, size: int, seconds: float) -> None:
        if seconds > self._lease / 6:
            self.bytes = max(self.SMALLEST, self.bytes // 2)
        elif seconds < self._lease / 24 and size >= self.bytes:  # the end of a vector says nothing of longer ones
            self.bytes = min(CHUNK_BYTES, self.bytes * 2)


def chunks_of(vector: Array, chunk_size: Optional[ChunkSize] = None,
              most: int = CHUNK_BYTES) -> Iterator[Tuple[int, memoryview]]:
    """Pairs of offset and bytes, which look at the vector's own memory; of `most` bytes, or in the sizes of
    `chunk_size`, which is told how long it takes until the next one is asked for."""
    data = vector.data.cast("B") if vector.size else memoryview(b"")
    offset = 0
    while offset < len(data):
        chunk = data[offset:offset + (most if chunk_size is None else chunk_size.bytes)]
        begin = time.monotonic()
        yield offset, chunk
        if chunk_size is not None:
            chunk_size.sent(len(chunk), time.monotonic() - begin)
        offset += len(chunk)
