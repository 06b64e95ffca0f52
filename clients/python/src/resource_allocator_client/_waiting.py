"""Waiting for capacity: what both clients share.

The service keeps a line where it has one (`wait_for_capacity`). One that has none, an older release, is waited for from outside:
the stream says when something may have changed, and the ensure is tried again.
"""

from __future__ import annotations

import time

import grpc

from ._patience import Backoff
from .errors import (
    DeadlinePassed,
    Disposition,
    NotImplementedByService,
    ResourceAllocatorError,
    TechnicalFailure,
    WaitRefusal,
    WaitTimedOut,
)
from .v1 import events_pb2 as events

# What other projects' ensures say of themselves. Whatever else is told may have made room: a release, a change of the inventory,
# a place in line that was left, or a kind of event that this release does not know.
_NO_ROOM_MADE = {"requested", "waiting", "server_selected", "port_allocated", "completed", "failed"}

# Usage reports make room too and are not in the log, so an ensure is tried as often as this without a sign.
POLL = 15.0
# The longest time that the service lets a call stand in line; one that waits longer goes on in its place.
LONGEST = 24 * 60 * 60.0
# How long after the time to wait a service that keeps a line may take for its answer.
ANSWER_MARGIN = 5.0


def may_have_made_room(event: events.AllocationEvent) -> bool:
    """Says whether a project that did not fit may fit after this."""
    return event.WhichOneof("detail") not in _NO_ROOM_MADE


def has_no_line(error: ResourceAllocatorError) -> bool:
    """Says whether the service does not offer to wait."""
    return isinstance(error, NotImplementedByService) and error.metadata.get("field") == "wait_for_capacity"


class Wait:
    """One wait: how long it may last, and the refusal that it is about."""

    def __init__(self, seconds: float) -> None:
        """Begins now."""
        self._began = time.monotonic()
        self._seconds = seconds
        self._refusal: WaitRefusal | None = None
        self._backoff = Backoff()

    def left(self) -> float:
        """Gives how many seconds are left, never less than none."""
        return max(0.0, self._began + self._seconds - time.monotonic())

    def answer_within(self) -> float:
        """Gives how many seconds a call that stands in line from now on may take."""
        left = self._began + self._seconds - time.monotonic()
        return max(0.0, min(left, LONGEST) + ANSWER_MARGIN)

    def pause_after(self, failure: TechnicalFailure | WaitRefusal) -> float:
        """Gives how many seconds to wait before the next try, or raises where there is no time for one.

        A replica that ends does not take the place in line with it; a line that is full may be shorter soon.
        """
        pause = self._backoff.failed(failure.retry_after)
        # A refusal is the answer. A failure is none, and the one to ask for may be had when the time to wait is over.
        if pause < (self.left() if isinstance(failure, WaitRefusal) else self.answer_within()):
            return pause
        if isinstance(failure, DeadlinePassed) and not self.left():
            raise self.timed_out() from failure
        raise failure

    def refused(self, refusal: WaitRefusal) -> None:
        """Keeps the refusal, and gives up where the time is over."""
        self._refusal = refusal
        if not self.left():
            raise self.timed_out() from refusal

    def timed_out(self) -> WaitTimedOut:
        """Makes the answer of a service that keeps a line, where it has none or its answer did not come."""
        waited = round(time.monotonic() - self._began)
        metadata = {"waited_s": str(waited)}
        message = f"no capacity came free within {waited} s"
        if self._refusal is not None:
            metadata = self._refusal.metadata | metadata
            message = f"{message}: {self._refusal.message}"
        return WaitTimedOut(
            message,
            reason="WAIT_TIMED_OUT",
            disposition=Disposition.WAIT,
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            metadata=metadata,
        )
