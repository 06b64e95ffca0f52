"""How long a call goes on, and when it is worth repeating.

gRPC itself repeats what the transport loses (see `_channel`). It does not read the service's RetryInfo: this does, within the
one deadline that the caller gave.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta

from .errors import ResourceAllocatorError, TechnicalFailure

# How much longer than the service advises, at the most, so that those who were refused together do not come back together.
_JITTER = 0.25


class Patience:
    """The time that one call may take, its repeats and pauses among it."""

    def __init__(self, timeout: float) -> None:
        """Begins now."""
        self._until = time.monotonic() + timeout

    def left(self) -> float:
        """Gives how many seconds are left, never less than none."""
        return max(0.0, self._until - time.monotonic())

    def pause_after(self, error: ResourceAllocatorError) -> float | None:
        """Gives how many seconds to wait before the call is repeated; None where that is of no use, or there is no time."""
        if not isinstance(error, TechnicalFailure) or error.retry_after is None:
            return None
        pause = spread(error.retry_after)
        return pause if pause < self.left() else None


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


def spread(pause: timedelta) -> float:
    """Gives a pause in seconds, a little longer than asked for, and differently each time."""
    return pause.total_seconds() * random.uniform(1.0, 1.0 + _JITTER)
