"""Waiting for capacity, in the service's line and, for an older service, beside the stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import grpc
import pytest
from conftest import Fleet
from live_service import PATIENCE_S, Service
from scripted import abort, hang

from resource_allocator_client import AsyncResourceAllocator, Disposition, ResourceAllocator, _waiting
from resource_allocator_client.errors import (
    DeadlinePassed,
    InsufficientCapacity,
    RequestExceedsFleet,
    WaitReleased,
    WaitTimedOut,
)
from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1.resource_allocator_pb2_grpc import ResourceAllocatorServicer, ResourceAllocatorStub


class OlderRelease(ResourceAllocatorServicer):
    """Passes calls on to the real service, but for `wait_for_capacity`, which it does not know."""

    def __init__(self, service: Service) -> None:
        self._real = ResourceAllocatorStub(grpc.insecure_channel(service.address))
        # Set when an ensure was refused and the caller's stream is open after it.
        self.waited_for = threading.Event()
        self.ensures = 0

    def EnsureAllocation(  # noqa: N802
        self, request: api.EnsureAllocationRequest, context: grpc.ServicerContext
    ) -> api.EnsureAllocationResponse:
        if request.HasField("wait_for_capacity"):
            abort(context, grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", "CALLER", field="wait_for_capacity")
        self.ensures += 1
        return self._pass_on(self._real.EnsureAllocation, request, context)

    def ListAllocations(  # noqa: N802
        self, request: api.ListAllocationsRequest, context: grpc.ServicerContext
    ) -> api.ListAllocationsResponse:
        return self._pass_on(self._real.ListAllocations, request, context)

    def WatchAllocations(  # noqa: N802
        self, request: api.WatchAllocationsRequest, context: grpc.ServicerContext
    ) -> Iterator[api.WatchAllocationsResponse]:
        stream = self._real.WatchAllocations(request)
        context.add_callback(stream.cancel)
        for message in stream:
            self.waited_for.set()
            yield message

    def _pass_on(self, method, request, context: grpc.ServicerContext):
        try:
            return method(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())


@pytest.fixture
def older(shared_service: Service) -> OlderRelease:
    return OlderRelease(shared_service)


@pytest.fixture
def full(client: ResourceAllocator, fleet: Fleet, tag: str) -> str:
    """A project that fills the test's one server."""
    fleet.register(ram_mb=1024)
    client.ensure(f"{tag}-holder", ram_mb=1000, server_selector=fleet.selector)
    return f"{tag}-holder"


def in_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_a_place_comes_when_another_project_gives_its_own_back(
    client: ResourceAllocator, fleet: Fleet, full: str, tag: str
):
    answers = []
    waiting = in_background(
        lambda: answers.append(client.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=PATIENCE_S))
    )
    with client.watch(project_id=tag, from_beginning=True) as events:
        next(event for event in events if event.WhichOneof("detail") == "waiting")
    (waiter,) = client.list_waiting(project_id=tag)
    assert (waiter.reason, waiter.resources.ram_mb) == ("INSUFFICIENT_CAPACITY", 512)
    client.release(full)
    waiting.join(PATIENCE_S)
    assert [allocation.module for allocation in answers[0].allocations] == ["backend"]


def test_where_there_is_no_line_the_stream_tells_when_to_try_again(
    client: ResourceAllocator, older: OlderRelease, serve, fleet: Fleet, full: str, tag: str, monkeypatch
):
    # Without the stream there would be no second try in time.
    monkeypatch.setattr(_waiting, "POLL", 10 * PATIENCE_S)
    answers = []
    with ResourceAllocator(serve(older), timeout=PATIENCE_S) as through_older:

        def wait() -> None:
            answers.append(
                through_older.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=20 * PATIENCE_S)
            )

        waiting = in_background(wait)
        assert older.waited_for.wait(PATIENCE_S)
        # A project that comes makes no room, and is no reason to try.
        fleet.register("other", ram_mb=1)
        client.release(full)
        waiting.join(PATIENCE_S)
    assert answers[0].placement.project_id == tag
    assert 2 <= older.ensures <= 3


def test_the_same_for_asyncio(
    client: ResourceAllocator, older: OlderRelease, serve, fleet, full: str, tag, monkeypatch
):
    monkeypatch.setattr(_waiting, "POLL", 10 * PATIENCE_S)

    async def scenario() -> api.EnsureAllocationResponse:
        async with AsyncResourceAllocator(serve(older), timeout=PATIENCE_S) as through_older:
            call = through_older.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=20 * PATIENCE_S)
            waiting = asyncio.ensure_future(call)
            assert await asyncio.to_thread(older.waited_for.wait, PATIENCE_S)
            await asyncio.to_thread(client.release, full)
            return await asyncio.wait_for(waiting, PATIENCE_S)

    assert asyncio.run(scenario()).placement.project_id == tag
    assert older.ensures == 2


def test_what_the_log_does_not_tell_is_looked_for_now_and_then(
    older: OlderRelease, serve, fleet, full: str, tag, monkeypatch
):
    monkeypatch.setattr(_waiting, "POLL", 0.1)
    with ResourceAllocator(serve(older), timeout=PATIENCE_S) as client, pytest.raises(WaitTimedOut):
        client.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=2)
    assert older.ensures > 2


def test_the_end_of_the_time_is_told_with_the_figures(
    older: OlderRelease, serve, client, fleet: Fleet, full: str, tag: str
):
    with pytest.raises(WaitTimedOut) as in_line:
        client.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=0.5)
    assert in_line.value.metadata["waited_for"] == "INSUFFICIENT_CAPACITY"
    with ResourceAllocator(serve(older), timeout=PATIENCE_S) as through_older, pytest.raises(WaitTimedOut) as over:
        through_older.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=0.5)
    assert isinstance(over.value.__cause__, InsufficientCapacity)
    assert over.value.metadata["nearest.short.ram_mb"] == "488"
    assert "waited_s" in over.value.metadata


