"""`ResourceAllocator`: the client for code that blocks. `AsyncResourceAllocator` is the same for asyncio."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc

from . import _requests, _waiting
from ._channel import ChannelOptions, find_credentials, find_endpoint, open_channel
from ._patience import Patience, Repeats
from ._requests import Module, Strategy
from ._resumption import Resumption
from ._status import read_error, result_of
from .errors import ResourceAllocatorError, TechnicalFailure, WaitRefusal
from .v1 import resource_allocator_pb2 as api
from .v1 import types_pb2 as types
from .v1.resource_allocator_pb2_grpc import ResourceAllocatorStub
from .watch import OnReconnect, Watch

# How many seconds a call may take, its repeats among them. Longer than the half minute for which the service waits for a database
# that says nothing would be of no use; shorter, and a call gives up on a service that is only being started anew.
TIMEOUT = 30.0

_log = logging.getLogger("resource_allocator_client")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Listing:
    """Allocations, ordered by project and module, and the point of the log that they are as of."""

    allocations: tuple[types.Allocation, ...]
    # Watch after it, and nothing that follows the list is missed.
    resume_token: str

    def __iter__(self) -> Iterator[types.Allocation]:
        """Goes over the allocations."""
        return iter(self.allocations)

    def __len__(self) -> int:
        """Counts the allocations."""
        return len(self.allocations)


class ResourceAllocator:
    """Calls Resource Allocator. Threads may share one; `close` it, or use it as a context manager.

    Every call has a deadline (`timeout`, in seconds, the client's unless the call has its own), is repeated within it where that
    is safe and may help, and raises a `ResourceAllocatorError` where it is refused or fails.
    """

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
        """Connects at the first call.

        `endpoint` is where the service is, such as `http://127.0.0.1:50051`; None takes RESOURCE_ALLOCATOR_ENDPOINT from the
        environment, and without that it is an error. With `https://` TLS is spoken: `tls_ca` is the file of the authorities to
        believe, `tls_certificate` and `tls_key` are the client's own. `token` is shown with each call. What is None of these is
        taken from RESOURCE_ALLOCATOR_TLS_CA, _CLIENT_CERTIFICATE, _CLIENT_KEY, and _TOKEN_FILE or _TOKEN. Without TLS a token is
        refused for any other host than this one, unless `insecure` says that what is between keeps it from others' eyes.
        `channel_options` are gRPC's, and win over those of this package.
        """
        self.endpoint = find_endpoint(endpoint)
        self.timeout = timeout
        credentials = find_credentials(token, tls_ca, tls_certificate, tls_key)
        self._metadata = credentials.metadata(self.endpoint, insecure)
        self._channel = open_channel(self.endpoint, credentials, channel_options)
        self._stub = ResourceAllocatorStub(self._channel)
        # Closed with the client; one that nobody holds any more ends by itself.
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._watches_lock = threading.Lock()

    def ensure(
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
        """Places a project on a server, once, and gives every module of it a port. A repeat changes nothing and answers the same.

        No modules means `backend` for a project that is not placed yet. A resource that is None takes the service's default
        (512 MB RAM, 1024 MB disk, no CPU) or keeps what is reserved. `validate_only` tells what would happen and writes nothing.
        With `ttl` the placement ends by itself after as many seconds, unless the call is repeated with one; 0 has it stay for good.
        """
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
        return self._call(self._stub.EnsureAllocation, request, timeout)

    def ensure_many(
        self, requests: Iterable[api.EnsureAllocationRequest], *, timeout: float | None = None
    ) -> tuple[api.EnsureAllocationResponse | ResourceAllocatorError, ...]:
        """Ensures many projects, each as `ensure` would, and gives for each its answer or its refusal, in their order.

        `ensure_request` makes the requests. One that is refused fails alone and is not raised. More than a thousand go in several
        calls, and `timeout` is for each of these; a call that fails as a whole is raised, and may be repeated with all of them.
        """
        left = tuple(requests)
        results: tuple[api.EnsureAllocationResponse | ResourceAllocatorError, ...] = ()
        while left:
            batch, left = left[: _requests.BATCH_SIZE], left[_requests.BATCH_SIZE :]
            answer = self._call(self._stub.BatchEnsureAllocations, _requests.batch(batch), timeout)
            results += tuple(result_of(result, self.endpoint) for result in answer.results)
        return results

    def wait(
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
        """Does what `ensure` does, and waits up to `wait_for` seconds for capacity where there is none now.

        It stands in the service's line; where the service keeps none, it follows the stream and tries again when something may
        have made room. What waiting cannot mend is raised at once, and `WaitTimedOut` when the time is over.
        """
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
            return self._stand_in_line(request, wait)
        except ResourceAllocatorError as error:
            if not _waiting.has_no_line(error):
                raise
        return self._try_again_on_signs(request, wait)

    def release(
        self, project_id: str, modules: Iterable[str] | None = None, *, timeout: float | None = None
    ) -> api.ReleaseAllocationResponse:
        """Gives back a project's ports and with the last one its capacity: the whole project, or the modules that are named.

        Releasing what is not there is no error and gives back nothing.
        """
        return self._call(self._stub.ReleaseAllocation, _requests.release(project_id, modules), timeout)

    def list(
        self,
        *,
        project_id: str | None = None,
        server_handle: str | None = None,
        module: str | None = None,
        timeout: float | None = None,
    ) -> Listing:
        """Reads the allocations that pass all filters, every page of them. `timeout` is for each page."""
        allocations: list[types.Allocation] = []
        page_token = resume_token = ""
        while True:
            request = _requests.page(project_id, server_handle, module, page_token)
            page = self._call(self._stub.ListAllocations, request, timeout)
            allocations += page.allocations
            resume_token = resume_token or page.resume_token
            page_token = page.next_page_token
            if not page_token:
                return Listing(tuple(allocations), resume_token)

    def list_waiting(self, *, project_id: str | None = None, timeout: float | None = None) -> tuple[api.Waiter, ...]:
        """Reads who stands in line for capacity, in the order of the line. `timeout` is for each page."""
        waiters: dict[str, api.Waiter] = {}
        page_token = ""
        while True:
            page = self._call(self._stub.ListWaiting, _requests.line(project_id, page_token), timeout)
            # The line moves on between two pages: a project is told once.
            waiters |= {waiter.project_id: waiter for waiter in page.waiters}
            page_token = page.next_page_token
            if not page_token:
                return tuple(waiters.values())

    def get(self, project_id: str, *, timeout: float | None = None) -> api.GetPlacementResponse:
        """Reads one project's placement and allocations; `ProjectNotFound` where it has none. Never places it."""
        return self._call(self._stub.GetPlacement, api.GetPlacementRequest(project_id=project_id), timeout)

    def find(
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
        """Says which servers `ensure` would choose now for a new project, best first, and changes nothing.

        Where none fits it raises what `ensure` would; with `explain` it answers, and says why each server was refused.
        """
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
        return self._call(self._stub.FindServer, request, timeout)

    def relocate(
        self,
        project_id: str,
        *,
        from_server_handle: str,
        server_handle: str | None = None,
        strategy: Strategy | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> api.RelocateProjectResponse:
        """Moves a project to another server, with all that it holds: the ports that it leaves rest, and it gets others.

        It moves only while it is on `from_server_handle`, so that a repeat does not move it on. Without `server_handle` it goes to
        the best of the other servers.
        """
        request = _requests.relocate(
            project_id,
            from_server_handle=from_server_handle,
            server_handle=server_handle,
            strategy=strategy,
            validate_only=validate_only,
        )
        return self._call(self._stub.RelocateProject, request, timeout)

    def report_port_in_use(
        self,
        project_id: str,
        module: str,
        port: int,
        *,
        detail: str = "",
        start_port: int | None = None,
        timeout: float | None = None,
    ) -> api.ReportPortInUseResponse:
        """Tells that something else holds a module's port on the host: the port is set aside, and the module gets another one.

        Where the module holds another port than this one already, it is answered as it stands. `detail` is for people.
        """
        request = _requests.port_in_use(project_id, module, port, detail, start_port)
        return self._call(self._stub.ReportPortInUse, request, timeout)

    def watch(
        self,
        *,
        project_id: str | None = None,
        server_handle: str | None = None,
        resume_token: str = "",
        from_beginning: bool = False,
        on_reconnect: OnReconnect | None = None,
        timeout: float | None = None,
    ) -> Watch:
        """Follows the events that pass the filters: from now, after a token, or from the oldest that there is.

        The stream opens when the watch is entered or first read, and is opened again where it ends; `on_reconnect` is told each
        time, and so is the log (`resource_allocator_client.watch`). A service that was never reached is given up after `timeout`.
        """
        request = _requests.watch(project_id, server_handle, resume_token, from_beginning)
        resumption = Resumption(request, self.timeout if timeout is None else timeout, on_reconnect)
        watch = Watch(
            lambda again: self._stub.WatchAllocations(again, metadata=self._metadata), resumption, self.endpoint
        )
        with self._watches_lock:
            self._watches.add(watch)
        return watch

    def close(self) -> None:
        """Closes the connection; calls that are under way fail, and watches end as by their own `close`."""
        with self._watches_lock:
            watches = tuple(self._watches)
        for watch in watches:
            watch.close()
        self._channel.close()

    def __enter__(self) -> ResourceAllocator:
        """Gives itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    def _call(self, method: Callable[..., _Response], request: _Request, timeout: float | None) -> _Response:
        repeats = Repeats(self.timeout if timeout is None else timeout)
        while True:
            try:
                return self._call_once(method, request, repeats.left())
            except TechnicalFailure as failure:
                pause = repeats.pause_after(failure)
                _log.info("calling again in %.1f s: %s", pause, failure)
            time.sleep(pause)

    def _call_once(self, method: Callable[..., _Response], request: _Request, timeout: float) -> _Response:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as broken:
            raise read_error(broken, self.endpoint) from broken

    def _stand_in_line(self, request: api.EnsureAllocationRequest, wait: _waiting.Wait) -> api.EnsureAllocationResponse:
        while True:
            # Each try asks for what is left of the wait, so that the service ends it, with its reason, before the deadline does.
            waiting = _requests.waiting(request, min(wait.left(), _waiting.LONGEST))
            try:
                return self._call_once(self._stub.EnsureAllocation, waiting, wait.answer_within())
            except (TechnicalFailure, WaitRefusal) as failure:
                pause = wait.pause_after(failure)
                _log.info("standing in line again in %.1f s: %s", pause, failure)
            time.sleep(pause)

    def _try_again_on_signs(
        self, request: api.EnsureAllocationRequest, wait: _waiting.Wait
    ) -> api.EnsureAllocationResponse:
        while True:
            try:
                # The point of the log comes first, so that what makes room while the ensure is refused is not missed.
                since = self._call(self._stub.ListAllocations, _requests.page(request.project_id, None, None, ""), None)
                return self._call(self._stub.EnsureAllocation, request, None)
            except WaitRefusal as refusal:
                wait.refused(refusal)
                _log.info("waiting for a sign that there is room: %s", refusal)
            except TechnicalFailure as failure:
                time.sleep(wait.pause_after(failure))
                continue
            self._sleep_until_sign(since.resume_token, min(_waiting.POLL, wait.left()))

    def _sleep_until_sign(self, resume_token: str, longest: float) -> None:
        until = Patience(longest)
        request = _requests.watch(None, None, resume_token, from_beginning=False)
        stream = self._stub.WatchAllocations(request, timeout=longest, metadata=self._metadata)
        try:
            for message in stream:
                if message.WhichOneof("payload") == "event" and _waiting.may_have_made_room(message.event):
                    return
        except grpc.RpcError as broken:
            # The end of the time is the usual case. A stream that broke early is no reason to ask more often.
            _log.debug("the stream ended: %s", read_error(broken, self.endpoint))
        finally:
            stream.cancel()
        time.sleep(until.left())
