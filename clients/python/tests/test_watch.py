"""Watches, which outlive their streams. Both kinds, against the real service."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from conftest import Fleet
from live_service import PATIENCE_S, Service
from scripted import abort, hang

from resource_allocator_client import AllocationEvent, AsyncResourceAllocator, Reconnect, ResourceAllocator, watch
from resource_allocator_client.errors import (
    InvalidRequest,
    LogRestarted,
    SequenceCompacted,
    TechnicalFailure,
    Unreachable,
)
from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1.resource_allocator_pb2_grpc import ResourceAllocatorServicer

ENSURED = ["requested", "server_selected", "port_allocated", "completed"]


def kinds(events: list[AllocationEvent]) -> list[str]:
    return [event.WhichOneof("detail") for event in events]


def take(events: Iterator[AllocationEvent], count: int) -> list[AllocationEvent]:
    return [next(events) for _ in range(count)]


def test_what_follows_the_opening_is_told_each_once_and_in_order(client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    with client.watch(project_id=tag) as watch:
        client.ensure(tag, server_selector=fleet.selector)
        client.release(tag)
        events = take(watch, 5)
    assert kinds(events) == [*ENSURED, "released"]
    first = events[0].sequence
    assert [event.sequence for event in events] == list(range(first, first + 5))


def test_a_token_goes_on_after_what_was_taken(client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    answer = client.ensure(tag, server_selector=fleet.selector)
    with client.watch(project_id=tag, from_beginning=True) as watch:
        assert kinds(take(watch, 2)) == ENSURED[:2]
        token = watch.resume_token
    with client.watch(project_id=tag, resume_token=token) as watch:
        assert kinds(take(watch, 2)) == ENSURED[2:]
    client.release(tag)
    for after in [answer.resume_token, client.list().resume_token]:
        with client.watch(project_id=tag, resume_token=after) as watch:
            # After the list there is nothing yet.
            if after == answer.resume_token:
                assert kinds(take(watch, 1)) == ["released"]


def test_a_watch_outlives_the_service_and_says_so(own_service: Service):
    told: list[Reconnect] = []
    fleet = Fleet(own_service, "watch")
    fleet.register()
    with ResourceAllocator(own_service.endpoint, timeout=PATIENCE_S) as client:
        with client.watch(project_id="shop", on_reconnect=told.append) as watch:
            client.ensure("shop")
            seen = take(watch, 2)
            own_service.stop()
            own_service.start()
            client.release("shop")
            seen += take(watch, 3)
            # Killed, it says nothing at all.
            own_service.kill()
            own_service.start()
            client.ensure("shop")
            seen += take(watch, 4)
        assert kinds(seen) == [*ENSURED, "released", *ENSURED]
        assert [event.sequence for event in seen] == sorted({event.sequence for event in seen})
        assert len(told) >= 2
        assert all(reconnect.resume_token for reconnect in told)
        assert told[0].failures == 1
    fleet.close()


def test_an_asynchronous_watch_outlives_the_service_and_says_so(own_service: Service):
    told: list[Reconnect] = []
    fleet = Fleet(own_service, "watch")
    fleet.register()

    async def scenario() -> list[AllocationEvent]:
        async with AsyncResourceAllocator(own_service.endpoint, timeout=PATIENCE_S) as client:
            async with client.watch(project_id="shop", on_reconnect=told.append) as watch:
                await client.ensure("shop")
                seen = [await anext(watch) for _ in range(2)]
                token = watch.resume_token
                await asyncio.to_thread(own_service.stop)
                await asyncio.to_thread(own_service.start)
                await client.release("shop")
                seen += [await anext(watch) for _ in range(3)]
            async with client.watch(project_id="shop", resume_token=token) as watch:
                assert kinds([await anext(watch) for _ in range(3)]) == [*ENSURED[2:], "released"]
            return seen

    assert kinds(asyncio.run(scenario())) == [*ENSURED, "released"]
    assert told
    fleet.close()


def test_a_service_that_was_never_there_is_told_at_the_start(own_service: Service):
    own_service.stop()
    with ResourceAllocator(own_service.endpoint, timeout=0.5) as client, pytest.raises(Unreachable):
        client.watch().__enter__()

    async def scenario() -> None:
        async with AsyncResourceAllocator(own_service.endpoint, timeout=0.5) as client:
            with pytest.raises(Unreachable):
                await anext(client.watch())

    asyncio.run(scenario())


def test_what_a_new_stream_would_not_mend_is_raised(client: ResourceAllocator, own_service: Service):
    with pytest.raises(InvalidRequest):
        next(client.watch(resume_token="forged"))
    with ResourceAllocator(own_service.endpoint) as other, pytest.raises((LogRestarted, InvalidRequest)):
        next(other.watch(resume_token=client.list().resume_token))


def test_a_log_that_was_restarted_or_compacted_is_raised_typed(serve: Callable[[ResourceAllocatorServicer], str]):
    class Forgetful(ResourceAllocatorServicer):
        def WatchAllocations(self, request: api.WatchAllocationsRequest, context: grpc.ServicerContext):  # noqa: N802
            if request.resume_token == "old":
                code = grpc.StatusCode.OUT_OF_RANGE
                abort(context, code, "SEQUENCE_COMPACTED", "CALLER", oldest_resume_token="oldest")
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, "LOG_RESTARTED", "CALLER")
            yield api.WatchAllocationsResponse()

    endpoint = serve(Forgetful())
    with ResourceAllocator(endpoint) as client:
        with pytest.raises(SequenceCompacted) as compacted:
            next(client.watch(resume_token="old"))
        assert compacted.value.oldest_resume_token == "oldest"
        with pytest.raises(LogRestarted):
            next(client.watch(resume_token="other"))

    async def scenario() -> None:
        async with AsyncResourceAllocator(endpoint) as client:
            with pytest.raises(SequenceCompacted):
                await anext(client.watch(resume_token="old"))

    asyncio.run(scenario())


class Silent(ResourceAllocatorServicer):
    """Opens streams, says one thing and then nothing, though the connection stands."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def WatchAllocations(self, request: api.WatchAllocationsRequest, context: grpc.ServicerContext):  # noqa: N802
        self.tokens.append(request.resume_token)
        ended = threading.Event()
        context.add_callback(ended.set)
        sequence = len(self.tokens)
        yield api.WatchAllocationsResponse(resume_token=f"after {sequence}", event=AllocationEvent(sequence=sequence))
        ended.wait(PATIENCE_S)


