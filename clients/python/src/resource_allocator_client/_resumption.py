"""Where a watch stands and what it does when its stream ends: what both kinds of `Watch` share. No IO."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ._patience import Backoff, Patience
from .errors import Disposition, ResourceAllocatorError, TechnicalFailure, error_of
from .v1 import events_pb2 as events
from .v1 import resource_allocator_pb2 as api

_log = logging.getLogger("resource_allocator_client.watch")

# A stream says something at least every 10 s: one that is silent this long is dead, whatever its connection seems to be.
SILENCE = 35.0


@dataclass(frozen=True)
class Reconnect:
    """A stream ended and will be opened again; nothing is missed."""

    # Why it ended; None where the service ended it without an error.
    error: ResourceAllocatorError | None
    # How many streams in a row ended before they said anything, this one among them.
    failures: int
    # How many seconds pass before the next one is opened.
    pause: float
    # Where it will go on; empty where the watch is from now or from the beginning and got nothing yet.
    resume_token: str


OnReconnect = Callable[[Reconnect], None]


def fell_silent(endpoint: str) -> ResourceAllocatorError:
    """Makes the error of a stream that said nothing for too long."""
    return error_of(
        f"the stream from {endpoint} said nothing for {SILENCE:g} s",
        reason="UNREACHABLE",
        disposition=Disposition.TECHNICAL,
        code=grpc.StatusCode.CANCELLED,
    )


class Resumption:
    """The request of the next stream, and whether there is one."""

    def __init__(self, request: api.WatchAllocationsRequest, timeout: float, told: OnReconnect | None) -> None:
        """Takes the first request, and how many seconds the service may take to answer it."""
        self._request = request
        self._timeout = timeout
        self._patience: Patience | None = None
        self._told = told
        self._backoff = Backoff()
        self._opened = False

    @property
    def resume_token(self) -> str:
        """Resumes after all that was taken."""
        return self._request.resume_token

    def request(self) -> api.WatchAllocationsRequest:
        """Gives the request of the next stream."""
        if self._patience is None:
            self._patience = Patience(self._timeout)
        copy = api.WatchAllocationsRequest()
        copy.CopyFrom(self._request)
        return copy

    def spoke(self) -> None:
        """Notes that the service answers."""
        self._opened = True
        self._backoff.worked()

    def take(self, message: api.WatchAllocationsResponse) -> events.AllocationEvent | None:
        """Moves on to a message; gives its event, where it has one."""
        self._request.resume_token = message.resume_token
        self._request.from_beginning = False
        return message.event if message.WhichOneof("payload") == "event" else None

    def ended(self, error: ResourceAllocatorError | None) -> float:
        """Gives how many seconds to wait before the next stream, or raises what a new stream would not mend.

        A service that was never reached is given up once the call's deadline is over: an endpoint that is wrong is told at the
        start. One that was reached is waited for.
        """
        if error is not None and not isinstance(error, TechnicalFailure):
            raise error
        pause = self._backoff.failed(error.retry_after if error is not None else None)
        if not self._opened and error is not None and self._patience is not None and pause >= self._patience.left():
            raise error
        reconnect = Reconnect(error, self._backoff.failures, pause, self.resume_token)
        _log.warning(
            "the stream of allocations ended; opening it again in %.1f s (failure %d): %s",
            pause,
            reconnect.failures,
            error or "the service closed it",
        )
        if self._told is not None:
            self._told(reconnect)
        return pause
