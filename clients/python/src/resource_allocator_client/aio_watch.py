"""`AsyncWatch`: what `Watch` is, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import grpc

from ._resumption import SILENCE, Resumption, fell_silent
from ._status import read_error
from .errors import ResourceAllocatorError
from .v1 import events_pb2 as events
from .v1 import resource_allocator_pb2 as api

if TYPE_CHECKING:
    _Stream = grpc.aio.UnaryStreamCall[api.WatchAllocationsRequest, api.WatchAllocationsResponse]


class AsyncWatch:
    """An asynchronous iterator of events that survives the end of a connection, of a replica and of the service; see `Watch`.

    Open it as `Watch` is opened:

        async with client.watch() as watch:
            async for event in watch: ...
    """

    def __init__(
        self,
        open_stream: Callable[[api.WatchAllocationsRequest], _Stream],
        resumption: Resumption,
        endpoint: str,
    ) -> None:
        """Made by `AsyncResourceAllocator.watch`."""
        self._open_stream = open_stream
        self._resumption = resumption
        self._endpoint = endpoint
        self._stream: _Stream | None = None
        self._ready: api.WatchAllocationsResponse | None = None
        self._closed: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    @property
    def resume_token(self) -> str:
        """Resumes after the last event that was given out, and after what was skipped since."""
        return self._resumption.resume_token

    def __aiter__(self) -> AsyncWatch:
        """Gives itself."""
        return self

    async def __anext__(self) -> events.AllocationEvent:
        """Waits for the next event."""
        while (message := await self._next_message()) is not None:
            event = self._resumption.take(message)
            if event is not None:
                return event
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncWatch:
        """Waits until the stream is open: what happens from now on is told."""
        self._ready = await self._next_message()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends the iteration, also one that waits in another task."""
        if not self._closed.done():
            self._closed.set_result(None)
        self._drop_stream()

    async def _next_message(self) -> api.WatchAllocationsResponse | None:
        ready, self._ready = self._ready, None
        if ready is not None:
            return ready
        while not self._closed.done():
            message: api.WatchAllocationsResponse | None = None
            error: ResourceAllocatorError | None = None
            try:
                if (message := await self._read()) is not None:
                    self._resumption.spoke()
                    return message
            except TimeoutError:
                error = fell_silent(self._endpoint)
            except grpc.RpcError as broken:
                error = read_error(broken, self._endpoint)
                error.__cause__ = broken
            finally:
                if message is None:
                    self._drop_stream()
            if not self._closed.done():
                await asyncio.wait({self._closed}, timeout=self._resumption.ended(error))
        return None

    async def _read(self) -> api.WatchAllocationsResponse | None:
        """Reads one message; None where the stream is over or closed. One that says nothing for too long is a `TimeoutError`.

        The read is a task of its own, because a call that is cancelled by `close` raises the same as a reader that is.
        """
        if self._stream is None:
            self._stream = self._open_stream(self._resumption.request())
        # Its own type for the end of the stream has no name in gRPC's types.
        read: asyncio.Future[object] = asyncio.ensure_future(self._stream.read())
        try:
            either: set[asyncio.Future[object]] = {read, self._closed}
            await asyncio.wait(either, timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.done():
                return None
            if not read.done():
                raise TimeoutError
            message = read.result()
            return message if isinstance(message, api.WatchAllocationsResponse) else None
        finally:
            read.cancel()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
