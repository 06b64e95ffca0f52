"""Where the service is, and how it is called."""

from __future__ import annotations

import pytest
from live_service import Service

from resource_allocator_client import AsyncResourceAllocator, ResourceAllocator
from resource_allocator_client._channel import target_of


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
