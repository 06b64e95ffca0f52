"""How long a call goes on, and when it is worth repeating.

All repeats are made here, within the one deadline that the caller gave. gRPC has no retry policy for them: it knows codes alone,
and would repeat what the service refused as UNAVAILABLE like what got lost, whatever its RetryInfo says.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta

import grpc

from .errors import DeadlinePassed, ResourceAllocatorError, TechnicalFailure

# How much longer than the service advises, at the most, so that those who were refused together do not come back together.
_JITTER = 0.25
# Where the service advises nothing there are four pauses, of 0.2 s, 0.4 s, 0.8 s and 1.6 s or a little more: one that is started
# anew is back by then.
_FIRST_PAUSE = 0.2
_UNADVISED_REPEATS = 4


class Patience:
    """The time that something may take, its pauses among it."""

    def __init__(self, timeout: float) -> None:
        """Begins now."""
        self._until = time.monotonic() + timeout

    def left(self) -> float:
        """Gives how many seconds are left, never less than none."""
        return max(0.0, self._until - time.monotonic())


class Backoff:
    """Pauses that grow from failure to failure, and begin anew after a success."""

    def __init__(self, first: float = 0.1, longest: float = 5.0) -> None:
        """Takes the first pause and the longest one, in seconds."""
        self._first = first
        self._longest = longest
        self.failures = 0

    def failed(self, advised: timedelta | None) -> float:
        """Counts a failure and gives the pause that follows: what the service advises, where it does and that is longer."""
        grown = min(self._longest, self._first * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return spread(max(timedelta(seconds=grown), advised or timedelta()))

    def worked(self) -> None:
        """Forgets the failures."""
        self.failures = 0


class Repeats:
    """Whether one call is made again, and after which pause.

    Every call may be, a move too, because it names the server that the project leaves: what was committed is answered as it stands,
    the others write nothing. A stream is none of them, for its reader resumes it with a token.
    """

    def __init__(self, timeout: float) -> None:
        """Begins the call, which may take as many seconds with all its repeats."""
        self._patience = Patience(timeout)
        self._backoff = Backoff(_FIRST_PAUSE)
        self._told: ResourceAllocatorError | None = None

    def left(self) -> float:
        """Gives how many seconds are left of the deadline."""
        return self._patience.left()

    def pause_after(self, failure: TechnicalFailure) -> float:
        """Gives how many seconds to wait before the call is repeated; raises where that is of no use, or there is no time."""
        # What the transport tells has no metadata, what the service tells has its disposition at the least.
        if failure.metadata:
            self._told = failure
        elif isinstance(failure, DeadlinePassed) and self._told is not None:
            # The last word of the service says more than that the time was over after it.
            raise self._told from failure
        pause = self._pause(failure)
        if pause is None or pause >= self.left():
            raise failure
        return pause

    def _pause(self, failure: TechnicalFailure) -> float | None:
        if failure.retry_after is not None:
            return spread(failure.retry_after)
        if failure.code is grpc.StatusCode.UNAVAILABLE and self._backoff.failures < _UNADVISED_REPEATS:
            return self._backoff.failed(None)
        return None


def spread(pause: timedelta) -> float:
    """Gives a pause in seconds, a little longer than asked for, and differently each time."""
    return pause.total_seconds() * random.uniform(1.0, 1.0 + _JITTER)
