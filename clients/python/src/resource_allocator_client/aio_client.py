"""`AsyncResourceAllocator`: the client for asyncio. What the calls mean is said at `ResourceAllocator`, whose they are."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc

from . import _requests, _waiting
from ._channel import ChannelOptions, find_credentials, find_endpoint, open_async_channel
from ._patience import Patience, Repeats
from ._requests import Module, Strategy
from ._resumption import Resumption
from ._status import read_error, result_of
from .aio_watch import AsyncWatch
from .client import TIMEOUT, Listing
from .errors import ResourceAllocatorError, TechnicalFailure, WaitRefusal
from .v1 import resource_allocator_pb2 as api
from .v1 import types_pb2 as types
from .v1.resource_allocator_pb2_grpc import ResourceAllocatorStub
from .watch import OnReconnect

_log = logging.getLogger("resource_allocator_client")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncResourceAllocator:
    """Calls Resource Allocator from the event loop in which it was made; see `ResourceAllocator`."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = TIMEOUT,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        tls_certificate: str | Path | None = None,
        tls_key: str | Path | None = None,
        insecure: bool = False,
        channel_options: ChannelOptions = (),
    ) -> None:
        """Connects at the first call; the arguments are those of `ResourceAllocator`."""
        self.endpoint = find_endpoint(endpoint)
        self.timeout = timeout
        credentials = find_credentials(token, tls_ca, tls_certificate, tls_key)
        self._metadata = credentials.metadata(self.endpoint, insecure)
        self._channel = open_async_channel(self.endpoint, credentials, channel_options)
        self._stub = ResourceAllocatorStub(self._channel)
        # Closed with the client; one that nobody holds any more ends by itself.
        self._watches: weakref.WeakSet[AsyncWatch] = weakref.WeakSet()

    async def ensure(
        self,
        project_id: str,
        modules: Iterable[Module] = (),
        *,
        cpu_millis: int | None = None,
        ram_mb: int | None = None,
        disk_mb: int | None = None,
        server_handle: str | None = None,
        server_selector: Mapping[str, str] | None = None,
        start_port: int | None = None,
        strategy: Strategy | None = None,
        validate_only: bool = False,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> api.EnsureAllocationResponse:
        """Places a project on a server, once, and gives every module of it a port; see `ResourceAllocator.ensure`."""
        request = _requests.ensure(
            project_id,
            modules,
            cpu_millis=cpu_millis,
            ram_mb=ram_mb,
            disk_mb=disk_mb,
            server_handle=server_handle,
            server_selector=server_selector,
            start_port=start_port,
            strategy=strategy,
            validate_only=validate_only,
            ttl=ttl,
        )
        return await self._call(self._stub.EnsureAllocation, request, timeout)

    async def ensure_many(
        self, requests: Iterable[api.EnsureAllocationRequest], *, timeout: float | None = None
    ) -> tuple[api.EnsureAllocationResponse | ResourceAllocatorError, ...]:
        """Ensures many projects, and gives for each its answer or its refusal; see `ResourceAllocator.ensure_many`."""
        left = tuple(requests)
        results: tuple[api.EnsureAllocationResponse | ResourceAllocatorError, ...] = ()
        while left:
            batch, left = left[: _requests.BATCH_SIZE], left[_requests.BATCH_SIZE :]
            answer = await self._call(self._stub.BatchEnsureAllocations, _requests.batch(batch), timeout)
            results += tuple(result_of(result, self.endpoint) for result in answer.results)
        return results

    async def wait(
        self,
        project_id: str,
        modules: Iterable[Module] = (),
        *,
        wait_for: float,
        cpu_millis: int | None = None,
        ram_mb: int | None = None,
        disk_mb: int | None = None,
        server_handle: str | None = None,
        server_selector: Mapping[str, str] | None = None,
        start_port: int | None = None,
        strategy: Strategy | None = None,
        ttl: float | None = None,
    ) -> api.EnsureAllocationResponse:
        """Does what `ensure` does, and waits up to `wait_for` seconds for capacity; see `ResourceAllocator.wait`."""
        request = _requests.ensure(
            project_id,
            modules,
            cpu_millis=cpu_millis,
            ram_mb=ram_mb,
            disk_mb=disk_mb,
            server_handle=server_handle,
            server_selector=server_selector,
            start_port=start_port,
            strategy=strategy,
            ttl=ttl,
        )
        wait = _waiting.Wait(wait_for)
        try:
            return await self._stand_in_line(request, wait)
        except ResourceAllocatorError as error:
            if not _waiting.has_no_line(error):
                raise
        return await self._try_again_on_signs(request, wait)

    async def release(
        self, project_id: str, modules: Iterable[str] | None = None, *, timeout: float | None = None
    ) -> api.ReleaseAllocationResponse:
        """Gives back a whole project, or the modules that are named; see `ResourceAllocator.release`."""
        return await self._call(self._stub.ReleaseAllocation, _requests.release(project_id, modules), timeout)

    async def list(
        self,
        *,
        project_id: str | None = None,
        server_handle: str | None = None,
        module: str | None = None,
        timeout: float | None = None,
    ) -> Listing:
        """Reads the allocations that pass all filters, every page of them; see `ResourceAllocator.list`."""
        allocations: list[types.Allocation] = []
        page_token = resume_token = ""
        while True:
            request = _requests.page(project_id, server_handle, module, page_token)
            page = await self._call(self._stub.ListAllocations, request, timeout)
            allocations += page.allocations
            resume_token = resume_token or page.resume_token
            page_token = page.next_page_token
            if not page_token:
                return Listing(tuple(allocations), resume_token)

    async def list_waiting(
        self, *, project_id: str | None = None, timeout: float | None = None
    ) -> tuple[api.Waiter, ...]:
        """Reads who stands in line for capacity, in the order of the line; see `ResourceAllocator.list_waiting`."""
        waiters: dict[str, api.Waiter] = {}
        page_token = ""
        while True:
            page = await self._call(self._stub.ListWaiting, _requests.line(project_id, page_token), timeout)
            # The line moves on between two pages: a project is told once.
            waiters |= {waiter.project_id: waiter for waiter in page.waiters}
            page_token = page.next_page_token
            if not page_token:
                return tuple(waiters.values())

    async def get(self, project_id: str, *, timeout: float | None = None) -> api.GetPlacementResponse:
        """Reads one project's placement and allocations; see `ResourceAllocator.get`."""
        return await self._call(self._stub.GetPlacement, api.GetPlacementRequest(project_id=project_id), timeout)

    async def find(
        self,
        modules: Iterable[Module] = (),
        *,
        cpu_millis: int | None = None,
        ram_mb: int | None = None,
        disk_mb: int | None = None,
        server_selector: Mapping[str, str] | None = None,
        start_port: int | None = None,
        strategy: Strategy | None = None,
        max_candidates: int = 1,
        explain: bool = False,
        timeout: float | None = None,
    ) -> api.FindServerResponse:
        """Says which servers `ensure` would choose now, and changes nothing; see `ResourceAllocator.find`."""
        request = _requests.find(
            modules,
            cpu_millis=cpu_millis,
            ram_mb=ram_mb,
            disk_mb=disk_mb,
            server_selector=server_selector,
            start_port=start_port,
            strategy=strategy,
            max_candidates=max_candidates,
            explain=explain,
        )
        return await self._call(self._stub.FindServer, request, timeout)

    async def relocate(
        self,
        project_id: str,
        *,
        from_server_handle: str,
        server_handle: str | None = None,
        strategy: Strategy | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> api.RelocateProjectResponse:
        """Moves a project to another server, with all that it holds; see `ResourceAllocator.relocate`."""
        request = _requests.relocate(
            project_id,
            from_server_handle=from_server_handle,
            server_handle=server_handle,
            strategy=strategy,
            validate_only=validate_only,
        )
        return await self._call(self._stub.RelocateProject, request, timeout)

    async def report_port_in_use(
        self,
        project_id: str,
        module: str,
        port: int,
        *,
        detail: str = "",
        start_port: int | None = None,
        timeout: float | None = None,
    ) -> api.ReportPortInUseResponse:
        """Tells that something else holds a module's port on the host; see `ResourceAllocator.report_port_in_use`."""
        request = _requests.port_in_use(project_id, module, port, detail, start_port)
        return await self._call(self._stub.ReportPortInUse, request, timeout)

    def watch(
        self,
        *,
        project_id: str | None = None,
        server_handle: str | None = None,
        resume_token: str = "",
        from_beginning: bool = False,
        on_reconnect: OnReconnect | None = None,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """Follows the events that pass the filters; see `ResourceAllocator.watch`."""
        request = _requests.watch(project_id, server_handle, resume_token, from_beginning)
        resumption = Resumption(request, self.timeout if timeout is None else timeout, on_reconnect)
        watch = AsyncWatch(
            lambda again: self._stub.WatchAllocations(again, metadata=self._metadata), resumption, self.endpoint
        )
        self._watches.add(watch)
        return watch

    async def close(self) -> None:
        """Closes the connection; calls that are under way fail, and watches end as by their own `close`."""
        for watch in tuple(self._watches):
            watch.close()
        await self._channel.close()

    async def __aenter__(self) -> AsyncResourceAllocator:
        """Gives itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        await self.close()

    async def _call(
        self, method: Callable[..., Awaitable[_Response]], request: _Request, timeout: float | None
    ) -> _Response:
        repeats = Repeats(self.timeout if timeout is None else timeout)
        while True:
            try:
                return await self._call_once(method, request, repeats.left())
            except TechnicalFailure as failure:
                pause = repeats.pause_after(failure)
                _log.info("calling again in %.1f s: %s", pause, failure)
            await asyncio.sleep(pause)

    async def _call_once(
        self, method: Callable[..., Awaitable[_Response]], request: _Request, timeout: float
    ) -> _Response:
        try:
            return await method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as broken:
            raise read_error(broken, self.endpoint) from broken

    async def _stand_in_line(
        self, request: api.EnsureAllocationRequest, wait: _waiting.Wait
    ) -> api.EnsureAllocationResponse:
        while True:
            # Each try asks for what is left of the wait, so that the service ends it, with its reason, before the deadline does.
            waiting = _requests.waiting(request, min(wait.left(), _waiting.LONGEST))
            try:
                return await self._call_once(self._stub.EnsureAllocation, waiting, wait.answer_within())
            except (TechnicalFailure, WaitRefusal) as failure:
                pause = wait.pause_after(failure)
                _log.info("standing in line again in %.1f s: %s", pause, failure)
            await asyncio.sleep(pause)

    async def _try_again_on_signs(
        self, request: api.EnsureAllocationRequest, wait: _waiting.Wait
    ) -> api.EnsureAllocationResponse:
        while True:
            try:
                # The point of the log comes first, so that what makes room while the ensure is refused is not missed.
                page = _requests.page(request.project_id, None, None, "")
                since = await self._call(self._stub.ListAllocations, page, None)
                return await self._call(self._stub.EnsureAllocation, request, None)
            except WaitRefusal as refusal:
                wait.refused(refusal)
                _log.info("waiting for a sign that there is room: %s", refusal)
            except TechnicalFailure as failure:
                await asyncio.sleep(wait.pause_after(failure))
                continue
            await self._sleep_until_sign(since.resume_token, min(_waiting.POLL, wait.left()))

    async def _sleep_until_sign(self, resume_token: str, longest: float) -> None:
        until = Patience(longest)
        request = _requests.watch(None, None, resume_token, from_beginning=False)
        stream = self._stub.WatchAllocations(request, timeout=longest, metadata=self._metadata)
        try:
            async for message in stream:
                if message.WhichOneof("payload") == "event" and _waiting.may_have_made_room(message.event):
                    return
        except grpc.RpcError as broken:
            # The end of the time is the usual case. A stream that broke early is no reason to ask more often.
            _log.debug("the stream ended: %s", read_error(broken, self.endpoint))
        finally:
            stream.cancel()
        await asyncio.sleep(until.left())
