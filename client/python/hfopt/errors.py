"""What hfopt raises. Refusals of a server keep its message, which names subject, numbers and remedy."""
from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import grpc

if TYPE_CHECKING:
    from .training import Result

# Dialling again cannot help.
PERMANENT = frozenset({
    "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "UNIMPLEMENTED"
})


class Error(Exception):
    """Something that hfopt was asked for cannot be had.

    `code` is the name of a gRPC status code where a server said so ("NOT_FOUND", "ALREADY_EXISTS", ...), and None
    otherwise.
    """

    def __init__(self, message: str, code: Optional[str] = None):
        super().__init__(message)
        self.code = code


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a training so that it can be gone on with. `directory` is where it lies, None on a remote
    server."""

    def __init__(self, message: str, directory: Optional[str] = None, result: Optional[Result] = None):
        super().__init__(message)
        self.directory = directory
        self.result = result  # of the best parameters until then; None before the first iteration


def from_grpc(error: grpc.RpcError, subject: str) -> Error:
    return Error(f"{subject}: {error.details() or error.code().name}", error.code().name)
