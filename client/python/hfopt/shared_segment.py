"""Memory that the server and a worker of its machine have mapped, so that vectors need not travel: SharedSegment of
proto/hfopt/v1/vector.proto, where layout and states are told; the worker's side.

States are read and written as aligned 32-bit words. A compare-and-swap is not needed: of the slots that a worker
writes, it alone changes the states FREE and WRITING. What it wrote is ordered before the message that names the slot by
the system calls that send and receive it."""
from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any, Optional

import numpy as np

from .model import Array
from .v1 import vector_pb2

_PAGE, _STATES_BEGIN, _TOKEN_BYTES = 4096, 64, 16
_MOST_SLOTS, _MOST_BYTES = (_PAGE - _STATES_BEGIN) // 4, 1 << 46
_FREE, _WRITING, _HANDED_OVER = 0, 1, 2


def host_name() -> str:
    """Hello.host: this machine and its namespace of process ids; empty where that cannot be known or memory cannot be
    shared."""
    if not hasattr(fcntl, "F_GET_SEALS"):
        return ""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class SharedSegment:
    """Slots in another process's memory. It stays mapped as long as the segment or an array that looks at it is
    there."""

    def __init__(self, description: vector_pb2.SharedSegment, writes: bool):
        """Raises OSError or ValueError, with the reason, when what is there is not what was described; nothing was used
        then."""
        slots, slot_bytes = description.slots, description.slot_bytes
        if not 0 < slots <= _MOST_SLOTS or not 0 < slot_bytes <= _MOST_BYTES // slots:
            raise ValueError(f"a shared segment of {slots} slots of {slot_bytes} bytes")
        self.slots, self.slot_bytes = slots, slot_bytes
        self._stride = -(-slot_bytes // _PAGE) * _PAGE
        size = _PAGE + self._stride * slots
        path = f"/proc/{description.process_id}/fd/{description.file_descriptor}"
        # Whatever else may have that number, a pipe or a device: not to wait, and nothing but sealed memory of this
        # size and token.
        fd = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            if (not seals & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size != size
                    or os.pread(fd, _TOKEN_BYTES, 0) != description.token):
                raise ValueError(f"{path} is not the memory that was described")
            prot = mmap.PROT_READ | mmap.PROT_WRITE if writes else mmap.PROT_READ
            self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_NORESERVE", 0), prot=prot)
        finally:
            os.close(fd)
        self._states = np.frombuffer(self._memory, "<u4", slots, _STATES_BEGIN)

    def vector(self, slot: int, dtype: np.dtype[Any]) -> Array:
        """The vector in a slot, as a view; read-only unless this side writes."""
        if slot >= self.slots:
            raise ValueError(f"there is no slot {slot} of {self.slots}")
        return np.frombuffer(self._memory, dtype, self.slot_bytes // dtype.itemsize, _PAGE + self._stride * slot)

    # The side that writes. To be called from one thread.

    def write(self, vector: Array) -> Optional[int]:
        """Copies a vector into a free slot and hands it over; the slot, or None when none is free."""
        free = np.flatnonzero(self._states == _FREE)
        if not len(free):
            return None
        slot = int(free[0])
        self._states[slot] = _WRITING
        np.copyto(self.vector(slot, vector.dtype), vector)
        self._states[slot] = _HANDED_OVER
        return slot
