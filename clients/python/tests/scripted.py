"""Answers that a test scripts, in the service's own form."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from live_service import PATIENCE_S

from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1.resource_allocator_pb2_grpc import ResourceAllocatorServicer


def abort(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    disposition: str | None,
    *,
    retry_after: timedelta | None = None,
    domain: str = "resourceallocator",
    **metadata: str,
) -> None:
    """Refuses as the service does."""
    if disposition is not None:
        metadata["disposition"] = disposition
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)]
    if retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=f"told {reason}", details=[_pack(one) for one in details])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, status.message)


def hang(context: grpc.ServicerContext) -> None:
    """Says nothing until the caller has hung up."""
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(PATIENCE_S)


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


class Scripted(ResourceAllocatorServicer):
    """Answers EnsureAllocation by one step after the other, and then with an answer that is empty, or with none."""

    def __init__(self, steps: Iterable[dict[str, object]], *, then_hangs: bool = False) -> None:
        self._steps = list(steps)
        self._then_hangs = then_hangs
        self.calls = 0

    def EnsureAllocation(  # noqa: N802
        self, request: api.EnsureAllocationRequest, context: grpc.ServicerContext
    ) -> api.EnsureAllocationResponse:
        self.calls += 1
        if self._steps:
            abort(context, **self._steps.pop(0))
        if self._then_hangs:
            hang(context)
        return api.EnsureAllocationResponse()
