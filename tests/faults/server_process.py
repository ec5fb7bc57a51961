"""hfopt-server as a process, and what the kernel says of it; for programs that measure it."""
from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Failure, Process, await_condition


@dataclass(frozen=True)
class Usage:
    resident: int  # bytes in memory
    own: int  # of them, without those that are copies of files, which the kernel takes and gives as it likes
    peak: int  # the most of them since the start, or since forget_peak
    cpu_seconds: float
    threads: int
    descriptors: int


class ServerProcess(Process):
    """Listens on a port that the system chose. To be used in a with statement, which kills what is left."""
    def __init__(self, build: Path, directory: Path, *options: str) -> None:
        # Each session takes a descriptor; a process begins with the limits of the one that starts it.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        command = [
            str(build / "server/hfopt-server"), "--address", "127.0.0.1:0", "--state-dir",
            str(directory / "state"), *options
        ]
        super().__init__("server", command, "", directory / "server.log")

        def listening() -> str:
            if self.exit_code is not None:
                raise Failure(f"the server ended with {self.exit_code} at its start:\n{self.output()}")
            return self.line_after("listening on ")

        self.address = await_condition("the server listens", listening)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def usage(self) -> Usage:
        folder = self._folder()
        kib = {
            line.split(":")[0]: line.split()[1]
            for line in (folder / "status").read_text().splitlines()
            if line.startswith(("Vm", "Rss"))
        }
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        return Usage(resident=1024 * int(kib["VmRSS"]),
                     own=1024 * (int(kib["RssAnon"]) + int(kib["RssShmem"])),
                     peak=1024 * int(kib["VmHWM"]),
                     cpu_seconds=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
                     threads=len(os.listdir(folder / "task")),
                     descriptors=len(os.listdir(folder / "fd")))

    def forget_peak(self) -> None:
        (self._folder() / "clear_refs").write_text("5")

    def dial(self) -> Any:
        """A connection of its own."""
        import grpc
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _folder(self) -> Path:
        return Path(f"/proc/{self._process.pid}")
