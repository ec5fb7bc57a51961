"""A private hfopt-server of this process, on a socket in a directory."""
from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import threading
from typing import IO, Any, Callable, List, Optional

from .errors import Error

_LISTENING = "listening on "  # the server's last word of its start, before the address
_LONGEST_SOCKET_PATH = 107  # bytes
_LONGEST_START = 300.0  # seconds until a server must listen: it reads all runs of its directory before
_GRACE = 20.0  # seconds that it may take to stop


def find_server() -> str:
    """Path of the program hfopt-server: the one that HFOPT_SERVER names, else the package's own, else the one on
    PATH."""
    named = os.environ.get("HFOPT_SERVER")
    if named:
        if not os.access(named, os.X_OK) or os.path.isdir(named):
            raise Error(f"HFOPT_SERVER is \"{named}\", which is no program; here it is the path of hfopt-server. The "
                        "address of a running server is given as server=\"host:port\"")
        return named
    own = pathlib.Path(__file__).parent / "bin" / "hfopt-server"
    found = str(own) if os.access(own, os.X_OK) else shutil.which("hfopt-server")
    if not found:
        raise Error(
            "hfopt-server is neither on PATH nor in this package. Build it (cmake --preset release && cmake --build "
            "--preset release --target hfopt-server) and set HFOPT_SERVER to build/release/server/hfopt-server, or "
            "train on a running server with server=\"host:port\"")
    return found


class LocalServer:
    """Keeps its runs in directory/server and its log in directory/server.log. Started when made; `stop` lets it finish
    what it writes."""

    def __init__(self, directory: str, on_failure: Callable[[Error], None]):
        """`on_failure` is told, from another thread, when the server ends unasked."""
        self.address = ""
        self._on_failure, self._stopping = on_failure, False
        self._log = os.path.join(directory, "server.log")
        socket = os.path.join(os.path.abspath(directory), "server.sock")
        address = f"unix:{socket}" if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH else "127.0.0.1:0"
        command: List[str] = [find_server(), "--address", address, "--state-dir", os.path.join(directory, "server")]
        setpriv = shutil.which("setpriv")
        if setpriv:  # it does not outlive us, however we end
            command = [setpriv, "--pdeathsig", "TERM", *command]
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("HFOPT_") or name == "HFOPT_CPU"}  # which is no option: docker/portable
        # In a session of its own, so that Ctrl-C in a terminal is for us alone.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.PIPE, env=environment, start_new_session=True, text=True,
                                         errors="replace")
        self._up = threading.Event()
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr, ), name="hfopt-server-log",
                                        daemon=True)
        self._reader.start()
        try:
            up = self._up.wait(_LONGEST_START)
        except BaseException:
            self.stop()
            raise
        if not up:
            self.stop()
            raise Error(f"hfopt-server does not listen after {_LONGEST_START:g} seconds, and was ended; see whether "
                        f"the disk of its directory answers. Its last words: {self._last_words()}")
        if not self.address:
            raise self._error()

    def failure(self) -> Optional[Error]:
        """Why the server has ended unasked, if it has. To be asked when it cannot be reached; it may take a moment to
        have ended."""
        self._reader.join(1.0)
        return None if self._reader.is_alive() else self._error()

    def stop(self) -> None:
        self._stopping = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _read(self, stream: IO[str]) -> None:
        self._last_line: Optional[str] = None
        with stream, open(self._log, "a", encoding="utf-8") as log:
            for line in stream:
                log.write(line)
                log.flush()
                self._last_line = line.rstrip("\n")
                if _LISTENING in line and not self.address:
                    self.address = self._last_line.split(_LISTENING, 1)[1]
                    self._up.set()
        was_up = self._up.is_set()
        self._process.wait()
        self._up.set()
        if was_up and not self._stopping:
            self._on_failure(self._error())

    def _error(self) -> Error:
        code = self._process.wait()
        how = f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return Error(f"hfopt-server {how}: {self._last_words()}")

    def _last_words(self) -> str:
        return f"{self._last_line or 'it said nothing'}\nIts log: {self._log}"