def test_a_stream_that_falls_silent_is_opened_again(
    serve: Callable[[ResourceAllocatorServicer], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "SILENCE", 0.2)
    monkeypatch.setattr("resource_allocator_client.aio_watch.SILENCE", 0.2)
    service = Silent()
    endpoint = serve(service)
    with ResourceAllocator(endpoint) as client, client.watch() as events:
        assert [event.sequence for event in take(events, 3)] == [1, 2, 3]
    assert service.tokens == ["", "after 1", "after 2"]

    async def scenario() -> list[int]:
        async with AsyncResourceAllocator(endpoint) as client, client.watch() as events:
            return [(await anext(events)).sequence for _ in range(2)]

    assert asyncio.run(scenario()) == [4, 5]


class Mute(ResourceAllocatorServicer):
    """Opens streams and says nothing at all."""

    def WatchAllocations(self, request: api.WatchAllocationsRequest, context: grpc.ServicerContext):  # noqa: N802
        hang(context)
        yield api.WatchAllocationsResponse()


def test_a_service_that_was_never_heard_is_given_up(
    serve: Callable[[ResourceAllocatorServicer], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "SILENCE", 0.2)
    monkeypatch.setattr("resource_allocator_client.aio_watch.SILENCE", 0.2)
    told: list[Reconnect] = []
    endpoint = serve(Mute())
    with ResourceAllocator(endpoint, timeout=1) as client, pytest.raises(TechnicalFailure, match="said nothing"):
        next(client.watch(on_reconnect=told.append))

    async def scenario() -> None:
        async with AsyncResourceAllocator(endpoint, timeout=1) as client:
            with pytest.raises(TechnicalFailure, match="said nothing"):
                await asyncio.wait_for(anext(client.watch(on_reconnect=told.append)), PATIENCE_S)

    asyncio.run(scenario())
    assert {type(reconnect.error) for reconnect in told} == {Unreachable}


def test_a_slow_reader_is_not_taken_for_a_silent_stream(
    serve: Callable[[ResourceAllocatorServicer], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "SILENCE", 0.1)
    service = Silent()
    with ResourceAllocator(serve(service)) as client, client.watch() as events:
        take(events, 1)
        # Longer than the limit, and nobody reads.
        threading.Event().wait(0.5)
        assert len(service.tokens) == 1


def test_a_watch_ends_when_it_is_closed_from_elsewhere(client: ResourceAllocator, shared_service: Service, tag: str):
    with client.watch(project_id=tag) as events:
        threading.Timer(0.2, events.close).start()
        assert list(events) == []
        assert list(events) == []

    async def scenario() -> None:
        async with AsyncResourceAllocator(shared_service.endpoint) as client, client.watch(project_id=tag) as events:
            asyncio.get_running_loop().call_later(0.2, events.close)
            assert [event async for event in events] == []

    asyncio.run(scenario())


@pytest.mark.parametrize("opened", [True, False])
def test_a_watch_ends_with_its_client(shared_service: Service, tag: str, opened: bool):
    with ResourceAllocator(shared_service.endpoint) as client:
        events = client.watch(project_id=tag)
        if opened:
            events.__enter__()
            threading.Timer(0.2, client.close).start()
        else:
            client.close()
        assert list(events) == []
        assert list(events) == []

    async def scenario() -> None:
        client = AsyncResourceAllocator(shared_service.endpoint)
        events = client.watch(project_id=tag)
        if opened:
            await events.__aenter__()
            closing = asyncio.ensure_future(close_later(client))
            assert [event async for event in events] == []
            await closing
        else:
            await client.close()
        assert [event async for event in events] == []

    async def close_later(client: AsyncResourceAllocator) -> None:
        await asyncio.sleep(0.2)
        await client.close()

    asyncio.run(scenario())


def test_a_watch_that_is_to_be_opened_again_ends_with_its_client(own_service: Service):
    ended = threading.Event()
    client = ResourceAllocator(own_service.endpoint)
    with ThreadPoolExecutor() as pool, client.watch(on_reconnect=lambda _told: ended.set()) as events:
        own_service.stop()
        reading = pool.submit(list, events)
        assert ended.wait(PATIENCE_S)
        client.close()
        assert reading.result(PATIENCE_S) == []


def test_a_reader_that_is_cancelled_ends_as_one_that_is_cancelled(shared_service: Service, tag: str):
    async def scenario() -> None:
        async with AsyncResourceAllocator(shared_service.endpoint) as client:
            events = client.watch(project_id=tag)
            reading = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.2)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(scenario())


def test_a_watch_that_nobody_holds_leaves_no_thread(client: ResourceAllocator, fleet: Fleet, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE", 0.1)
    fleet.register()
    before = set(threading.enumerate())
    for _event in client.watch(from_beginning=True):
        break
    gc.collect()
    timers = [thread for thread in set(threading.enumerate()) - before if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(PATIENCE_S)
    # One that was armed anew would be another thread.
    assert not [thread for thread in set(threading.enumerate()) - before if isinstance(thread, threading.Timer)]
