"""Channels to a server: keepalive, TLS, and who one is to it (SECURITY.md)."""
from __future__ import annotations

import collections
import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any, List, Optional, Tuple

import grpc

from .errors import Error


@dataclass(frozen=True)
class Credentials:
    """How a client is sure of its server, and shows the server who it is. By default it does neither, in plaintext.

    ca            PEM file of the CA that the server's certificate comes from: TLS
    tls           TLS with the CAs that the system trusts
    cert, key     PEM files of the client's own certificate and its key; take TLS
    token         shown with each call; or token_file, read for each call, so that it may change
    insecure      send the token to another machine without TLS
    """
    ca: Optional[str] = None
    tls: bool = False
    cert: Optional[str] = None
    key: Optional[str] = None
    token: Optional[str] = field(default=None, repr=False)
    token_file: Optional[str] = None
    insecure: bool = False

    @staticmethod
    def from_environment() -> Credentials:
        """As the programs do: HFOPT_CA, HFOPT_TLS, HFOPT_CERT, HFOPT_KEY, HFOPT_TOKEN, HFOPT_TOKEN_FILE, HFOPT_INSECURE."""
        def text(name: str) -> Optional[str]:
            return os.environ.get(f"HFOPT_{name}") or None

        def flag(name: str) -> bool:
            return os.environ.get(f"HFOPT_{name}", "").lower() in ("1", "true", "on", "yes")
        file = text("TOKEN_FILE")
        return Credentials(text("CA"), flag("TLS"), text("CERT"), text("KEY"), None if file else text("TOKEN"), file, flag("INSECURE"))


def is_local(address: str) -> bool:
    """Whether an address is of this machine: a Unix socket or loopback."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback  # by number: "127.example.org" is anybody's name
    except ValueError:
        return host == "localhost"


def make_channel(address: str, credentials: Credentials) -> grpc.Channel:
    """Keepalive as the server expects it, quick reconnects, and no bandwidth probing where there is no latency. With
    connections of its own: shared ones would let a channel begin in the pause that followed a failure of another, for
    example of a server that was here before. Raises hfopt.Error when the credentials cannot be used."""
    options: List[Tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1)]
    if is_local(address):
        options.append(("grpc.http2.bdp_probe", 0))
    encrypted = credentials.tls or credentials.ca is not None
    has_token = credentials.token is not None or credentials.token_file is not None
    if (credentials.cert is None) != (credentials.key is None):
        raise Error("a certificate and its key go together, but only one of cert and key is given", "INVALID_ARGUMENT")
    if credentials.cert is not None and not encrypted:
        raise Error("a client certificate takes TLS: give ca, the CA of the server's certificate, too", "INVALID_ARGUMENT")
    if has_token and not (encrypted or credentials.insecure or is_local(address)):
        raise Error(f"a token would go to {address} in plaintext, for everybody on the way to read; use TLS (ca), or, on a network that you "
                    "trust, insecure=True", "FAILED_PRECONDITION")
    if encrypted:
        root, key, chain = (_read(file) if file else None for file in (credentials.ca, credentials.key, credentials.cert))
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain), options)
    else:
        channel = grpc.insecure_channel(address, options)
    if not has_token:
        return channel
    return grpc.intercept_channel(channel, _Token(credentials))


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise Error(f"cannot read {file}: {error.strerror}", "NOT_FOUND") from None


class _Details(collections.namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
               grpc.ClientCallDetails):  # type: ignore[misc]
    pass


class _Token(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
             grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Shows the token with each call. An interceptor and not gRPC's call credentials, which refuse plaintext also where
    it is safe: on a Unix socket."""

    def __init__(self, credentials: Credentials):
        self._credentials = credentials

    def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        file = self._credentials.token_file
        token = _read(file).decode().strip() if file else self._credentials.token
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]
        return continuation(_Details(details.method, details.timeout, metadata, details.credentials, getattr(details, "wait_for_ready", None),
                                     getattr(details, "compression", None)), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _intercept
