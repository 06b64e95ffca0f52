"""Errors: their classes, what they keep, and when a call is repeated. The answers are scripted, the sockets real."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from live_service import PATIENCE_S, ROOT
from scripted import Scripted

from resource_allocator_client import (
    AsyncResourceAllocator,
    Disposition,
    FieldViolation,
    ResourceAllocator,
    ResourceAllocatorError,
    _patience,
    errors,
)
from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1.resource_allocator_pb2_grpc import ResourceAllocatorServicer

Serve = Callable[[ResourceAllocatorServicer], str]
OVERLOADED = {"code": grpc.StatusCode.RESOURCE_EXHAUSTED, "reason": "OVERLOADED", "disposition": "TECHNICAL"}
FULL = {"code": grpc.StatusCode.RESOURCE_EXHAUSTED, "reason": "INSUFFICIENT_CAPACITY", "disposition": "WAIT"}
SOON = timedelta(milliseconds=50)
UNAVAILABLE = {"DATABASE_UNAVAILABLE": errors.DatabaseUnavailable, "SHUTTING_DOWN": errors.ShuttingDown}


def documented() -> dict[str, str]:
    """The disposition of each reason, as the contract's comments have it."""
    proto = Path(ROOT, "proto/resourceallocator/v1/error_reason.proto").read_text()
    found = re.findall(
        r"// [A-Z_ or]+, (WAIT|OPERATOR|CALLER|TECHNICAL)\b.*?ERROR_REASON_([A-Z_]+) =", proto, re.DOTALL
    )
    return {reason: disposition for disposition, reason in found}


def refusal(serve: Serve, **step: object) -> ResourceAllocatorError:
    with ResourceAllocator(serve(Scripted([step] * 5))) as client:
        with pytest.raises(ResourceAllocatorError) as refused:
            client.ensure("shop")
        return refused.value


def test_every_class_has_the_disposition_that_the_contract_gives_its_reason():
    contract = documented()
    assert len(contract) >= 29
    own = {"UNREACHABLE": "TECHNICAL"}
    for reason, kind in errors._REASONS.items():
        assert (contract | own)[reason] == kind.for_disposition, reason


def test_a_reason_that_is_not_known_has_the_class_of_its_disposition(serve: Serve):
    for disposition, kind in errors._DISPOSITIONS.items():
        code = grpc.StatusCode.FAILED_PRECONDITION
        told = refusal(serve, code=code, reason="NEW_REASON", disposition=disposition.value, figure="7")
        assert type(told) is kind
        assert (told.reason, told.disposition, told.code) == ("NEW_REASON", disposition, code)
        assert told.metadata["figure"] == "7"


def test_a_known_reason_with_another_disposition_is_routed_by_the_disposition(serve: Serve):
    told = refusal(serve, **FULL | {"disposition": "OPERATOR"})
    assert type(told) is errors.OperatorRefusal
    assert told.reason == "INSUFFICIENT_CAPACITY"


def test_a_disposition_that_is_not_known_is_never_a_hint_to_repeat(serve: Serve):
    told = refusal(serve, code=grpc.StatusCode.FAILED_PRECONDITION, reason="NEW", disposition="PATIENCE")
    assert type(told) is errors.CallerRefusal
    assert told.metadata["disposition"] == "PATIENCE"


def test_errors_of_others_are_not_taken_for_the_services(serve: Serve):
    told = refusal(serve, code=grpc.StatusCode.PERMISSION_DENIED, reason="QUOTA", disposition="WAIT", domain="a.proxy")
    assert type(told) is errors.Forbidden
    told = refusal(serve, code=grpc.StatusCode.ABORTED, reason="QUOTA", disposition=None, domain="a.proxy")
    assert (type(told), told.reason) == (errors.TechnicalFailure, "ABORTED")


def test_another_server_at_the_endpoint_is_told_from_a_refusal(serve: Serve):
    server = grpc.server(None)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with ResourceAllocator(f"127.0.0.1:{port}") as client, pytest.raises(errors.NotImplementedByService) as refused:
            client.ensure("shop")
        assert f"127.0.0.1:{port}" in refused.value.message
    finally:
        server.stop(None).wait(PATIENCE_S)


class Late(ResourceAllocatorServicer):
    """Answers as the service's transport does where it notices before the caller that the deadline passed."""

    def EnsureAllocation(  # noqa: N802
        self, request: api.EnsureAllocationRequest, context: grpc.ServicerContext
    ) -> api.EnsureAllocationResponse:
        context.abort(grpc.StatusCode.CANCELLED, "Timeout expired")
        raise AssertionError


def test_a_deadline_that_the_service_notices_first_is_one_all_the_same(serve: Serve):
    with ResourceAllocator(serve(Late())) as client, pytest.raises(errors.DeadlinePassed) as passed:
        client.ensure("shop")
    assert (passed.value.reason, passed.value.code) == ("DEADLINE_PASSED", grpc.StatusCode.CANCELLED)


