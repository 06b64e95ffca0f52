"""A deploy worker's first steps with Resource Allocator: place a project, repeat, read a refusal, give everything back.

Needs the stubs that README.md shows how to generate, and a service that listens (`make run`).
"""

import os

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from resourceallocator.v1 import resource_allocator_pb2 as api
from resourceallocator.v1 import resource_allocator_pb2_grpc as stubs
from resourceallocator.v1 import types_pb2 as types

ENDPOINT = os.environ.get("RESOURCE_ALLOCATOR_ENDPOINT", "http://127.0.0.1:50051").removeprefix("http://")


def show(answer: api.EnsureAllocationResponse) -> None:
    print(types.EnsureOutcome.Name(answer.outcome), "on", answer.placement.server_handle)
    for allocation in answer.allocations:
        print(f"  {allocation.module}: {allocation.server_address}:{allocation.port}")


def reason_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """Every refusal has an ErrorInfo; its metadata says what kind of act is needed."""
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise error


def main() -> None:
    with grpc.insecure_channel(ENDPOINT) as channel:
        allocator = stubs.ResourceAllocatorStub(channel)

        request = api.EnsureAllocationRequest(project_id="python-tour", modules=[types.ModuleSpec(name="backend")])
        show(allocator.EnsureAllocation(request, timeout=10))
        # A lost answer is harmless: the same call again gives the same.
        show(allocator.EnsureAllocation(request, timeout=10))

        request.modules.append(types.ModuleSpec(name="frontend"))
        show(allocator.EnsureAllocation(request, timeout=10))

        too_big = types.Resources(ram_mb=99_999_999)
        try:
            allocator.EnsureAllocation(api.EnsureAllocationRequest(project_id="too-big", resources=too_big), timeout=10)
        except grpc.RpcError as error:
            info = reason_of(error)
            print(f"refused: {info.reason}, disposition {info.metadata['disposition']}")
            print(f"  {error.details()}")

        released = allocator.ReleaseAllocation(api.ReleaseAllocationRequest(project_id="python-tour"), timeout=10)
        print("gave back", [allocation.port for allocation in released.released])


if __name__ == "__main__":
    main()
