"""Refusals and failures as exceptions, which keep all that the service tells.

Each is a `ResourceAllocatorError` and an instance of one of four classes by its disposition, which says what kind of act is
needed: `WaitRefusal`, `OperatorRefusal`, `CallerRefusal`, `TechnicalFailure`. The reasons that this release knows have a
class of their own below those. A reason that it does not know still has its disposition, so route by that:

    try:
        client.ensure("shop")
    except WaitRefusal as refusal:
        ...  # it may fit later by itself
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple

import grpc

# The domain of every ErrorInfo that is the service's.
DOMAIN = "resourceallocator"


class Disposition(str, enum.Enum):
    """What kind of act a refusal calls for."""

    # It may fit later by itself: wait, or ask again.
    WAIT = "WAIT"
    # Someone must add or repair a server.
    OPERATOR = "OPERATOR"
    # The request must be changed.
    CALLER = "CALLER"
    # The service or its database cannot tell now: repeat, it is safe.
    TECHNICAL = "TECHNICAL"

    def __str__(self) -> str:
        """Gives the name as the service writes it."""
        return self.value


class FieldViolation(NamedTuple):
    """A field of a request that is malformed."""

    # The path, such as `modules[3].port`.
    field: str
    description: str


class ResourceAllocatorError(Exception):
    """A call that did not do what it was asked, and why."""

    # The disposition of a class; only the base has none.
    for_disposition: ClassVar[Disposition | None] = None
    # The reason of a class; those that stand for a disposition have none.
    for_reason: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        disposition: Disposition,
        code: grpc.StatusCode,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        """Takes what the service told; `error_of` makes one of the right class."""
        super().__init__(message)
        # What was asked, what was found and what to do, in words.
        self.message = message
        # The reason, as in `ErrorReason` of the contract without its prefix; may be one that this release does not know.
        self.reason = reason
        self.disposition = disposition
        self.code = code
        # The figures, all as text, under the names that `error_reason.proto` shows.
        self.metadata = dict(metadata or {})
        # How long to wait before a repeat; None where the service does not say.
        self.retry_after = retry_after
        # Every malformed field, where the reason is INVALID_REQUEST.
        self.field_violations = tuple(field_violations)

    @property
    def request_id(self) -> str:
        """The request's id in the service's logs; empty where the service did not answer."""
        return self.metadata.get("request_id", "")

    def __str__(self) -> str:
        """Tells reason and disposition before the message, so that a log line has them."""
        return f"{self.reason} ({self.disposition}): {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets a refusal travel between processes, as queues and checkpoints have it."""
        return _rebuild, (type(self), self.message, _told(self))


class WaitRefusal(ResourceAllocatorError):
    """It may fit later by itself: `wait` for it, or try again after `retry_after`."""

    for_disposition = Disposition.WAIT


class OperatorRefusal(ResourceAllocatorError):
    """Someone must add or repair a server: park the job and tell them."""

    for_disposition = Disposition.OPERATOR


class CallerRefusal(ResourceAllocatorError):
    """The request is wrong: fail the job with the message."""

    for_disposition = Disposition.CALLER


class TechnicalFailure(ResourceAllocatorError):
    """The service or its database cannot tell now: repeat the call, it is safe."""

    for_disposition = Disposition.TECHNICAL


class InsufficientCapacity(WaitRefusal):
    """Servers admit work and none has room now; the metadata says how short the nearest one is."""

    for_reason = "INSUFFICIENT_CAPACITY"


class WaitTimedOut(WaitRefusal):
    """The time that the caller was ready to wait for capacity ran out."""

    for_reason = "WAIT_TIMED_OUT"


class LineFull(WaitRefusal):
    """So many projects stand in line already that it takes no more."""

    for_reason = "LINE_FULL"


class NoServers(OperatorRefusal):
    """The inventory is empty."""

    for_reason = "NO_SERVERS"


class NoAdmissibleServer(OperatorRefusal):
    """Servers exist, none admits work; the metadata counts them by cause."""

    for_reason = "NO_ADMISSIBLE_SERVER"


class RequestExceedsFleet(OperatorRefusal):
    """No server could hold it even empty."""

    for_reason = "REQUEST_EXCEEDS_FLEET"


class BoundServerNotAdmissible(OperatorRefusal):
    """The project asks for more on a server that no longer admits work."""

    for_reason = "BOUND_SERVER_NOT_ADMISSIBLE"


class PortsExhausted(OperatorRefusal):
    """There is room, but no free port in range."""

    for_reason = "PORTS_EXHAUSTED"


class InvalidRequest(CallerRefusal):
    """Fields are malformed; `field_violations` lists them all."""

    for_reason = "INVALID_REQUEST"


class ServerNotFound(CallerRefusal):
    """There is no server of that handle."""

    for_reason = "SERVER_NOT_FOUND"


class ProjectNotFound(CallerRefusal):
    """The project has no placement."""

    for_reason = "PROJECT_NOT_FOUND"


