"""A deploy worker's first steps with Resource Allocator: place a project, repeat, read a refusal, give everything back.

Needs the Python client (`pip install ./clients/python`) and a service that listens (`make run`), which
RESOURCE_ALLOCATOR_ENDPOINT names.
"""

from resource_allocator_client import ResourceAllocator, ResourceAllocatorError
from resource_allocator_client.v1.types_pb2 import EnsureOutcome


def show(answer) -> None:
    print(EnsureOutcome.Name(answer.outcome), "on", answer.placement.server_handle)
    for allocation in answer.allocations:
        print(f"  {allocation.module}: {allocation.server_address}:{allocation.port}")


def main() -> None:
    with ResourceAllocator() as allocator:
        show(allocator.ensure("python-tour", ["backend"]))
        # A lost answer is harmless: the same call again gives the same.
        show(allocator.ensure("python-tour", ["backend"]))
        show(allocator.ensure("python-tour", ["backend", "frontend"]))

        try:
            allocator.ensure("too-big", ram_mb=99_999_999)
        except ResourceAllocatorError as refusal:
            # Its disposition says what kind of act is needed.
            print(f"refused: {refusal.reason}, disposition {refusal.disposition}")
            print(f"  {refusal.message}")

        released = allocator.release("python-tour")
        print("gave back", [allocation.port for allocation in released.released])


if __name__ == "__main__":
    main()
