"""`Watch`: the events, one after the other, over streams that are opened again where they end."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import Protocol

import grpc

from ._resumption import SILENCE, OnReconnect, Reconnect, Resumption, fell_silent
from ._status import read_error
from .errors import ResourceAllocatorError
from .v1 import events_pb2 as events
from .v1 import resource_allocator_pb2 as api

__all__ = ["OnReconnect", "Reconnect", "Watch"]


class _Stream(Protocol):
    """What gRPC gives for a stream; it has no name for that."""

    def __iter__(self) -> Iterator[api.WatchAllocationsResponse]: ...

    def __next__(self) -> api.WatchAllocationsResponse: ...

    def cancel(self) -> object: ...


class Watch:
    """An iterator of events that survives the end of a connection, of a replica and of the service.

    Each event comes once and in order. `resume_token` stands after the last event that was given out: keep it, and a later
    `Watch` goes on from there. Iterating raises `SequenceCompacted` or `LogRestarted` where nothing can be resumed: list anew.

    As a context manager it is open, and misses nothing, when its block begins:

        with client.watch() as watch:
            client.ensure("shop")
            for event in watch: ...
    """

    def __init__(
        self,
        open_stream: Callable[[api.WatchAllocationsRequest], _Stream],
        resumption: Resumption,
        endpoint: str,
    ) -> None:
        """Made by `ResourceAllocator.watch`."""
        self._open_stream = open_stream
        self._resumption = resumption
        self._endpoint = endpoint
        self._stream: _Stream | None = None
        self._silence: _SilenceLimit | None = None
        self._ready: api.WatchAllocationsResponse | None = None
        self._closed = threading.Event()

    @property
    def resume_token(self) -> str:
        """Resumes after the last event that was given out, and after what was skipped since."""
        return self._resumption.resume_token

    def __iter__(self) -> Watch:
        """Gives itself."""
        return self

    def __next__(self) -> events.AllocationEvent:
        """Waits for the next event."""
        while (message := self._next_message()) is not None:
            event = self._resumption.take(message)
            if event is not None:
                return event
        raise StopIteration

    def __enter__(self) -> Watch:
        """Waits until the stream is open: what happens from now on is told."""
        self._ready = self._next_message()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends the iteration, also one that waits in another thread."""
        self._closed.set()
        self._drop_stream()

    def _next_message(self) -> api.WatchAllocationsResponse | None:
        ready, self._ready = self._ready, None
        if ready is not None:
            return ready
        while not self._closed.is_set():
            error: ResourceAllocatorError | None = None
            try:
                if (message := self._read()) is not None:
                    self._resumption.spoke()
                    return message
            except grpc.RpcError as broken:
                silence = self._silence
                silent = silence is not None and silence.exceeded
                error = fell_silent(self._endpoint) if silent else read_error(broken, self._endpoint)
                error.__cause__ = broken
            self._drop_stream()
            if self._closed.is_set():
                break
            self._closed.wait(self._resumption.ended(error))
        return None

    def _read(self) -> api.WatchAllocationsResponse | None:
        stream = self._stream
        if stream is None:
            try:
                stream = self._stream = self._open_stream(self._resumption.request())
            except ValueError:
                # gRPC's for a channel that is closed. The client closes its watches first.
                if self._closed.is_set():
                    return None
                raise
            self._silence = _SilenceLimit(stream)
            if self._closed.is_set():
                # Closed while it was opened, by one who did not see it.
                stream.cancel()
        with self._silence or nullcontext():
            return next(stream, None)

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.stop()
        if stream is not None:
            stream.cancel()


class _SilenceLimit:
    """Cancels a stream that a reader has been waiting for too long, from a thread of its own: a read that blocks cannot."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.exceeded = False
        self._waiting_since: float | None = None
        self._timer = self._arm(SILENCE)

    def __enter__(self) -> None:
        self._waiting_since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waiting_since = None

    def stop(self) -> None:
        self._timer.cancel()

    def _arm(self, seconds: float) -> threading.Timer:
        # The thread must not keep a watch alive that nobody holds any more: its stream ends with it.
        timer = threading.Timer(seconds, _look, [weakref.ref(self)])
        timer.daemon = True
        timer.start()
        return timer

    def look(self) -> None:
        since = self._waiting_since
        left = SILENCE if since is None else since + SILENCE - time.monotonic()
        if left > 0:
            self._timer = self._arm(left)
        else:
            self.exceeded = True
            self._stream.cancel()


def _look(limit: weakref.ref[_SilenceLimit]) -> None:
    if (alive := limit()) is not None:
        alive.look()
