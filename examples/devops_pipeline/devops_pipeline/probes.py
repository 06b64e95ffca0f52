"""Probes: whether an address is this machine's, whether a port of it is free, and whether a module answers there."""

from __future__ import annotations

import errno
import http.client
import socket
import time

import psutil

from .project import Module

# How long one try may take, and how long until the next.
TRY_S = 2.0
PAUSE_S = 0.1


def is_this_machine(host: str) -> bool:
    """Says whether one can listen at the address here: only then does a process here run where the allocation says."""
    for family, kind, protocol, _, address in _resolve(host, 0):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False


def is_free(host: str, port: int, protocol: str) -> bool:
    """Says whether nothing holds the port at the address.

    Raises OSError where one cannot listen there for another cause, which another port would not mend: the worker may not have the
    port, or the name stands for an address of another machine too.
    """
    for family, kind, number, _, address in _resolve(host, port, protocol):
        with socket.socket(family, kind, number) as probe:
            if protocol == "TCP":
                # Connections of a process that ended linger; they hold nothing up.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                if protocol == "TCP":
                    probe.listen(1)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
    return True


def holder(port: int) -> str:
    """Says who holds a port, as far as the system tells us."""
    try:
        for connection in psutil.net_connections("inet"):
            if connection.laddr and connection.laddr.port == port and connection.pid and not connection.raddr:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.Error, OSError):
        pass
    return "a process that the system does not name"


def answers(host: str, port: int, module: Module) -> str | None:
    """Tries once; gives what is wrong, or None where the module answers as it should."""
    try:
        if module.health is None:
            socket.create_connection((host, port), timeout=TRY_S).close()
            return None
        connection = http.client.HTTPConnection(host, port, timeout=TRY_S)
        try:
            connection.request("GET", module.health)
            status = connection.getresponse().status
        finally:
            connection.close()
        return None if 200 <= status < 400 else f"{module.health} answers {status}"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def sleep() -> None:
    """Waits until the next try."""
    time.sleep(PAUSE_S)


def _resolve(
    host: str, port: int, protocol: str = "TCP"
) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    try:
        return socket.getaddrinfo(host, port, type=kind)  # type: ignore[return-value]
    except OSError:
        return []
