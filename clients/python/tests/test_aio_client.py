"""The calls for asyncio, against the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import grpc
import pytest
from conftest import Fleet
from live_service import PATIENCE_S, Service
from scripted import Scripted

from resource_allocator_client import AsyncResourceAllocator, ensure_request
from resource_allocator_client.errors import (
    DeadlinePassed,
    InsufficientCapacity,
    InvalidRequest,
    ProjectNotFound,
    Unreachable,
)
from resource_allocator_client.v1 import types_pb2 as types


def test_the_calls_are_those_of_the_client_that_blocks(shared_service: Service, fleet: Fleet, tag: str):
    web = fleet.register(ram_mb=2048)

    async def scenario() -> None:
        async with AsyncResourceAllocator(shared_service.endpoint, timeout=PATIENCE_S) as client:
            found = await client.find(server_selector=fleet.selector)
            assert [candidate.server.handle for candidate in found.candidates] == [web]
            modules = ["backend", "frontend"]
            created = await client.ensure(tag, modules, server_selector=fleet.selector)
            assert created.outcome == types.ENSURE_OUTCOME_CREATED
            assert (await client.ensure(tag, modules)).outcome == types.ENSURE_OUTCOME_UNCHANGED
            assert (await client.get(tag)).allocations == created.allocations
            assert list(await client.list(project_id=tag)) == list(created.allocations)
            with pytest.raises(InsufficientCapacity) as full:
                await client.ensure(f"{tag}-large", ram_mb=2000, server_selector=fleet.selector)
            assert full.value.metadata["nearest.short.ram_mb"] == "464"
            request = ensure_request(f"{tag}-large", ram_mb=2000, server_selector=fleet.selector)
            refused, unchanged = await client.ensure_many([request, ensure_request(tag)])
            assert isinstance(refused, InsufficientCapacity)
            assert unchanged.allocations == created.allocations
            assert (await client.ensure(tag, ttl=60)).placement.HasField("expire_time")
            with pytest.raises(InvalidRequest) as bad:
                await client.ensure("no blanks")
            assert [one.field for one in bad.value.field_violations] == ["project_id"]
            replaced = await client.report_port_in_use(tag, "backend", 8000, detail="nginx listens there")
            assert replaced.allocation.port == 8002
            other = fleet.register("other")
            moved = await client.relocate(tag, from_server_handle=web)
            assert (moved.moved, moved.placement.server_handle) == (True, other)
            assert (await client.release(tag)).placement_removed
            with pytest.raises(ProjectNotFound):
                await client.get(tag)

    asyncio.run(scenario())


def test_many_tasks_at_once_get_one_placement(shared_service: Service, fleet: Fleet, tag: str):
    fleet.register()

    async def scenario() -> None:
        async with AsyncResourceAllocator(shared_service.endpoint, timeout=PATIENCE_S) as client:
            calls = [client.ensure(tag, server_selector=fleet.selector) for _ in range(32)]
            answers = await asyncio.gather(*calls)
        assert all(answer.allocations == answers[0].allocations for answer in answers)

    asyncio.run(scenario())


def test_failures_of_the_transport_are_typed_too(own_service: Service):
    async def scenario() -> None:
        async with AsyncResourceAllocator(own_service.endpoint) as client:
            with pytest.raises(DeadlinePassed):
                await client.list(timeout=0.000_001)
            own_service.stop()
            with pytest.raises(Unreachable) as failed:
                await client.list()
            assert own_service.endpoint in failed.value.message

    asyncio.run(scenario())


def test_the_services_advice_is_followed(serve: Callable[[Scripted], str]):
    full = {"code": grpc.StatusCode.RESOURCE_EXHAUSTED, "reason": "OVERLOADED", "disposition": "TECHNICAL"}
    lost = {"code": grpc.StatusCode.UNAVAILABLE, "reason": "LOST", "disposition": None, "domain": "a.proxy"}
    service = Scripted([full | {"retry_after": timedelta(milliseconds=50)}, lost])

    async def scenario() -> None:
        async with AsyncResourceAllocator(serve(service), timeout=PATIENCE_S) as client:
            await client.ensure("shop")

    asyncio.run(scenario())
    assert service.calls == 3
