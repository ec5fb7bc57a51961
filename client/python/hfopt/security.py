"""How a client is sure of its server, and shows the server who it is."""
from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

import grpc

from .errors import Error

DEFAULT_PORT = 7447  # hfopt-server's


@dataclass(frozen=True)
class Security:
    """TLS, certificates and a token for the connections to a server; by default none of them, in plaintext. Files are
    PEM, and read when a connection is made; the token's at each call, so that it may change."""
    tls: bool = False  # with this alone, the server's certificate must come from a CA that the system trusts
    ca_file: Optional[str] = None  # or from one of these; takes TLS
    cert_file: Optional[str] = None  # the client's own certificate with its chain, and its key; both or none, with TLS
    key_file: Optional[str] = None  # of cert_file
    token: Optional[str] = field(default=None, repr=False)  # shown with each call, "authorization: Bearer TOKEN"
    token_file: Optional[str] = None  # or the file that holds it
    insecure: bool = False  # send the token to another machine without TLS

    @staticmethod
    def from_environment() -> Security:
        """As the programs have it: HFOPT_TLS, HFOPT_CA, HFOPT_CERT, HFOPT_KEY, HFOPT_TOKEN, HFOPT_TOKEN_FILE,
        HFOPT_INSECURE."""
        def text(name: str) -> Optional[str]:
            return os.environ.get(f"HFOPT_{name}") or None

        def flag(name: str) -> bool:
            return (text(name) or "").lower() in ("1", "true", "on", "yes")

        file = text("TOKEN_FILE")
        return Security(flag("TLS"), text("CA"), text("CERT"), text("KEY"), None if file else text("TOKEN"), file,
                        flag("INSECURE"))

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.tls or self.ca_file is not None

    def check(self, address: str) -> None:
        """Raises hfopt.Error where something is missing, or a secret would travel in plaintext."""
        if (self.cert_file is None) != (self.key_file is None):
            raise Error("security: cert_file and key_file are given both or not at all", "INVALID_ARGUMENT")
        if self.cert_file is not None and not self.is_encrypted:
            raise Error("security: a client certificate takes TLS: give ca_file, the CA of the server's certificate, "
                        "too", "INVALID_ARGUMENT")
        has_token = self.token is not None or self.token_file is not None
        if has_token and not (self.is_encrypted or self.insecure or is_local(address)):
            raise Error(f"security: a token would go to {address} in plaintext, for everybody on the way to read; use "
                        "TLS (ca_file), or, on a network that you trust, insecure=True", "FAILED_PRECONDITION")

    def credentials(self) -> Optional[grpc.ChannelCredentials]:
        """None for plaintext."""
        if not self.is_encrypted:
            return None
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))

    def metadata(self) -> Tuple[Tuple[str, str], ...]:
        """Of each call."""
        token = self.token
        if token is None and self.token_file is not None:
            content = _read(self.token_file)
            assert content is not None
            token = content.decode().strip()
        return () if token is None else (("authorization", f"Bearer {token}"), )


def with_port(address: str) -> str:
    """With hfopt-server's port where there is none; gRPC would take HTTPS's."""
    scheme, rest = _split_scheme(address)
    if address.startswith(("unix:", "unix-abstract:")) or "://" in rest:
        return address
    host = f"[{rest}]" if rest.count(":") > 1 and not rest.startswith("[") else rest
    name, colon, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    if not name or (colon and not port.isdecimal()):
        raise Error(f"server is \"{address}\"; give HOST, HOST:PORT or unix:PATH (without a port: {DEFAULT_PORT})",
                    "INVALID_ARGUMENT")
    return scheme + host + ("" if colon else f":{DEFAULT_PORT}")


def _split_scheme(address: str) -> Tuple[str, str]:
    scheme = next((s for s in ("dns:///", "dns:", "ipv4:", "ipv6:") if address.startswith(s)), "")
    return scheme, address[len(scheme):]


def is_local(address: str) -> bool:
    """Whether it names this machine by a loopback address or a Unix socket."""
    _, address = _split_scheme(address)
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0] or address
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback  # by number: "127.example.org" is anybody's name
    except ValueError:
        return host == "localhost"


def _read(path: Any) -> Optional[bytes]:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Error(f"security: {path} cannot be read: {error.strerror}", "NOT_FOUND") from None
