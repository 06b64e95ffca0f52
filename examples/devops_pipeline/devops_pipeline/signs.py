"""Signs: follows the service's stream and counts what may have made room for a job that is parked.

The stream is that of all projects. A worker whose token is held to some is refused it: there are no signs then, and jobs are tried
again by time alone.
"""

from __future__ import annotations

import logging
import threading

from resource_allocator_client import (
    CallerRefusal,
    Reconnect,
    ResourceAllocator,
    ResourceAllocatorError,
    Watch,
    may_have_made_room,
)
from resource_allocator_client.errors import LogRestarted, SequenceCompacted

# Until a service that could not be reached is tried again.
PAUSE_S = 2.0

_log = logging.getLogger("devops_pipeline")


class Signs:
    """A thread that watches. As a context manager it runs while its block does."""

    def __init__(self, client: ResourceAllocator) -> None:
        """Takes the client that it watches with."""
        self._client = client
        self._count = 0
        self._watch: Watch | None = None
        self._ended = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="signs", daemon=True)

    @property
    def count(self) -> int:
        """Says how many signs there were. A job that was refused before the last of them deserves another try."""
        return self._count

    def wait(self, longest: float) -> None:
        """Sleeps until the next sign, or for as long as told."""
        self._woken.wait(longest)
        self._woken.clear()

    def __enter__(self) -> Signs:
        """Begins to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.is_set():
            watch = self._watch = self._client.watch(on_reconnect=self._told)
            if self._ended.is_set():
                # Ended between the two, by one who closed the watch before this.
                return
            try:
                with watch:
                    # Whatever happened while nobody watched may have made room.
                    self._sign()
                    for event in watch:
                        if may_have_made_room(event):
                            self._sign()
            except ResourceAllocatorError as error:
                if isinstance(error, CallerRefusal) and not isinstance(error, (SequenceCompacted, LogRestarted)):
                    # The same question has the same answer, however often it is put.
                    _log.error("does not follow the service's stream, so jobs are tried again by time alone: %s", error)
                    # As where it begins to be followed: whatever happened before may have made room.
                    self._sign()
                    return
                # Never reached, or a log that cannot be resumed: begin anew, from now.
                _log.warning("cannot follow the service's stream: %s", error)
                self._ended.wait(PAUSE_S)

    def _sign(self) -> None:
        self._count += 1
        self._woken.set()

    @staticmethod
    def _told(reconnect: Reconnect) -> None:
        _log.info("the service's stream is opened again, after what was seen: %s", reconnect.error or "it was closed")