def test_the_line_is_the_same_for_asyncio(
    client: ResourceAllocator, shared_service: Service, fleet, full: str, tag: str
):
    async def scenario() -> api.EnsureAllocationResponse:
        async with AsyncResourceAllocator(shared_service.endpoint, timeout=PATIENCE_S) as waiting_client:
            call = waiting_client.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=PATIENCE_S)
            waiting = asyncio.ensure_future(call)
            while not await waiting_client.list_waiting(project_id=tag):
                await asyncio.sleep(0.05)
            await waiting_client.release(full)
            return await asyncio.wait_for(waiting, PATIENCE_S)

    assert asyncio.run(scenario()).placement.project_id == tag


def test_a_wait_outlives_the_service(own_service: Service):
    fleet = Fleet(own_service, "line")
    fleet.register(ram_mb=1024)
    fleet.close()
    answers = []
    with ResourceAllocator(own_service.endpoint, timeout=PATIENCE_S) as client:
        client.ensure("holder", ram_mb=1000)
        waiting = in_background(lambda: answers.append(client.wait("shop", ram_mb=512, wait_for=PATIENCE_S)))
        with client.watch(project_id="shop", from_beginning=True) as events:
            next(event for event in events if event.WhichOneof("detail") == "waiting")
        own_service.stop()
        own_service.start()
        client.release("holder")
        waiting.join(PATIENCE_S)
    assert answers[0].placement.project_id == "shop"


def test_a_wait_that_is_released_is_told_so(client: ResourceAllocator, fleet: Fleet, full: str, tag: str):
    ended = []

    def wait() -> None:
        with pytest.raises(WaitReleased) as released:
            client.wait(tag, ram_mb=512, server_selector=fleet.selector, wait_for=PATIENCE_S)
        ended.append(released.value)

    waiting = in_background(wait)
    with client.watch(project_id=tag, from_beginning=True) as events:
        next(event for event in events if event.WhichOneof("detail") == "waiting")
    client.release(tag)
    waiting.join(PATIENCE_S)
    assert ended[0].disposition is Disposition.CALLER


def test_what_waiting_cannot_mend_is_raised_at_once(older: OlderRelease, serve, client, fleet: Fleet, tag: str):
    fleet.register(ram_mb=1024)
    with ResourceAllocator(serve(older), timeout=PATIENCE_S) as through_older:
        for one in [client, through_older]:
            with pytest.raises(RequestExceedsFleet):
                one.wait(tag, ram_mb=99_999, server_selector=fleet.selector, wait_for=10 * PATIENCE_S)


class Line(ResourceAllocatorServicer):
    """Keeps a line for which nothing comes free; the first to stand in it does so at a replica that ends."""

    def __init__(self, ends: dict[str, object] | None, after: float) -> None:
        self._ends = ends
        self._after = after
        self.waits: list[float] = []

    def EnsureAllocation(  # noqa: N802
        self, request: api.EnsureAllocationRequest, context: grpc.ServicerContext
    ) -> api.EnsureAllocationResponse:
        wait = request.wait_for_capacity.ToTimedelta().total_seconds()
        self.waits.append(wait)
        if self._ends is None:
            hang(context)
        elif len(self.waits) == 1:
            time.sleep(self._after)
            abort(context, **self._ends)
        time.sleep(wait)
        abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMED_OUT", "WAIT", waited_for="PORTS_EXHAUSTED")
        raise AssertionError


SHUTTING_DOWN = {
    "code": grpc.StatusCode.UNAVAILABLE,
    "reason": "SHUTTING_DOWN",
    "disposition": "TECHNICAL",
    "retry_after": timedelta(milliseconds=50),
}
LOST = {"code": grpc.StatusCode.UNAVAILABLE, "reason": "LOST", "disposition": None, "domain": "a.proxy"}


def wait_in(endpoint: str, blocking: bool, wait_for: float) -> None:
    if blocking:
        with ResourceAllocator(endpoint) as client:
            client.wait("shop", wait_for=wait_for)
        return

    async def scenario() -> None:
        async with AsyncResourceAllocator(endpoint) as client:
            await client.wait("shop", wait_for=wait_for)

    asyncio.run(scenario())


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("ends", [SHUTTING_DOWN, LOST])
@pytest.mark.parametrize("after", [1.5, 2.0])
def test_a_replica_that_ends_does_not_prolong_the_wait(serve, monkeypatch, ends, after: float, blocking: bool):
    # Less than what would be waited for twice.
    monkeypatch.setattr(_waiting, "ANSWER_MARGIN", 1.0)
    line = Line(ends, after)
    with pytest.raises(WaitTimedOut) as over:
        wait_in(serve(line), blocking, wait_for=2.0)
    # The service's own answer, also where the replica ended with the wait.
    assert over.value.metadata["waited_for"] == "PORTS_EXHAUSTED"
    first, second = line.waits
    assert first == pytest.approx(2.0, abs=0.2)
    assert second <= 2.0 - after or second == pytest.approx(0.001)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_wait_whose_answer_does_not_come_is_over_all_the_same(serve, monkeypatch, blocking: bool):
    monkeypatch.setattr(_waiting, "ANSWER_MARGIN", 0.2)
    with pytest.raises(WaitTimedOut) as over:
        wait_in(serve(Line(None, 0)), blocking, wait_for=0.3)
    assert isinstance(over.value.__cause__, DeadlinePassed)
    assert (over.value.disposition, over.value.reason) == (Disposition.WAIT, "WAIT_TIMED_OUT")
