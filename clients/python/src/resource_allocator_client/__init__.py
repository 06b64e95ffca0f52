"""The client of Resource Allocator, which places projects on servers and gives their modules ports.

    from resource_allocator_client import ResourceAllocator

    with ResourceAllocator("http://127.0.0.1:50051") as client:
        answer = client.ensure("hello-world-bot", ["backend"])
        for allocation in answer.allocations:
            print(allocation.module, allocation.server_address, allocation.port)

`AsyncResourceAllocator` is the same for asyncio. The messages are those of the contract, in `resource_allocator_client.v1`; the
errors are in `resource_allocator_client.errors`. `resource_allocator_client.langgraph` has a node and tools for agents.
"""

from ._requests import Module, Strategy
from ._requests import ensure as ensure_request
from ._version import __version__
from ._waiting import may_have_made_room
from .aio_client import AsyncResourceAllocator
from .aio_watch import AsyncWatch
from .client import Listing, ResourceAllocator
from .errors import (
    CallerRefusal,
    Disposition,
    FieldViolation,
    OperatorRefusal,
    ResourceAllocatorError,
    TechnicalFailure,
    WaitRefusal,
)
from .v1.events_pb2 import AllocationEvent
from .v1.types_pb2 import Allocation, ModuleSpec, Placement, Protocol
from .watch import OnReconnect, Reconnect, Watch

__all__ = [
    "Allocation",
    "AllocationEvent",
    "AsyncResourceAllocator",
    "AsyncWatch",
    "CallerRefusal",
    "Disposition",
    "FieldViolation",
    "Listing",
    "Module",
    "ModuleSpec",
    "OnReconnect",
    "OperatorRefusal",
    "Placement",
    "Protocol",
    "Reconnect",
    "ResourceAllocator",
    "ResourceAllocatorError",
    "Strategy",
    "TechnicalFailure",
    "WaitRefusal",
    "Watch",
    "__version__",
    "ensure_request",
    "may_have_made_room",
]
