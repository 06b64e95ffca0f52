"""The case that started all this, played end to end as a new user would: generated stubs, a real service, nothing prepared."""

import os
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from conftest import PATIENCE_S, ROOT, Service


@pytest.fixture
def api(stubs):
    from resourceallocator.v1 import resource_allocator_pb2

    return resource_allocator_pb2


@pytest.fixture
def types(stubs):
    from resourceallocator.v1 import types_pb2

    return types_pb2


@pytest.fixture
def channel(service: Service):
    with grpc.insecure_channel(service.address) as channel:
        yield channel


@pytest.fixture
def allocator(stubs, channel):
    from resourceallocator.v1 import resource_allocator_pb2_grpc

    return resource_allocator_pb2_grpc.ResourceAllocatorStub(channel)


@pytest.fixture
def register(stubs, channel, types):
    """Registers a server: 8 GB of RAM unless told otherwise."""
    from resourceallocator.v1 import server_inventory_pb2, server_inventory_pb2_grpc

    inventory = server_inventory_pb2_grpc.ServerInventoryStub(channel)

    def register(handle: str, address: str, ram_mb: int = 8192, **fields):
        capacity = types.Resources(ram_mb=ram_mb, disk_mb=100_000, cpu_millis=4000)
        server = types.Server(handle=handle, address=address, capacity=capacity, **fields)
        request = server_inventory_pb2.RegisterServerRequest(server=server)
        return inventory.RegisterServer(request, timeout=PATIENCE_S).server

    return register


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise error


def ports(answer) -> dict[str, int]:
    return {allocation.module: allocation.port for allocation in answer.allocations}


def test_the_deploy_that_failed_gets_its_server_and_its_ports(api, types, allocator, register):
    register("resting", "192.0.2.10", ram_mb=32768, status=types.SERVER_STATUS_MAINTENANCE)
    register("right", "192.0.2.11")
    register("small", "192.0.2.12", ram_mb=256)

    def ensure(*modules: str, **fields):
        modules = [types.ModuleSpec(name=name) for name in modules]
        request = api.EnsureAllocationRequest(project_id="hello-world-bot", modules=modules, **fields)
        return allocator.EnsureAllocation(request, timeout=PATIENCE_S)

    created = ensure()
    assert created.outcome == types.ENSURE_OUTCOME_CREATED
    assert (created.placement.server_handle, created.placement.server_address) == ("right", "192.0.2.11")
    assert created.placement.server_admissible
    assert ports(created) == {"backend": 8000}

    repeated = ensure()
    assert repeated.outcome == types.ENSURE_OUTCOME_UNCHANGED
    assert repeated.allocations == created.allocations

    extended = ensure("backend", "frontend")
    assert extended.outcome == types.ENSURE_OUTCOME_EXTENDED
    assert extended.placement.server_handle == "right"
    assert ports(extended) == {"backend": 8000, "frontend": 8001}

    listed = allocator.ListAllocations(api.ListAllocationsRequest(), timeout=PATIENCE_S)
    assert listed.allocations == extended.allocations

    release = api.ReleaseAllocationRequest(project_id="hello-world-bot")
    released = allocator.ReleaseAllocation(release, timeout=PATIENCE_S)
    assert released.placement_removed
    assert released.released == extended.allocations
    listed = allocator.ListAllocations(api.ListAllocationsRequest(), timeout=PATIENCE_S)
    assert not listed.allocations

    # The whole story, in order.
    watch = allocator.WatchAllocations(api.WatchAllocationsRequest(from_beginning=True), timeout=PATIENCE_S)
    told = []
    for message in watch:
        assert message.resume_token
        if message.WhichOneof("payload") == "event":
            told.append(message.event)
            if message.event.WhichOneof("detail") == "released":
                watch.cancel()
                break
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    assert [event.WhichOneof("detail") for event in told] == [
        *["server_changed"] * 3,
        *["requested", "server_selected", "port_allocated", "completed"],
        *["requested", "port_allocated", "completed"],
        "released",
    ]


def test_a_project_that_fits_nowhere_is_told_why(api, types, allocator, register):
    def refusal(**resources) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
        request = api.EnsureAllocationRequest(project_id="shop", resources=types.Resources(**resources))
        with pytest.raises(grpc.RpcError) as refused:
            allocator.EnsureAllocation(request, timeout=PATIENCE_S)
        info = error_info(refused.value)
        assert info.domain == "resourceallocator"
        assert info.metadata["request_id"]
        return refused.value.code(), info

    code, info = refusal()
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_SERVERS")
    assert info.metadata["disposition"] == "OPERATOR"

    register("resting", "192.0.2.10", status=types.SERVER_STATUS_MAINTENANCE)
    code, info = refusal()
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_ADMISSIBLE_SERVER")

    register("right", "192.0.2.11")
    code, info = refusal(ram_mb=99_999)
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_EXCEEDS_FLEET")
    assert info.metadata["disposition"] == "OPERATOR"
    assert info.metadata["asked.ram_mb"] == "99999"

    large = api.EnsureAllocationRequest(project_id="large", resources=types.Resources(ram_mb=8000))
    allocator.EnsureAllocation(large, timeout=PATIENCE_S)
    code, info = refusal(ram_mb=1000)
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_CAPACITY")
    assert info.metadata["disposition"] == "WAIT"
    assert info.metadata["nearest.short.ram_mb"] == "808"


def test_the_example_that_the_readme_names_runs(service, register):
    register("right", "192.0.2.11")
    client = ROOT / "clients" / "python" / "src"
    environment = os.environ | {"PYTHONPATH": str(client), "RESOURCE_ALLOCATOR_ENDPOINT": service.endpoint}
    example = subprocess.run(
        [sys.executable, ROOT / "examples" / "tour.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert example.returncode == 0, example.stderr
    lines = example.stdout.splitlines()
    assert lines[0] == "ENSURE_OUTCOME_CREATED on right"
    assert "refused: REQUEST_EXCEEDS_FLEET, disposition OPERATOR" in lines
    assert lines[-1] == "gave back [8000, 8001]"