def test_an_error_survives_its_way_to_another_process():
    told = errors.error_of(
        "full",
        reason="INSUFFICIENT_CAPACITY",
        disposition=Disposition.WAIT,
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        metadata={"asked.ram_mb": "1"},
        retry_after=SOON,
        field_violations=[FieldViolation("a", "b")],
    )
    again = pickle.loads(pickle.dumps(told))
    assert type(again) is errors.InsufficientCapacity
    assert vars(again) == vars(told)
    assert str(again) == "INSUFFICIENT_CAPACITY (WAIT): full"


def test_the_services_advice_is_followed_within_the_deadline(serve: Serve):
    service = Scripted([OVERLOADED | {"retry_after": SOON}] * 2)
    with ResourceAllocator(serve(service), timeout=PATIENCE_S) as client:
        client.ensure("shop")
    assert service.calls == 3


def test_advice_that_exceeds_the_deadline_is_passed_on(serve: Serve):
    service = Scripted([OVERLOADED | {"retry_after": timedelta(seconds=2 * PATIENCE_S)}])
    with ResourceAllocator(serve(service), timeout=PATIENCE_S) as client, pytest.raises(errors.Overloaded) as refused:
        client.ensure("shop")
    assert service.calls == 1
    assert refused.value.retry_after == timedelta(seconds=2 * PATIENCE_S)


def test_a_refusal_is_not_repeated_even_where_waiting_may_help(serve: Serve):
    service = Scripted([FULL | {"retry_after": SOON}])
    with ResourceAllocator(serve(service)) as client, pytest.raises(errors.InsufficientCapacity) as refused:
        client.ensure("shop")
    assert service.calls == 1
    assert refused.value.retry_after == SOON


class Losing(ResourceAllocatorServicer):
    """Loses calls as a transport does: with a code, and without a word of the service."""

    def __init__(self, losses: int) -> None:
        self._losses = losses
        self.calls = 0

    def EnsureAllocation(  # noqa: N802
        self, request: api.EnsureAllocationRequest, context: grpc.ServicerContext
    ) -> api.EnsureAllocationResponse:
        self.calls += 1
        if self.calls <= self._losses:
            context.abort(grpc.StatusCode.UNAVAILABLE, "recvmsg: connection reset by peer")
        return api.EnsureAllocationResponse()


def test_what_the_transport_loses_is_repeated_four_times(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_patience, "_FIRST_PAUSE", 0.01)
    service = Losing(4)
    with ResourceAllocator(serve(service)) as client:
        client.ensure("shop")
    assert service.calls == 5
    service = Losing(5)
    with ResourceAllocator(serve(service)) as client, pytest.raises(errors.Unreachable):
        client.ensure("shop")
    assert service.calls == 5


@pytest.mark.parametrize(("reason", "kind"), UNAVAILABLE.items())
def test_what_the_service_refuses_as_unavailable_is_repeated_when_it_says(
    serve: Serve, reason: str, kind: type[ResourceAllocatorError]
):
    step = {"code": grpc.StatusCode.UNAVAILABLE, "reason": reason, "disposition": "TECHNICAL", "request_id": "r-1"}
    service = Scripted([step | {"retry_after": SOON}] * 6)
    with ResourceAllocator(serve(service), timeout=PATIENCE_S) as client:
        client.ensure("shop")
    assert service.calls == 7

    service = Scripted([step | {"retry_after": timedelta(seconds=2 * PATIENCE_S)}] * 2)
    with ResourceAllocator(serve(service), timeout=PATIENCE_S) as client, pytest.raises(kind) as refused:
        client.ensure("shop")
    assert (service.calls, refused.value.request_id) == (1, "r-1")


def test_the_last_word_of_the_service_outlives_the_deadline(serve: Serve):
    step = {"code": grpc.StatusCode.UNAVAILABLE, "reason": "DATABASE_UNAVAILABLE", "disposition": "TECHNICAL"}
    steps = [step | {"retry_after": SOON, "request_id": "r-1"}]

    def check(refused: pytest.ExceptionInfo[errors.DatabaseUnavailable], service: Scripted) -> None:
        assert (service.calls, refused.value.request_id) == (2, "r-1")
        assert isinstance(refused.value.__cause__, errors.DeadlinePassed)

    service = Scripted(steps, then_hangs=True)
    with ResourceAllocator(serve(service), timeout=1) as client, pytest.raises(errors.DatabaseUnavailable) as refused:
        client.ensure("shop")
    check(refused, service)

    async def scenario(endpoint: str) -> None:
        async with AsyncResourceAllocator(endpoint, timeout=1) as client:
            await client.ensure("shop")

    service = Scripted(steps, then_hangs=True)
    with pytest.raises(errors.DatabaseUnavailable) as refused:
        asyncio.run(scenario(serve(service)))
    check(refused, service)