class ModuleNotFound(CallerRefusal):
    """The project has no module of that name; the metadata names those that it has."""

    for_reason = "MODULE_NOT_FOUND"


class NoMatchingServer(CallerRefusal):
    """No server carries the selector's labels."""

    for_reason = "NO_MATCHING_SERVER"


class PlacedElsewhere(CallerRefusal):
    """A pin disagrees with what the project holds."""

    for_reason = "PLACED_ELSEWHERE"


class PortTaken(CallerRefusal):
    """An explicit port cannot be had; the metadata's `cause` says why."""

    for_reason = "PORT_TAKEN"


class WaitSuperseded(CallerRefusal):
    """A later call of the project asks for something else and waits in its place."""

    for_reason = "WAIT_SUPERSEDED"


class WaitReleased(CallerRefusal):
    """The project was released while it stood in line."""

    for_reason = "WAIT_RELEASED"


class Unauthenticated(CallerRefusal):
    """No credentials, or wrong ones."""

    for_reason = "UNAUTHENTICATED"


class Forbidden(CallerRefusal):
    """The caller's role may not do this."""

    for_reason = "FORBIDDEN"


class SequenceCompacted(CallerRefusal):
    """Retention dropped the events after the token: list anew and watch from there, or resume at the oldest token."""

    for_reason = "SEQUENCE_COMPACTED"

    @property
    def oldest_resume_token(self) -> str:
        """Resumes a watch with the oldest event that there still is."""
        return self.metadata.get("oldest_resume_token", "")


class LogRestarted(CallerRefusal):
    """The token is of another history, for the database was restored or made anew: list anew, then watch."""

    for_reason = "LOG_RESTARTED"


class NotImplementedByService(CallerRefusal):
    """The service, which may be an older release, does not offer this."""

    for_reason = "NOT_IMPLEMENTED"


class UsageStale(TechnicalFailure):
    """The only servers left out were left out for stale usage reports."""

    for_reason = "USAGE_STALE"


class DatabaseUnavailable(TechnicalFailure):
    """The service cannot reach its database."""

    for_reason = "DATABASE_UNAVAILABLE"


class WatcherTooSlow(TechnicalFailure):
    """The watcher did not keep up; a `Watch` resumes by itself."""

    for_reason = "WATCHER_TOO_SLOW"


class Overloaded(TechnicalFailure):
    """The service has more requests waiting than it takes."""

    for_reason = "OVERLOADED"


class RateLimited(TechnicalFailure):
    """The caller makes more calls a second than it may."""

    for_reason = "RATE_LIMITED"


class ShuttingDown(TechnicalFailure):
    """The replica is shutting down; another one answers."""

    for_reason = "SHUTTING_DOWN"


class InternalFault(TechnicalFailure):
    """A fault of the service, whose log tells more under the request's id."""

    for_reason = "INTERNAL"


class DeadlinePassed(TechnicalFailure):
    """The deadline passed before the answer, so whether the call was committed is not known; repeating it is safe."""

    for_reason = "DEADLINE_PASSED"


class Unreachable(TechnicalFailure):
    """No connection to the service came about, or it broke. The reason is this package's own."""

    for_reason = "UNREACHABLE"


_DISPOSITIONS: dict[Disposition, type[ResourceAllocatorError]] = {
    Disposition.WAIT: WaitRefusal,
    Disposition.OPERATOR: OperatorRefusal,
    Disposition.CALLER: CallerRefusal,
    Disposition.TECHNICAL: TechnicalFailure,
}
_REASONS: dict[str, type[ResourceAllocatorError]] = {
    known.for_reason: known
    for parent in _DISPOSITIONS.values()
    for known in parent.__subclasses__()
    if known.for_reason is not None
}


def error_of(
    message: str,
    *,
    reason: str,
    disposition: Disposition,
    code: grpc.StatusCode,
    metadata: Mapping[str, str] | None = None,
    retry_after: timedelta | None = None,
    field_violations: Sequence[FieldViolation] = (),
) -> ResourceAllocatorError:
    """Makes an error of the reason's class, or of the disposition's where this release does not know the two together."""
    known = _REASONS.get(reason)
    if known is None or known.for_disposition is not disposition:
        known = _DISPOSITIONS[disposition]
    return known(
        message,
        reason=reason,
        disposition=disposition,
        code=code,
        metadata=metadata,
        retry_after=retry_after,
        field_violations=field_violations,
    )


def _told(error: ResourceAllocatorError) -> dict[str, Any]:
    return {
        "reason": error.reason,
        "disposition": error.disposition,
        "code": error.code,
        "metadata": error.metadata,
        "retry_after": error.retry_after,
        "field_violations": error.field_violations,
    }


def _rebuild(kind: type[ResourceAllocatorError], message: str, told: dict[str, Any]) -> ResourceAllocatorError:
    return kind(message, **told)
