"""Where the service is, and how a channel to it behaves: its retries, its keepalive, its credentials.

This is the one place that opens channels. There is no TLS and no authentication yet; what of them comes belongs here, read from
the environment as the endpoint is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import grpc

from ._version import __version__

# The variable that names the service where the caller does not.
ENDPOINT_VARIABLE = "RESOURCE_ALLOCATOR_ENDPOINT"

ChannelOptions = Sequence[tuple[str, Any]]

_SERVICE = "resourceallocator.v1.ResourceAllocator"
# Every one may be repeated: what was committed is answered as it stands, the others write nothing. A move is, because it names
# the server that the project leaves. A stream is not in the list, for its reader resumes it with a token.
_REPEATABLE = (
    "EnsureAllocation",
    "BatchEnsureAllocations",
    "ReleaseAllocation",
    "ListAllocations",
    "ListWaiting",
    "GetPlacement",
    "FindServer",
    "RelocateProject",
    "ReportPortInUse",
)
# Four pauses of 0.2 s, 0.4 s, 0.8 s and 1.6 s, each give or take a fifth: a service that is started anew is back by then.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _REPEATABLE],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
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


def target_of(endpoint: str) -> str:
    """Gives what gRPC calls the endpoint: `http://HOST:PORT`, `HOST:PORT`, or a name that it resolves, such as `dns:///NAME:PORT`."""
    if endpoint.startswith("https://"):
        raise ValueError(
            f"{endpoint}: this release of the client does not speak TLS; use http:// within a network that you trust"
        )
    target = endpoint.removeprefix("http://").removesuffix("/")
    if target == endpoint and _RESOLVED.fullmatch(target):
        return target
    parts = _HOST_AND_PORT.fullmatch(target)
    if parts is None or not 1 <= int(parts["port"]) <= 65535:
        raise ValueError(
            f"{endpoint}: not an endpoint; one looks like http://127.0.0.1:50051, with its port and without a path"
        )
    return target


def open_channel(endpoint: str, options: ChannelOptions) -> grpc.Channel:
    """Opens a channel for calls that block. `options` are added to ours, and win over them."""
    return grpc.insecure_channel(target_of(endpoint), options=_merged(options))


def open_async_channel(endpoint: str, options: ChannelOptions) -> grpc.aio.Channel:
    """Opens a channel for the running event loop."""
    return grpc.aio.insecure_channel(target_of(endpoint), options=_merged(options))


def _merged(options: ChannelOptions) -> list[tuple[str, Any]]:
    return list((dict(_OPTIONS) | dict(options)).items())
