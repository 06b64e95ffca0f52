"""What the client's tests share: the real service, and servers and projects that are each test's own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from live_service import PATIENCE_S, Service, find_binary, live_service

from resource_allocator_client import ResourceAllocator
from resource_allocator_client.v1 import server_inventory_pb2 as inventory
from resource_allocator_client.v1 import types_pb2 as types
from resource_allocator_client.v1.resource_allocator_pb2_grpc import (
    ResourceAllocatorServicer,
    add_ResourceAllocatorServicer_to_server,
)
from resource_allocator_client.v1.server_inventory_pb2_grpc import ServerInventoryStub


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_binary()


@pytest.fixture(scope="session")
def shared_service(binary: Path) -> Iterator[Service]:
    """One service for all tests that leave it as it is; each has servers and projects of its own."""
    with live_service(binary) as service:
        yield service


@pytest.fixture
def own_service(binary: Path) -> Iterator[Service]:
    """A service for a test that needs an empty inventory, or ends it."""
    with live_service(binary) as service:
        yield service


@pytest.fixture
def client(shared_service: Service) -> Iterator[ResourceAllocator]:
    with ResourceAllocator(shared_service.endpoint, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def tag() -> str:
    """Names what is this test's own."""
    return uuid.uuid4().hex[:12]


class Fleet:
    """The servers of one test, which carry a label of their own."""

    def __init__(self, service: Service, tag: str) -> None:
        self._channel = grpc.insecure_channel(service.address)
        self.inventory = ServerInventoryStub(self._channel)
        self.tag = tag
        # Selects this test's servers and no other's.
        self.selector = {"test": tag}

    def register(self, name: str = "web", ram_mb: int = 8192, **fields: object) -> str:
        """Registers a server and gives its handle."""
        handle = f"{name}-{self.tag}"
        server = types.Server(
            handle=handle,
            address="192.0.2.11",
            capacity=types.Resources(ram_mb=ram_mb, disk_mb=100_000, cpu_millis=4000),
            labels=self.selector,
            **fields,
        )
        self.inventory.RegisterServer(inventory.RegisterServerRequest(server=server), timeout=PATIENCE_S)
        return handle

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def fleet(shared_service: Service, tag: str) -> Iterator[Fleet]:
    fleet = Fleet(shared_service, tag)
    yield fleet
    fleet.close()


@pytest.fixture
def serve() -> Iterator[Callable[[ResourceAllocatorServicer], str]]:
    """Serves what a test scripts over a real socket, for answers that the real service cannot be brought to give."""
    servers = []

    def serve(servicer: ResourceAllocatorServicer) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        add_ResourceAllocatorServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(None).wait(PATIENCE_S)
