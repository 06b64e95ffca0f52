"""Where the service is, and how it is called."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import grpc
import pytest
from live_service import PATIENCE_S, Service
from scripted import Scripted

from resource_allocator_client import AsyncResourceAllocator, Placement, ResourceAllocator, ensure_request
from resource_allocator_client._channel import target_of
from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1.resource_allocator_pb2_grpc import ResourceAllocatorServicer


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("http://127.0.0.1:50051", "127.0.0.1:50051"),
        ("http://allocator.example.net:50051/", "allocator.example.net:50051"),
        ("https://allocator.example.net:50051", "allocator.example.net:50051"),
        ("localhost:1", "localhost:1"),
        ("http://[::1]:50051", "[::1]:50051"),
        ("dns:///allocator:50051", "dns:///allocator:50051"),
        ("ipv4:192.0.2.1:50051,192.0.2.2:50051", "ipv4:192.0.2.1:50051,192.0.2.2:50051"),
        ("unix:/run/allocator.sock", "unix:/run/allocator.sock"),
    ],
)
def test_an_endpoint_is_a_url_or_what_grpc_resolves(endpoint: str, target: str):
    assert target_of(endpoint) == target


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1",
        "http://127.0.0.1",
        ":50051",
        "http://host:0",
        "host:65536",
        "http://host:1/path",
        "ftp://host:1",
        "::1:5",
    ],
)
def test_what_is_no_endpoint_is_refused(endpoint: str):
    with pytest.raises(ValueError, match="not an endpoint"):
        ResourceAllocator(endpoint)


def test_a_repeat_goes_to_another_replica(serve: Callable[[Scripted], str]):
    step = {"code": grpc.StatusCode.UNAVAILABLE, "reason": "DATABASE_UNAVAILABLE", "disposition": "TECHNICAL"}
    cut_off = Scripted([step | {"retry_after": timedelta(milliseconds=10)}] * 10_000)
    well = Scripted([])
    replicas = [serve(replica).removeprefix("http://") for replica in (cut_off, well)]
    with ResourceAllocator(f"ipv4:{','.join(replicas)}", timeout=5) as client:
        until = time.monotonic() + PATIENCE_S
        calls = 0
        while not (cut_off.calls and well.calls > 1):
            assert time.monotonic() < until
            client.ensure("shop")
            calls += 1
        assert well.calls == calls

    async def scenario() -> None:
        async with AsyncResourceAllocator(f"ipv4:{','.join(replicas)}", timeout=5) as client:
            await client.ensure("shop")

    asyncio.run(scenario())
    assert well.calls == calls + 1


class Verbose(ResourceAllocatorServicer):
    """Answers a batch with more than gRPC reads unless it is told to."""

    def BatchEnsureAllocations(  # noqa: N802
        self, request: api.BatchEnsureAllocationsRequest, context: grpc.ServicerContext
    ) -> api.BatchEnsureAllocationsResponse:
        placement = Placement(server_address="x" * 5_000_000)
        response = api.EnsureAllocationResponse(placement=placement)
        return api.BatchEnsureAllocationsResponse(results=[api.BatchEnsureResult(response=response)])


def test_an_answer_of_more_than_four_mebibytes_is_read(serve: Callable[[Verbose], str]):
    endpoint = serve(Verbose())
    with ResourceAllocator(endpoint) as client:
        assert len(client.ensure_many([ensure_request("shop")])[0].placement.server_address) == 5_000_000

    async def scenario() -> None:
        async with AsyncResourceAllocator(endpoint) as client:
            (answer,) = await client.ensure_many([ensure_request("shop")])
            assert len(answer.placement.server_address) == 5_000_000

    asyncio.run(scenario())


def test_without_an_endpoint_there_is_no_default_l02(monkeypatch: pytest.MonkeyPatch):
    for named in [None, ""]:
        if named is None:
            monkeypatch.delenv("RESOURCE_ALLOCATOR_ENDPOINT", raising=False)
        else:
            monkeypatch.setenv("RESOURCE_ALLOCATOR_ENDPOINT", named)
        for client in [ResourceAllocator, AsyncResourceAllocator]:
            with pytest.raises(ValueError, match="RESOURCE_ALLOCATOR_ENDPOINT"):
                client()


def test_the_environment_names_the_endpoint(monkeypatch: pytest.MonkeyPatch, shared_service: Service):
    monkeypatch.setenv("RESOURCE_ALLOCATOR_ENDPOINT", shared_service.endpoint)
    with ResourceAllocator() as client:
        assert client.endpoint == shared_service.endpoint
        assert client.list(project_id="nobody").allocations == ()
