"""Where the service is, and how a channel to it behaves: its addresses, its keepalive, its credentials.

This is the one place that opens channels. What is not named is read from the environment, as the endpoint is.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ._version import __version__

# The variable that names the service where the caller does not.
ENDPOINT_VARIABLE = "RESOURCE_ALLOCATOR_ENDPOINT"

# The variables of what a client shows and believes; the same as those of the command line.
TOKEN_VARIABLE = "RESOURCE_ALLOCATOR_TOKEN"
TOKEN_FILE_VARIABLE = "RESOURCE_ALLOCATOR_TOKEN_FILE"
TLS_CA_VARIABLE = "RESOURCE_ALLOCATOR_TLS_CA"
CERTIFICATE_VARIABLE = "RESOURCE_ALLOCATOR_CLIENT_CERTIFICATE"
KEY_VARIABLE = "RESOURCE_ALLOCATOR_CLIENT_KEY"

ChannelOptions = Sequence[tuple[str, Any]]

# Where a name has several addresses, calls go round those that can be reached, so that a repeat is not always answered by the
# replica that could not do it. Repeats are made by the client (see `_patience`), but for those of calls that no replica has seen.
_SERVICE_CONFIG: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
# A thousand placements of a batch outgrow gRPC's 4 MiB, and an answer that cannot be read was committed all the same.
_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # The service is what says how it is called, not a record of its name server.
    ("grpc.service_config_disable_resolution", 1),
    # A peer that is gone without a word is noticed within 40 s; only while a call or a stream is open.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Soon after the service is back, a call gets through.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", _MOST_ANSWER_BYTES),
    ("grpc.primary_user_agent", f"resource-allocator-client/{__version__}"),
]

# Names that gRPC resolves by itself, among them lists of replicas such as `ipv4:192.0.2.1:50051,192.0.2.2:50051`.
_RESOLVED = re.compile(r"(dns|ipv4|ipv6|unix):.+")
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):(?P<port>[0-9]{1,5})")


def find_endpoint(endpoint: str | None) -> str:
    """Gives the endpoint that was named, or else the environment's. There is no other one: an address is never guessed."""
    found = endpoint if endpoint is not None else os.environ.get(ENDPOINT_VARIABLE)
    if not found:
        raise ValueError(
            f"no endpoint: name one, or set {ENDPOINT_VARIABLE}, for example to http://127.0.0.1:50051, "
            "which is where the service listens unless told otherwise"
        )
    return found


@dataclass(frozen=True)
class Credentials:
    """What a client shows of itself, and whom it believes. The token is not shown with it."""

    # None: those that gRPC believes by itself.
    tls_ca: Path | None
    # The client's own certificate and its key; both or neither.
    tls_certificate: Path | None
    tls_key: Path | None
    token: str | None = field(repr=False)

    def metadata(self, endpoint: str, insecure: bool) -> tuple[tuple[str, str], ...]:
        """Gives what each call to the endpoint carries. A token that others could read on its way is refused unless `insecure`."""
        if self.token is None:
            return ()
        if not (insecure or speaks_tls(endpoint) or _is_loopback(target_of(endpoint))):
            raise ValueError(
                f"{endpoint}: the token would travel in clear text, where anyone on the way can read it; name an https:// "
                "endpoint, or pass insecure=True where something else encrypts the way there"
            )
        return (("authorization", f"Bearer {self.token}"),)

    def for_tls(self) -> grpc.ChannelCredentials:
        """Reads the files."""
        read = [
            None if path is None else path.read_bytes() for path in (self.tls_ca, self.tls_key, self.tls_certificate)
        ]
        return grpc.ssl_channel_credentials(*read)


def find_credentials(
    token: str | None, tls_ca: str | Path | None, tls_certificate: str | Path | None, tls_key: str | Path | None
) -> Credentials:
    """Gives the credentials that were named, or else the environment's."""
    if (tls_certificate is None) != (tls_key is None):
        raise ValueError("tls_certificate and tls_key belong together: name both or neither")
    if tls_certificate is None:
        tls_certificate, tls_key = os.environ.get(CERTIFICATE_VARIABLE), os.environ.get(KEY_VARIABLE)
        if bool(tls_certificate) != bool(tls_key):
            raise ValueError(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} belong together: set both or neither")
    if token is None and (token_file := os.environ.get(TOKEN_FILE_VARIABLE)):
        token = Path(token_file).read_text(encoding="ascii").strip()
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and re.fullmatch(r"[\x21-\x7e]+", token) is None:
        # What it is, is not repeated.
        raise ValueError("the token has characters that no token has")
    ca = tls_ca or os.environ.get(TLS_CA_VARIABLE) or None
    ca_file, certificate, key = (Path(path) if path else None for path in (ca, tls_certificate, tls_key))
    return Credentials(ca_file, certificate, key, token)


def speaks_tls(endpoint: str) -> bool:
    """Says whether TLS is spoken with the endpoint."""
    return endpoint.startswith("https://")


def target_of(endpoint: str) -> str:
    """Gives what gRPC calls the endpoint.

    It is `http://HOST:PORT`, `https://HOST:PORT`, `HOST:PORT`, or a name that gRPC resolves, such as `dns:///NAME:PORT`.
    """
    target = endpoint.removeprefix("https://").removeprefix("http://").removesuffix("/")
    if target == endpoint and _RESOLVED.fullmatch(target):
        return target
    parts = _HOST_AND_PORT.fullmatch(target)
    if parts is None or not 1 <= int(parts["port"]) <= 65535:
        raise ValueError(
            f"{endpoint}: not an endpoint; one looks like http://127.0.0.1:50051, with its port and without a path"
        )
    return target


def _is_loopback(target: str) -> bool:
    """Says whether what is sent there stays on this machine. Of a list, every address must."""
    scheme = _RESOLVED.fullmatch(target)
    if scheme is None:
        return _is_loopback_host(target)
    if scheme[1] == "unix":
        return True
    # A name may stand behind the name server that is asked for it.
    addresses = target.removeprefix(f"{scheme[1]}:").rpartition("/")[2].split(",")
    return all(_is_loopback_host(address) for address in addresses)


def _is_loopback_host(address: str) -> bool:
    parts = _HOST_AND_PORT.fullmatch(address)
    host = address if parts is None else parts["host"]
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_channel(endpoint: str, credentials: Credentials, options: ChannelOptions) -> grpc.Channel:
    """Opens a channel for calls that block. `options` are added to ours, and win over them."""
    if speaks_tls(endpoint):
        return grpc.secure_channel(target_of(endpoint), credentials.for_tls(), options=_merged(options))
    return grpc.insecure_channel(target_of(endpoint), options=_merged(options))


def open_async_channel(endpoint: str, credentials: Credentials, options: ChannelOptions) -> grpc.aio.Channel:
    """Opens a channel for the running event loop."""
    if speaks_tls(endpoint):
        return grpc.aio.secure_channel(target_of(endpoint), credentials.for_tls(), options=_merged(options))
    return grpc.aio.insecure_channel(target_of(endpoint), options=_merged(options))


def _merged(options: ChannelOptions) -> list[tuple[str, Any]]:
    return list((dict(_OPTIONS) | dict(options)).items())
